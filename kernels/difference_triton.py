"""Sums of absolute differences on a GPU, in Triton: both pictures are read once and nothing else is written."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.kernels import dispatch

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

DIFFERENCE_VALUES = 4096  # of one program of a sum of differences
LANES = 512  # of those at once


@triton.jit
def add(a, b):  # type: ignore[no-untyped-def]
    """What a sum is made of; Triton's own sum is not interpreted when Triton was loaded to compile."""
    return a + b


@triton.jit  # type: ignore[untyped-decorator]
def _total(a, b, out, count, LANES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): adds up BLOCK differences of image i. Whole numbers, so that the order does not matter."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK + tl.arange(0, LANES)
    sums = tl.full((LANES,), 0, tl.int32)
    for run in tl.static_range(BLOCK // LANES):
        value = first + run * LANES
        x = tl.load(a + image * count + value, mask=value < count, other=0).to(tl.int32)
        y = tl.load(b + image * count + value, mask=value < count, other=0).to(tl.int32)
        sums += tl.abs(x - y)
    tl.atomic_add(out + image, tl.reduce(sums, 0, add).to(tl.int64))


def total(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """``difference.total_reference`` of contiguous pictures. Shape: (B,) int64."""
    dispatch.expect("a", a_BSSC, torch.uint8, (None, None, None, None))
    dispatch.expect("b", b_BSSC, torch.uint8, tuple(a_BSSC.shape), a_BSSC.device)
    out_B = torch.zeros(len(a_BSSC), dtype=torch.int64, device=a_BSSC.device)
    count = a_BSSC.shape[1:].numel()
    grid = dispatch.grid("a", len(a_BSSC), count, DIFFERENCE_VALUES)
    if grid is not None:
        dispatch.launch(_total, grid, a_BSSC, b_BSSC, out_B, count, LANES=LANES, BLOCK=DIFFERENCE_VALUES)
    return out_B
