"""Zoom blur on a GPU, in Triton: one pass for each of its four stages, with the sum so far in float32 between them.

A stage adds to every pixel of the sum the sum itself at the place of its enlargement: five values read from cache. As
products of dense matrices the same stage would take 2 S multiplications for each value instead of 3.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from substyle.kernels import dispatch
from substyle.kernels.remap_triton import PIXELS, pixel_grid
from substyle.kernels.tables import STAGES

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

from substyle.kernels.displacement import F32


@triton.jit
def place(at, side, shrink):  # type: ignore[no-untyped-def]
    """Where an enlargement by ``1 / shrink`` about the middle looks: the lower pixel and the share of the next."""
    middle = side.to(tl.float32) * 0.5
    last = (side - 1).to(tl.float32)
    where = (at.to(tl.float32) + 0.5 - middle) * shrink + middle - 0.5
    where = tl.minimum(tl.maximum(where, 0.0), last)
    low = tl.minimum(tl.maximum(tl.floor(where).to(tl.int32), 0), tl.maximum(side - 2, 0))
    return low, where - low.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _stage(total, shrinks, out, side, scale, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK pixels of image i. A sum goes out as it is, a picture (uint8) scaled and rounded."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < side * side
    shrink = tl.load(shrinks + image)
    left, across = place(pixel % side, side, shrink)
    top, down = place(pixel // side, side, shrink)
    right, bottom = tl.minimum(left + 1, side - 1), tl.minimum(top + 1, side - 1)
    start = image * side * side * CHANNELS
    own = total + start
    for c in tl.static_range(CHANNELS):
        here = tl.load(own + pixel * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        a = tl.load(own + (top * side + left) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        b = tl.load(own + (top * side + right) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        d = tl.load(own + (bottom * side + left) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        e = tl.load(own + (bottom * side + right) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
        upper, lower = a + across * (b - a), d + across * (e - d)
        added = here + (upper + down * (lower - upper))
        if out.dtype.element_ty == tl.uint8:
            level = (added * scale + 0.5).to(tl.int32)
            tl.store(out + start + pixel * CHANNELS + c, level.to(tl.uint8), mask=inside)
        else:
            tl.store(out + start + pixel * CHANNELS + c, added, mask=inside)


def zoom_blur(canvas_BSSC: torch.Tensor, zoom_B: F32) -> torch.Tensor:
    """``zoom.zoom_blur`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out.

    At most one level from the reference, where a value lies on a half: places are float32 here.
    """
    side, channels = canvas_BSSC.shape[1], canvas_BSSC.shape[3]
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (len(zoom_B), side, side, None))
    grid = pixel_grid(canvas_BSSC)
    if grid is None:
        return torch.empty_like(canvas_BSSC)
    powers = 2.0 ** np.arange(STAGES) / (2**STAGES - 1)
    shrinks_TB = (zoom_B.astype(np.float64) ** -powers[:, None]).astype(np.float32)
    shrinks = dispatch.upload(shrinks_TB, canvas_BSSC.device)
    total = canvas_BSSC
    for stage in range(STAGES):
        dtype = torch.uint8 if stage == STAGES - 1 else torch.float32
        added = torch.empty_like(total, dtype=dtype)
        dispatch.launch(
            _stage, grid, total, shrinks[stage], added, side, 1.0 / 2**STAGES, CHANNELS=channels, BLOCK=PIXELS
        )
        total = added
    return total
