"""Triton kernel of :mod:`substyle.kernels.probe_data`; dropout masks are identical to the reference, bit for bit."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.kernels import dispatch
from substyle.kernels.errors import ConfigError
from substyle.kernels.philox import DROPOUT
from substyle.kernels.philox_triton import halves, name_words, weave

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")


BLOCKS = 64  # Philox blocks of 16 units per program
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit  # type: ignore[untyped-decorator]
def kept(seeds, seed, low, high, step, threshold, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Masks of the N blocks of this program, drawn in registers. Shape: (16 N,) bool."""
    block = tl.program_id(0) * N + tl.arange(0, N)
    pair = halves(tl.load(seeds + seed), low, high, step, block, N)
    return weave(pair & 0xFF, pair >> 8, 8 * N) >= threshold


@triton.jit(do_not_specialize=("low", "high", "threshold"))  # type: ignore[untyped-decorator]
def _relu_drop(hidden, bias, seeds, step, count, batch, each, low, high, threshold, BIASED: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (j, s): 16 N of the (H, B) values of all heads of seed s: ``each`` heads, S apart, share one mask."""
    seed = tl.program_id(1).to(tl.int64)
    unit = tl.program_id(0) * 16 * N + tl.arange(0, 16 * N)
    inside = unit < count
    passed = kept(seeds, seed, low, high, tl.load(step), threshold, N)
    seeded = tl.num_programs(1).to(tl.int64)
    at = hidden + seed * count + unit
    own = bias + seed * (count // batch)
    for _ in range(each):
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if BIASED:
            value += tl.load(own + unit // batch, mask=inside, other=0.0)
        cut = (value <= 0.0) | (passed == 0)  # false for a kept NaN, which propagates
        tl.store(at, tl.where(cut, 0.0, value).to(hidden.dtype.element_ty), mask=inside)
        at += seeded * count
        own += seeded * (count // batch)


def relu_drop_(
    hidden_KHB: torch.Tensor,
    key_S: torch.Tensor,
    step_1: torch.Tensor,
    threshold: int,
    bias_KH: torch.Tensor | None = None,
) -> torch.Tensor:
    """``probe_data.relu_drop_``. Returns ``hidden_KHB``."""
    if hidden_KHB.dtype not in FLOATS:
        raise ConfigError("hidden.dtype", hidden_KHB.dtype, ", ".join(map(str, FLOATS)))
    dispatch.expect("hidden", hidden_KHB, hidden_KHB.dtype, (None, None, None))
    dispatch.expect("key", key_S, torch.int64, (None,), hidden_KHB.device)
    dispatch.expect("step", step_1, torch.int32, (1,), hidden_KHB.device)
    if bias_KH is not None:
        dispatch.expect("bias", bias_KH, torch.float32, tuple(hidden_KHB.shape[:2]), hidden_KHB.device)
    count, each = hidden_KHB.shape[1:].numel(), len(hidden_KHB) // len(key_S)
    grid = dispatch.grid("hidden", len(key_S), count, 16 * BLOCKS)
    if grid is not None:
        dispatch.launch(
            _relu_drop, grid, hidden_KHB, key_S if bias_KH is None else bias_KH, key_S, step_1, count,
            hidden_KHB.shape[2], each, *name_words(DROPOUT), threshold, BIASED=bias_KH is not None, N=BLOCKS,
        )  # fmt: skip
    return hidden_KHB
