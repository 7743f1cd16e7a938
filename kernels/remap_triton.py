"""Bilinear sampling with mirrored borders on a GPU, in Triton; the helpers are inlined into the warps as well.

A program makes a run of pixels of one image, all channels. Coordinates are pixels in float32, without the detour over
the units of torch's grid_sample: places differ from the reference's by rounding (some 1e-5 px), pixels by at most one
level, where a value lies on a half.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.kernels import dispatch

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

PIXELS = 256  # of one program


@triton.jit
def mirror(at, last):  # type: ignore[no-untyped-def]
    """Coordinates mirrored about 0 and ``last``, the centres of the edge pixels; a float32 in [0, last]."""
    span = tl.maximum(last, 1.0)
    at = tl.abs(at)
    turns = tl.floor(at / span)
    rest = at - turns * span
    odd = turns - 2.0 * tl.floor(turns * 0.5)
    return tl.minimum(tl.maximum(tl.where(odd > 0.5, span - rest, rest), 0.0), last)


@triton.jit  # type: ignore[untyped-decorator]
def sample(source, target, pixel, inside, x, y, height, width, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the pixels of an image (H, W, C) that lie at (x, y) of another; both are uint8."""
    x = mirror(x, (width - 1).to(tl.float32))
    y = mirror(y, (height - 1).to(tl.float32))
    # cut as whole numbers: no place, not even one that is no number, may be read from outside of the image
    left = tl.minimum(tl.maximum(tl.floor(x).to(tl.int32), 0), width - 1)
    top = tl.minimum(tl.maximum(tl.floor(y).to(tl.int32), 0), height - 1)
    right, bottom = tl.minimum(left + 1, width - 1), tl.minimum(top + 1, height - 1)
    across, down = x - left.to(tl.float32), y - top.to(tl.float32)
    for c in tl.static_range(CHANNELS):
        a = tl.load(source + (top * width + left) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        b = tl.load(source + (top * width + right) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        d = tl.load(source + (bottom * width + left) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        e = tl.load(source + (bottom * width + right) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        upper, lower = a + across * (b - a), d + across * (e - d)
        level = (upper + down * (lower - upper) + 0.5).to(tl.int32)
        tl.store(target + pixel * CHANNELS + c, level.to(tl.uint8), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _remap(canvas, shift, out, height, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK pixels of image i."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    area = height * width
    inside = pixel < area
    dx = tl.load(shift + 2 * image * area + pixel, mask=inside, other=0.0)
    dy = tl.load(shift + (2 * image + 1) * area + pixel, mask=inside, other=0.0)
    x, y = (pixel % width).to(tl.float32) + dx, (pixel // width).to(tl.float32) + dy
    start = image * area * CHANNELS
    sample(canvas + start, out + start, pixel, inside, x, y, height, width, CHANNELS)


def remap(canvas_BSSC: torch.Tensor, shift_B2SS: torch.Tensor) -> torch.Tensor:
    """``remap.remap`` of contiguous tensors. Shape: (B, S, S, C) uint8 in and out, (B, 2, S, S) float32 shifts."""
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (None, None, None, None))
    batch, height, width, channels = canvas_BSSC.shape
    dispatch.expect("shift", shift_B2SS, torch.float32, (batch, 2, height, width), canvas_BSSC.device)
    out_BSSC = torch.empty_like(canvas_BSSC)
    grid = pixel_grid(canvas_BSSC)
    if grid is not None:
        dispatch.launch(_remap, grid, canvas_BSSC, shift_B2SS, out_BSSC, height, width, CHANNELS=channels, BLOCK=PIXELS)
    return out_BSSC


def pixel_grid(canvas_BSSC: torch.Tensor) -> tuple[int, int] | None:
    """The grid of programs of PIXELS pixels each; None for an empty canvas."""
    batch, height, width, channels = canvas_BSSC.shape
    # offsets of channels must fit 32 bits as well as those of pixels
    return dispatch.grid("canvas", batch, height * width * channels, PIXELS * channels)
