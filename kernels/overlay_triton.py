"""Triton kernel: overlays, in one read and one write of the canvas.

A program computes a run of pixels of one image, all channels. Coordinates on a page differ from the reference by 1 ulp:
one level of coverage, where a value is near a half.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import dispatch
from substyle.kernels.displacement import F32
from substyle.kernels.errors import ConfigError
from substyle.kernels.tables import WEIGHT_SHIFT

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

PIXELS = 512  # per program


@triton.jit  # type: ignore[untyped-decorator]
def mix(at, target, colour, weight, inside, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Blend one channel of a run of pixels towards a level, with integer weights in units of 2 ** -SHIFT."""
    level = tl.load(at, mask=inside, other=0).to(tl.int32)
    mixed = level + (((tl.load(colour) - level) * weight) >> SHIFT)
    tl.store(target, tl.minimum(tl.maximum(mixed, 0), 255).to(tl.uint8), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _overlay(canvas, pages, page, matrix, opacity, colour, out, height, width, side, SHIFT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (j, i): BLOCK pixels of image i; its matrix is six numbers, its colour three."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    area = height * width
    inside = pixel < area
    x, y = (pixel % width).to(tl.float32) + 0.5, (pixel // width).to(tl.float32) + 0.5
    row = matrix + image * 6
    last = (side - 1).to(tl.float32)
    u = tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2) - 0.5
    v = tl.load(row + 3) * x + tl.load(row + 4) * y + tl.load(row + 5) - 0.5
    u, v = tl.minimum(tl.maximum(u, 0.0), last), tl.minimum(tl.maximum(v, 0.0), last)
    # clamp integers, so that not even NaN coordinates read outside the page
    left = tl.minimum(tl.maximum(tl.floor(u).to(tl.int32), 0), side - 1)
    top = tl.minimum(tl.maximum(tl.floor(v).to(tl.int32), 0), side - 1)
    right, bottom = tl.minimum(left + 1, side - 1), tl.minimum(top + 1, side - 1)
    across, down = u - left.to(tl.float32), v - top.to(tl.float32)
    own = pages + tl.load(page + image) * side * side
    a = tl.load(own + top * side + left, mask=inside, other=0).to(tl.float32)
    b = tl.load(own + top * side + right, mask=inside, other=0).to(tl.float32)
    c = tl.load(own + bottom * side + left, mask=inside, other=0).to(tl.float32)
    d = tl.load(own + bottom * side + right, mask=inside, other=0).to(tl.float32)
    upper, lower = a + across * (b - a), c + across * (d - c)
    coverage = tl.floor(upper + down * (lower - upper) + 0.5)
    weight = tl.minimum(tl.maximum(coverage * tl.load(opacity + image) + 0.5, 0.0), 255.0).to(tl.int32)
    at, target = canvas + image * area * 3 + pixel * 3, out + image * area * 3 + pixel * 3
    tint = colour + image * 3
    mix(at, target, tint, weight, inside, SHIFT)
    mix(at + 1, target + 1, tint + 1, weight, inside, SHIFT)
    mix(at + 2, target + 2, tint + 2, weight, inside, SHIFT)


def overlay(
    canvas_BSS3: torch.Tensor,
    pages_NPP: torch.Tensor,
    page_B: NDArray[np.int64],
    matrix_B23: F32,
    colour_B3: NDArray[np.int16],
    opacity_B: F32,
) -> torch.Tensor:
    """``overlay.overlay`` of a contiguous canvas. Shape: (B, S, S, 3) uint8.

    Raises:
        ConfigError: invalid dtype, shape, device or page index.
    """
    dispatch.expect("canvas", canvas_BSS3, torch.uint8, (len(page_B), None, None, 3))
    side, device = pages_NPP.shape[-1], canvas_BSS3.device
    dispatch.expect("pages", pages_NPP, torch.uint8, (None, side, side), device)
    if len(page_B) and not (page_B.min() >= 0 and page_B.max() < len(pages_NPP)):
        raise ConfigError("page", page_B.tolist(), f"0 to {len(pages_NPP) - 1}")
    height, width = canvas_BSS3.shape[1:3]
    out_BSS3 = torch.empty_like(canvas_BSS3)
    grid = dispatch.grid("canvas", len(page_B), height * width * 3, PIXELS * 3)
    if grid is not None:
        given = (page_B, matrix_B23.reshape(-1, 6), opacity_B, colour_B3.reshape(-1, 3).astype(np.int32))
        page, matrix, opacity, colour = (dispatch.upload(values, device) for values in given)
        arguments = (canvas_BSS3, pages_NPP, page, matrix, opacity, colour, out_BSS3, height, width, side)
        dispatch.launch(_overlay, grid, *arguments, SHIFT=WEIGHT_SHIFT, BLOCK=PIXELS)
    return out_BSS3
