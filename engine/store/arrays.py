"""Zarr v3 arrays of a store: their metadata, and the encoding of their chunks.

Format: Zarr core specification, version 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.files import write_durably, writing
from substyle.engine.store.layout import (
    METADATA,
    ArrayEntry,
    Codec,
    Dtype,
    OverflowError16,
    StoreError,
    StoreSettings,
)
from substyle.pipelines.storage import Place

if TYPE_CHECKING:
    from numcodecs import Blosc, Zstd

CHECKSUM = 4  # bytes of a CRC32C
_SERIAL = 1 << 15  # numbers that torch converts on one thread
_SUMMED: dict[str, Any] = {"name": "crc32c"}
_PLAIN: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}


def group(attributes: Mapping[str, Any]) -> bytes:
    """Encode the metadata of a group."""
    return _text({"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})


def array_metadata(array: ArrayEntry, rows: int, settings: StoreSettings, attributes: Mapping[str, Any]) -> bytes:
    """Encode the metadata of an array (T, N, D): chunks of R rows of a transformation, shards of all T; fill value NaN.

    Its first dimension has a name of its own, because arrays of other transformations have another size.
    """
    return _text(_array(array, rows, settings, attributes))


def _array(array: ArrayEntry, rows: int, settings: StoreSettings, attributes: Mapping[str, Any]) -> dict[str, Any]:
    count, chunk = len(array.transformations), [settings.shard_rows, array.dim]
    sharding = {
        "chunk_shape": [1, *chunk],
        "codecs": [_PLAIN, *codec_metadata(settings.codec, settings.dtype), _SUMMED],
        "index_codecs": [_PLAIN, _SUMMED],
        "index_location": "end",
    }
    return {
        "shape": [count, rows, array.dim],
        "data_type": settings.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [count, *chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": dict(attributes),
        "dimension_names": [f"transformation_{array.name}", "image", "feature"],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def write(node: Place, metadata: bytes) -> None:
    """Write or replace the metadata of a group or an array. Raises StoreError if the write fails."""
    write_durably(node / METADATA, metadata)


def grow(node: Place, rows: int) -> None:
    """Extend an array with rows of NaN. Raises StoreError if the write fails."""
    path = node / METADATA
    with writing(path):
        metadata: dict[str, Any] = json.loads(path.read_bytes())
    metadata["shape"][1] = rows
    write(node, _text(metadata))


def require_group(node: Place) -> None:
    """Raise StoreError unless the metadata are those of a group."""
    _read(node, "group")


def rows_of(node: Place, array: ArrayEntry, settings: StoreSettings) -> int:
    """Return N, the rows of an array.

    Raises:
        StoreError: its metadata are missing or damaged, or are not those of `array_metadata` but for their attributes.
    """
    found = {"storage_transformers": []} | _read(node, "array")  # writers may leave it out
    match found.get("shape"):
        case [_, int(rows), *_] if rows >= 0:
            expected = _array(array, rows, settings, {})
        case _:
            expected = _array(array, 0, settings, {})
    for key in sorted((found.keys() | expected.keys()) - {"attributes", "dimension_names"}):
        if found.get(key) != expected.get(key):
            what = f"{key} {found.get(key)}, expected {expected.get(key)}"
            raise StoreError(f"{node / METADATA}: {what}; run substyle verify")
    return int(expected["shape"][1])


def _read(node: Place, kind: str) -> dict[str, Any]:
    """Read the metadata of a group or an array. Raises StoreError if they are missing or damaged."""
    path = node / METADATA
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise StoreError(f"{path}: cannot read: {repr(error)[:300]}; run substyle verify") from error
    if not isinstance(found, dict) or (found.get("zarr_format"), found.get("node_type")) != (3, kind):
        raise StoreError(f"{path}: not the metadata of a Zarr v3 {kind}; run substyle verify")
    return found


def _text(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, indent=2).encode()


# Chunks are plain numbers, or compressed by numcodecs. Any Zarr v3 reader has these codecs.

KEPT_BITS = 7  # mantissa bits that bitround keeps: those of bfloat16
_ZSTD = {"level": 3, "checksum": False}
_LEVEL = 5  # of blosc


def codec_metadata(codec: Codec, dtype: Dtype) -> list[dict[str, Any]]:
    """Return the compressor in the Zarr metadata of an array. Rounding is not in them: readers need not know of it."""
    if codec == "none":
        return []
    if codec == "blosc":
        size = np.dtype(dtype).itemsize
        settings = {"typesize": size, "cname": "zstd", "clevel": _LEVEL, "shuffle": "bitshuffle", "blocksize": 0}
        return [{"name": "blosc", "configuration": settings}]
    return [{"name": "zstd", "configuration": _ZSTD}]


def rounded(x: NDArray[Any], codec: Codec) -> NDArray[Any]:
    """Return the values that a codec stores: with `KEPT_BITS` mantissa bits for ``bitround+zstd``, else the same."""
    if codec != "bitround+zstd":
        return x
    from numcodecs import BitRound

    bits = BitRound(KEPT_BITS).encode(np.ascontiguousarray(x))
    return np.where(np.isfinite(x), bits.view(x.dtype).reshape(x.shape), x)


def encode(x_RD: NDArray[Any], codec: Codec) -> memoryview:
    """Encode a chunk as little-endian numbers in C order."""
    plain_RD = np.ascontiguousarray(x_RD, x_RD.dtype.newbyteorder("<"))
    if codec == "none":
        return plain_RD.view(np.uint8).reshape(-1).data
    return memoryview(_codec(codec).encode(plain_RD))


def decode(data: bytes, codec: Codec, dtype: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Decode a chunk of the shape (R, D).

    Raises ValueError or RuntimeError if it is damaged, and before anything is allocated if it decodes to another size.
    """
    if codec == "none":
        return np.frombuffer(data, dtype).reshape(shape)
    # blosc reads beyond the end of truncated data; bytes 12 to 15 of its header are their size
    if codec == "blosc" and int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("truncated")
    size = int.from_bytes(data[4:8], "little") if codec == "blosc" else _zstd_size(data)
    if size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{size} bytes, expected {shape} × {dtype.itemsize}")
    out_RD = np.empty(shape, dtype)
    _codec(codec).decode(data, out_RD.data.cast("B"))
    return out_RD


