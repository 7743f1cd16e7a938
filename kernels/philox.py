"""Counter-based random numbers: Philox 4x32-10, a pure function of (study seed, image key, transformation name).

Algorithm and constants: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Triton's
``tl.randint4x`` is the same generator. The 128-bit counter of a draw is (block, stream, transformation low,
transformation high), its 64-bit key a hash of (seed, image key): draws never depend on the batch or on the position of
an image in it.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import native
from substyle.kernels.dispatch import upload

PARAMETERS, NOISE = 0, 1  # streams: parameters and per-pixel noise of a transformation never share a counter

_ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)

U64 = NDArray[np.uint64]


def image_keys(seed: int, keys: Sequence[str]) -> U64:
    """Philox keys of B image keys. Shape: (B,) uint64."""
    prefix = b"substyle:%d:" % seed
    digests = [hashlib.blake2b(prefix + key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


@cache
def name_word(name: str) -> int:
    """The 64 counter bits of a transformation's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def philox_4x32(counter: Sequence[U64], key: Sequence[U64]) -> tuple[U64, U64, U64, U64]:
    """Ten rounds of Philox on broadcastable uint64 arrays of 32-bit words.

    Args:
        counter: four arrays of counter words.
        key: two arrays of key words.

    Returns:
        four uint64 arrays of random 32-bit words, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for i in range(_ROUNDS):
        r0 = (k0 + np.uint64(i * _W0 & 0xFFFFFFFF)) & _MASK
        r1 = (k1 + np.uint64(i * _W1 & 0xFFFFFFFF)) & _MASK
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ r0, p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ r1, p0 & _MASK
    return c0, c1, c2, c3


def words_of(
    keys_B: U64, wanted: Sequence[tuple[str, int]], *, stream: int = PARAMETERS
) -> Iterator[NDArray[np.uint32]]:
    """:func:`words` of several transformations, given by name and count, from one call of the generator."""
    blocks_T = [-(-count // 4) for _, count in wanted]
    name_N = np.repeat(np.array([name_word(name) for name, _ in wanted], np.uint64), blocks_T)
    block_N = np.concatenate([np.arange(0), *map(np.arange, blocks_T)]).astype(np.uint64)
    counter = block_N, np.full(1, stream, np.uint64), name_N & _MASK, name_N >> _SHIFT
    lanes = philox_4x32(counter, ((keys_B & _MASK)[:, None], (keys_B >> _SHIFT)[:, None]))
    words_BN = np.stack(lanes, axis=-1).astype(np.uint32).reshape(len(keys_B), 4 * len(block_N))
    for (_, count), blocks, end in zip(wanted, blocks_T, accumulate(blocks_T), strict=True):
        yield words_BN[:, 4 * (end - blocks) :][:, :count]


def words(keys_B: U64, name: str, count: int, *, stream: int = PARAMETERS) -> NDArray[np.uint32]:
    """Random words of a transformation. Shape: (B, count) uint32; word j is lane j % 4 of block j // 4."""
    return next(words_of(keys_B, [(name, count)], stream=stream))


def uniforms_of(keys_B: U64, wanted: Sequence[tuple[str, int]]) -> Iterator[NDArray[np.float64]]:
    """:func:`uniforms` of several transformations, given by name and count, from one call of the generator."""
    return (np.multiply(words, 2.0**-32, dtype=np.float64) for words in words_of(keys_B, wanted))


def uniforms(keys_B: U64, name: str, count: int) -> NDArray[np.float64]:
    """Uniform random numbers in [0, 1) of a transformation. Shape: (B, count) float64."""
    return next(uniforms_of(keys_B, [(name, count)]))


def bits16(key: np.uint64, name: str, out: NDArray[np.uint16], *, stream: int = NOISE) -> None:
    """Fill ``out`` with 16-bit random numbers of one image, for per-pixel noise.

    Number j is half j % 2 (low half first) of word j // 2 of :func:`words`, so block b yields numbers 8 b to 8 b + 7.
    Releases the GIL, so images can be processed on threads.

    Args:
        key: the image's Philox key.
        out: (count,) uint16, C-contiguous.
    """
    compiled = _compiled()
    if compiled is None:
        (row,) = words(np.array([key]), name, -(-out.size // 2), stream=stream)
        out[:] = row.astype("<u4").view("<u2")[: out.size]
    else:
        compiled(int(key), name_word(name), stream, out.size, out.ctypes.data)


@cache
def _compiled() -> Any:  # noqa: ANN401 - ctypes finds functions at run time
    """The generator in C, many times as fast as in numpy; None without a compiler."""
    library = native.load("philox_native")
    if library is None:
        return None
    function = library.philox_bits16
    function.restype = None
    function.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int64, ctypes.c_void_p)
    return function


Words = torch.Tensor | int


def philox_4x32_torch(counter: Sequence[Words], key: Sequence[Words]) -> tuple[torch.Tensor, ...]:
    """:func:`philox_4x32` of 32-bit words in int64 tensors, or integers for words that all draws share."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for i in range(_ROUNDS):  # products may wrap to negative int64: mask after the arithmetic shift
        r0, r1 = (k0 + i * _W0) & 0xFFFFFFFF, (k1 + i * _W1) & 0xFFFFFFFF
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1 = (p1 >> 32 & 0xFFFFFFFF) ^ c1 ^ r0, p1 & 0xFFFFFFFF
        c2, c3 = (p0 >> 32 & 0xFFFFFFFF) ^ c3 ^ r1, p0 & 0xFFFFFFFF
    return c0, c1, c2, c3  # type: ignore[return-value]  # tensors, since some word is one


def bits16_torch(keys_B: U64, name: str, count: int, device: torch.device, *, stream: int = NOISE) -> torch.Tensor:
    """:func:`bits16` for a batch, in torch on any device. Shape: (B, count) int32 in [0, 65536)."""
    name64 = name_word(name)
    key_B1 = upload(keys_B.view(np.int64).copy(), device)[:, None]
    block = torch.arange(-(-count // 8), device=device).expand(len(keys_B), -1)
    counter = block, stream, name64 & 0xFFFFFFFF, name64 >> 32
    words = philox_4x32_torch(counter, (key_B1 & 0xFFFFFFFF, key_B1 >> 32 & 0xFFFFFFFF))
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)
    return halves.flatten(1)[:, :count].int()


DROPOUT = "dropout"


def keys_of_seeds(seeds: Sequence[int]) -> U64:
    """Philox keys of seeds: their lowest 64 bits. Shape: (S,) uint64."""
    return np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], np.uint64)
