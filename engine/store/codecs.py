"""Codecs of chunks: plain numbers, or compressed by numcodecs. Any Zarr v3 reader has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.layout import Codec, Dtype

if TYPE_CHECKING:
    from numcodecs import Blosc, Zstd

KEPT_BITS = 7  # mantissa bits that bitround keeps: those of bfloat16
_ZSTD = {"level": 3, "checksum": False}
_LEVEL = 5  # of blosc


def metadata(codec: Codec, dtype: Dtype) -> list[dict[str, Any]]:
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


def decode(data: bytes, codec: Codec, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """Decode a chunk. Shape: (R, D). Raises ValueError or RuntimeError if it is damaged."""
    # blosc reads beyond the end of truncated data; bytes 12 to 15 of its header are their size
    if codec == "blosc" and int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("truncated")
    return np.frombuffer(_codec(codec).decode(data), dtype).reshape(-1, width)


def _codec(codec: Codec) -> Blosc | Zstd:
    from numcodecs import Blosc, Zstd

    return Blosc("zstd", _LEVEL, Blosc.BITSHUFFLE) if codec == "blosc" else Zstd(**_ZSTD)
