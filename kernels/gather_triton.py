"""Standardised rows of a table on a GPU, in Triton: each row is read once, where it lies, and written once."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.kernels import dispatch
from substyle.kernels.errors import ConfigError

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

WIDTH = 512  # features of one program
OUTPUTS = (torch.bfloat16, torch.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _gather(x, row, mean, scale, out, factor, width, SCALED: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (b, j): WIDTH features of row b."""
    place = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = feature < width
    here = tl.load(row + place)
    value = tl.load(x + here * width + feature, mask=inside, other=0).to(tl.float32)
    if SCALED:
        value *= tl.load(factor + here)
    value = (value - tl.load(mean + feature, mask=inside, other=0.0)) * tl.load(scale + feature, mask=inside, other=0.0)
    tl.store(out + place * width + feature, value.to(out.dtype.element_ty), mask=inside)


def gather(
    x_RD: torch.Tensor,
    row_B: torch.Tensor,
    mean_D: torch.Tensor,
    scale_D: torch.Tensor,
    out_BD: torch.Tensor,
    scale_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """``gather.gather``; rows are not looked at before they are read. Shape: (B, D), returned."""
    if out_BD.dtype not in OUTPUTS:
        raise ConfigError("out.dtype", out_BD.dtype, ", ".join(map(str, OUTPUTS)))
    rows, width = x_RD.shape
    where = x_RD.device
    dispatch.expect("table", x_RD, x_RD.dtype, (None, None))
    dispatch.expect("row", row_B, torch.int64, (None,), where)
    for name, values in (("mean", mean_D), ("scale", scale_D)):
        dispatch.expect(name, values, torch.float32, (width,), where)
    dispatch.expect("out", out_BD, out_BD.dtype, (len(row_B), width), where)
    if scale_R is not None:
        dispatch.expect("scale_R", scale_R, torch.float32, (rows,), where)
    if out_BD.numel():
        grid = (len(row_B), -(-width // WIDTH))
        factor = mean_D if scale_R is None else scale_R  # never read where rows have no factor
        dispatch.launch(
            _gather, grid, x_RD, row_B, mean_D, scale_D, out_BD, factor, width, SCALED=scale_R is not None, WIDTH=WIDTH
        )
    return out_BD