def _zstd_size(data: bytes) -> int:
    """The decoded size in the header of a Zstandard frame (RFC 8878, section 3.1.1.1); 0 if it has none."""
    flags = data[4] if len(data) > 4 else 0
    single = flags >> 5 & 1
    start, length = 5 + 1 - single + (0, 1, 2, 4)[flags & 3], (single, 2, 4, 8)[flags >> 6]
    return int.from_bytes(data[start : start + length], "little") + 256 * (length == 2)


def _codec(codec: Codec) -> Blosc | Zstd:
    from numcodecs import Blosc, Zstd

    return Blosc("zstd", _LEVEL, Blosc.BITSHUFFLE) if codec == "blosc" else Zstd(**_ZSTD)


def cast(rows_RD: NDArray[np.floating], settings: StoreSettings, what: str, *, exact: bool) -> NDArray[Any]:
    """Convert embeddings to the stored values, without rounding if ``exact``.

    Raises OverflowError16 if a finite value overflows.
    """
    cast_RD = rounded(_converted(rows_RD, settings.dtype), "none" if exact else settings.codec)
    if _has_infinity(cast_RD) and (np.isinf(cast_RD) & np.isfinite(rows_RD)).any():
        raise OverflowError16(f'{what}: embeddings overflow {settings.dtype}; set dtype = "float32"')
    return cast_RD


def _converted(rows_RD: NDArray[np.floating], dtype: Dtype) -> NDArray[Any]:
    """``astype``; of float32 to float16 by torch, which takes a ninth of NumPy's time."""
    if dtype != "float16" or rows_RD.dtype != np.float32:
        with np.errstate(over="ignore"):
            return rows_RD.astype(dtype)
    import torch  # takes seconds; what writes embeddings has it

    half = torch.empty(rows_RD.shape, dtype=torch.float16)
    # torch converts more numbers at once on several threads, whose waits take three times the processor time
    wide = torch.from_numpy(np.require(rows_RD, requirements=("C", "W"))).view(-1)
    flat = half.view(-1)
    for start in range(0, len(flat), _SERIAL):
        flat[start : start + _SERIAL].copy_(wide[start : start + _SERIAL])
    converted: NDArray[Any] = half.numpy()
    return converted


def _has_infinity(x: NDArray[Any]) -> bool:
    if x.dtype == np.float16:  # its bits, since NumPy tests each number of 16 bits by itself
        return bool(((x.view(np.uint16) & 0x7FFF) == 0x7C00).any())
    return bool(np.isinf(x).any())
