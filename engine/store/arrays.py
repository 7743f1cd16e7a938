"""Zarr v3 arrays of a store: metadata, and chunks written and read without the zarr library.

The library takes milliseconds per chunk and writes from its own threads, which fail with a traceback on an interrupt.
Format: Zarr core specification, version 3.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.files import make_folder, write_durably, writing
from substyle.engine.store.layout import CHUNKS, METADATA, Codec, Dtype, OverflowError16, StoreError, StoreSettings
from substyle.kernels.files import UnsafeFileError
from substyle.pipelines.storage import Fill, LocalPlace, Place, each

if TYPE_CHECKING:
    from numcodecs import Blosc, Zstd

# chunk (i, j) is the file c/i/j
CHUNK_NAMES: dict[str, Any] = {"name": "default", "configuration": {"separator": "/"}}
DIMENSIONS = ("image", "feature")
WRITERS = 4  # chunks written at once: a disk flushes several in the time of one


def group(attributes: Mapping[str, Any]) -> bytes:
    """Encode the metadata of a group."""
    return _text({"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})


def array_metadata(rows: int, width: int, settings: StoreSettings, attributes: Mapping[str, Any]) -> bytes:
    """Encode the metadata of an array of rows of D = ``width`` numbers, in chunks of whole rows; fill value NaN."""
    return _text(
        {
            "shape": [rows, width],
            "data_type": settings.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [settings.shard_rows, width]}},
            "chunk_key_encoding": CHUNK_NAMES,
            "fill_value": "NaN",
            "codecs": codec_metadata(settings.codec, settings.dtype),
            "attributes": dict(attributes),
            "dimension_names": list(DIMENSIONS),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def write(node: Place, metadata: bytes) -> None:
    """Write or replace the metadata of a group or an array. Raises StoreError if the write fails."""
    make_folder(node)
    write_durably(node / METADATA, metadata)


def grow(node: Place, rows: int) -> None:
    """Extend an array with rows of NaN. Raises StoreError if the write fails."""
    path = node / METADATA
    with writing(path):
        metadata: dict[str, Any] = json.loads(path.read_bytes())
    metadata["shape"][0] = rows
    write(node, _text(metadata))


def require_group(node: Place) -> None:
    """Raise StoreError unless the metadata are those of a group."""
    _read(node, "group")


def rows_of(node: Place, width: int, settings: StoreSettings) -> int:
    """Return the number of rows of an array.

    Raises:
        StoreError: its metadata are missing or damaged, or are not those of `array_metadata` but for their attributes.
    """
    found, expected = _read(node, "array"), json.loads(array_metadata(0, width, settings, {}))
    match found.get("shape"):
        case [int(rows), *_] if rows >= 0:
            expected["shape"][0] = rows
    found = {"storage_transformers": []} | found  # writers may leave it out
    for key in sorted((found.keys() | expected.keys()) - {"attributes", "dimension_names"}):
        if found.get(key) != expected.get(key):
            what = f"{key} {found.get(key)}, expected {expected.get(key)}"
            raise StoreError(f"{node / METADATA}: {what}; run substyle verify")
    return int(expected["shape"][0])


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
    """Return the codecs in the Zarr metadata of an array. Rounding is not one of them: readers need not know of it."""
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    if codec == "none":
        return [plain]
    if codec == "blosc":
        size = np.dtype(dtype).itemsize
        settings = {"typesize": size, "cname": "zstd", "clevel": _LEVEL, "shuffle": "bitshuffle", "blocksize": 0}
        return [plain, {"name": "blosc", "configuration": settings}]
    return [plain, {"name": "zstd", "configuration": _ZSTD}]


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

    half: NDArray[Any] = torch.from_numpy(np.require(rows_RD, requirements=("C", "W"))).to(torch.float16).numpy()
    return half


def _has_infinity(x: NDArray[Any]) -> bool:
    if x.dtype == np.float16:  # its bits, since NumPy tests each number of 16 bits by itself
        return bool(((x.view(np.uint16) & 0x7FFF) == 0x7C00).any())
    return bool(np.isinf(x).any())


def write_chunk(chunk: Place, rows_RD: NDArray[Any], settings: StoreSettings) -> str:
    """Write r ≤ R rows of a shard as one chunk, padded with NaN.

    Returns:
        SHA-256 of the chunk.

    Raises:
        StoreError: the disk or bucket is full, not writable, or failed.
    """
    whole_RD = rows_RD
    if len(rows_RD) < settings.shard_rows:
        whole_RD = np.full((settings.shard_rows, rows_RD.shape[1]), np.nan, rows_RD.dtype)
        whole_RD[: len(rows_RD)] = rows_RD
    data = encode(whole_RD, settings.codec)
    with writing(chunk):
        # the folder may hold a file of an interrupted run, or a chunk that is embedded again
        chunk.write_alone(data, _array_folder(chunk))
    return hashlib.sha256(data).hexdigest()


def _array_folder(chunk: Place) -> Place:
    return _folders(chunk)[-1].parent


def checksum(chunk: Place) -> tuple[str, int]:
    """Return the SHA-256 and the size of a chunk. Raises OSError, or StoreError if it is reached through a link."""
    with _without_links():
        return chunk.digest_below(_array_folder(chunk))


@contextmanager
def _without_links() -> Iterator[None]:
    try:
        yield
    except UnsafeFileError as error:
        raise StoreError(f"{error}; run substyle verify") from error


def flush_folders(chunks: Iterable[Place]) -> None:
    """Flush the folders of chunk files and of their shards to the disk."""

    def flush(folder: Place) -> None:
        with writing(folder):
            folder.flush()

    each(flush, sorted({folder for chunk in chunks for folder in _folders(chunk)}), WRITERS)


def _folders(chunk: Place) -> list[Place]:
    """The folders of a chunk, up to that of all chunks of its array."""
    folders = [chunk.parent]
    while folders[-1].name != CHUNKS:
        folders.append(folders[-1].parent)
    return folders


class Sizes:
    """Sizes of chunks; in a bucket, one listing per array."""

    def __init__(self) -> None:
        self._of: dict[Place, Callable[[Place], int | None]] = {}

    def of(self, chunk: Place) -> int | None:
        """Return the size of a chunk in bytes; None if it does not exist or its name is invalid."""
        if isinstance(chunk, LocalPlace):  # no listing to look for: there may be millions of chunks
            return chunk.sizes()(chunk)
        folder = _folders(chunk)[-1]
        if folder not in self._of:
            self._of[folder] = folder.sizes()
        return self._of[folder](chunk)


# Chunks have whole rows (`rows_of`). Without a codec, rows are read from a part of the file straight into the
# output; zarr's codec pipeline would read whole chunks and copy them once more. Compressed chunks are decoded whole.

Read: TypeAlias = Callable[[int, NDArray[Any]], None]


def read_rows(rows: int, chunk: Callable[[int], Place], start: int, out_RD: NDArray[Any], codec: Codec) -> None:
    """Fill ``out_RD`` with the rows of an array from ``start`` on; missing chunks are NaN.

    Args:
        rows: of a chunk.
        chunk: maps a chunk number to its location. Chunks in a bucket are requested concurrently.
        out_RD: contiguous, in the array's dtype.

    Raises:
        StoreError: a chunk is truncated or cannot be read.
    """
    at, stop = start, start + len(out_RD)
    parts: list[tuple[Place, int, NDArray[Any]]] = []
    while at < stop:
        number, first = divmod(at, rows)
        count = min(rows - first, stop - at)
        parts.append((chunk(number), first, out_RD[at - start : at - start + count]))
        at += count
    each(lambda part: _read_part(*part, codec, rows), parts, parts[0][0].requests if parts else 1)


def _read_part(path: Place, first: int, out_RD: NDArray[Any], codec: Codec, rows: int) -> None:
    try:
        with _reading(path, out_RD, codec, rows) as read:
            read(first, out_RD)
    except FileNotFoundError:
        out_RD[...] = np.nan
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Place, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot read: {error.strerror or error}; run substyle verify")


def take(
    path: Place,
    row_M: NDArray[np.int64],
    out_RD: NDArray[Any],
    place_M: NDArray[np.int64],
    codec: Codec,
    rows: int,
) -> None:
    """Read rows of a chunk into rows ``place_M`` of an array; neighbouring rows are read together.

    Args:
        row_M: rows of the chunk, ascending, possibly repeated.
        out_RD: contiguous, in the store's dtype.
        rows: R, rows of the whole chunk.

    Raises:
        StoreError: the chunk is missing, truncated or cannot be read.
    """
    row_bytes = out_RD.shape[1] * out_RD.itemsize
    apart_M = (np.diff(row_M) * row_bytes > row_bytes + path.near) & (codec == "none")  # others are decoded whole
    ends = np.flatnonzero(np.append(apart_M, True)) + 1 if len(row_M) else row_M
    start = 0
    try:
        with _reading(path, out_RD, codec, rows) as read:
            for end in ends.tolist():
                row_K, place_K = row_M[start:end], place_M[start:end]
                if end - start == 1:  # read without a copy
                    read(int(row_K[0]), out_RD[place_K[0] : place_K[0] + 1])
                else:
                    near_RD = np.empty((row_K[-1] - row_K[0] + 1, out_RD.shape[1]), out_RD.dtype)
                    read(int(row_K[0]), near_RD)
                    out_RD[place_K] = near_RD[row_K - row_K[0]]
                start = end
    except OSError as error:
        raise _unreadable(path, error) from error


@contextmanager
def _reading(path: Place, like_RD: NDArray[Any], codec: Codec, rows: int) -> Iterator[Read]:
    """Yield a function that reads consecutive rows of a chunk, from the first on, into a contiguous array.

    Raises OSError; or StoreError if the chunk is truncated or cannot be decoded.
    """
    row_bytes, root = like_RD.shape[1] * like_RD.itemsize, _array_folder(path)

    def read(copy: Fill, first: int, out_RD: NDArray[Any]) -> None:
        place = out_RD.data.cast("B")
        if copy(place, first * row_bytes) < len(place):
            raise StoreError(f"{path}: truncated; run substyle verify")

    if codec != "none":
        with _without_links():
            data = path.read_below(root)
        try:
            whole = decode(data, codec, like_RD.dtype, (rows, like_RD.shape[1])).data.cast("B")
        except (ValueError, RuntimeError, MemoryError) as error:
            raise StoreError(f"{path}: cannot be decoded ({error}); run substyle verify") from error
        yield partial(read, lambda place, offset: _copy(whole[offset : offset + len(place)], place))
    else:
        with _without_links(), path.ranges_below(root) as fill:
            yield partial(read, fill)


def _copy(found: memoryview, place: memoryview) -> int:
    place[: len(found)] = found
    return len(found)
