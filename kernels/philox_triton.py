"""Triton kernels: Philox 4x32-10, bit-identical to :mod:`substyle.kernels.philox`.

Other kernels call the helper functions to draw random numbers in registers.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from substyle.kernels import dispatch
from substyle.kernels.philox import NOISE, U64, name_word

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

BLOCKS = 128  # Philox blocks per program; each has 8 numbers of 16 bits
# excluded from specialisation: kernels would be compiled for every name
WORDS = ("low", "high", "stream")


@triton.jit
def draw(key, low, high, stream, block):  # type: ignore[no-untyped-def]
    """Four uint32 random words per block, for a 64-bit key and counter (block, stream, low, high)."""
    c0 = block.to(tl.uint32, bitcast=True)
    zero = c0 ^ c0
    c1 = zero + stream.to(tl.uint32, bitcast=True)
    c2 = zero + low.to(tl.uint32, bitcast=True)
    c3 = zero + high.to(tl.uint32, bitcast=True)
    k0 = zero + (key & 0xFFFFFFFF).to(tl.uint32)
    k1 = zero + ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    m0 = tl.full(zero.shape, 0xD2511F53, tl.uint32)
    m1 = tl.full(zero.shape, 0xCD9E8D57, tl.uint32)
    w0 = tl.full(zero.shape, 0x9E3779B9, tl.uint32)
    w1 = tl.full(zero.shape, 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        high0, high2 = tl.umulhi(c0, m0), tl.umulhi(c2, m1)
        c1, c3, c0, c2 = c2 * m1, c0 * m0, high2 ^ c1 ^ k0, high0 ^ c3 ^ k1
        k0 += w0
        k1 += w1
    return c0, c1, c2, c3


@triton.jit  # type: ignore[untyped-decorator]
def weave(a, b, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Interleave two (N,) tensors: a[0], b[0], a[1], b[1], … Shape: (2 N,)."""
    return tl.join(a, b).reshape([2 * N])


@triton.jit  # type: ignore[untyped-decorator]
def halves(key, low, high, stream, block, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """16-bit numbers 8 b … 8 b + 7 of each of N blocks, in order. Shape: (8 N,) int32."""
    w0, w1, w2, w3 = draw(key, low, high, stream, block)
    words = weave(weave(w0, w2, N), weave(w1, w3, N), 2 * N)
    return weave((words & 0xFFFF).to(tl.int32), (words >> 16).to(tl.int32), 4 * N)


@triton.jit(do_not_specialize=WORDS)  # type: ignore[untyped-decorator]
def _bits16(out, keys, count, low, high, stream, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): N blocks of image i."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * N
    number = first * 8 + tl.arange(0, 8 * N)
    bits = halves(tl.load(keys + image), low, high, stream, first + tl.arange(0, N), N)
    tl.store(out + image * count + number, bits.to(out.dtype.element_ty), mask=number < count)


def bits16(
    keys_B: U64,
    name: str,
    count: int,
    device: torch.device,
    *,
    stream: int = NOISE,
    dtype: torch.dtype = torch.int32,
) -> torch.Tensor:
    """``philox.bits16_torch`` in Triton. Shape: (B, count) in [0, 65536), int32 or uint16."""
    out = torch.empty(len(keys_B), count, dtype=dtype, device=device)
    grid = dispatch.grid("keys", len(keys_B), count, 8 * BLOCKS)
    if grid is not None:
        dispatch.launch(_bits16, grid, out, device_keys(keys_B, device), count, *name_words(name), stream, N=BLOCKS)
    return out


def device_keys(keys_B: U64, device: torch.device) -> torch.Tensor:
    """Copy keys to a device, bits reinterpreted. Shape: (B,) int64."""
    return dispatch.upload(keys_B.view(np.int64), device)


def name_words(name: str) -> tuple[int, int]:
    """The low and high counter words of a name, bits reinterpreted as signed 32-bit integers."""
    low, high = np.array([name_word(name)], np.uint64).view(np.int32).tolist()
    return low, high
