"""Triton kernels: remap, swirl, grid and elastic.

Warps compute coordinates where they sample; swirl and grid only read the canvas and write the result. Elastic computes
its random numbers (uint16) and their blur along rows (float32) in two separate passes, because 15 x 15 pixels share
every number. Swirl, grid and elastic require square canvases. Coordinates differ from those of
:mod:`substyle.kernels.displacement` by less than 1e-3 px: sine and cosine are libdevice's (2 ulp), exponential and
square root the hardware's (relative error 2 ** -22).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import torch

from substyle.kernels import dispatch, displacement
from substyle.kernels.displacement import F32
from substyle.kernels.philox import U64
from substyle.kernels.philox_triton import bits16

# Sampling is bilinear with mirrored borders. A program computes a run of pixels of one image, all channels. Coordinates
# are float32 pixels, not the units of torch's grid_sample: they differ from the reference by rounding (about 1e-5 px),
# pixels by at most one level, where a value is near a half.

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

PIXELS = 256  # per program


@triton.jit
def mirror(at, last):  # type: ignore[no-untyped-def]
    """Mirror float32 coordinates about 0 and ``last``, the centres of the edge pixels, to [0, last]."""
    span = tl.maximum(last, 1.0)
    at = tl.abs(at)
    turns = tl.floor(at / span)
    rest = at - turns * span
    odd = turns - 2.0 * tl.floor(turns * 0.5)
    return tl.minimum(tl.maximum(tl.where(odd > 0.5, span - rest, rest), 0.0), last)


@triton.jit  # type: ignore[untyped-decorator]
def sample(source, target, pixel, inside, x, y, height, width, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the pixels of an image (H, W, C) sampled at (x, y) of another; both are uint8."""
    x = mirror(x, (width - 1).to(tl.float32))
    y = mirror(y, (height - 1).to(tl.float32))
    # clamp integers, so that not even NaN coordinates read outside the image
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
    """``warp.remap`` of contiguous tensors. Shape: (B, S, S, C) uint8 in and out, (B, 2, S, S) float32 shifts."""
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
    # offsets of channels must fit 32 bits, too
    return dispatch.grid("canvas", batch, height * width * channels, PIXELS * channels)


@triton.jit  # type: ignore[untyped-decorator]
def _swirl(canvas, swirls, out, side, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK pixels of image i; swirls[i] is (centre x, centre y, decay, strength)."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < side * side
    own = swirls + image * 4
    centre_x, centre_y = tl.load(own), tl.load(own + 1)
    dx, dy = (pixel % side).to(tl.float32) - centre_x, (pixel // side).to(tl.float32) - centre_y
    angle = tl.load(own + 3) * tl.exp(tl.load(own + 2) * tl.sqrt(dx * dx + dy * dy))
    cos, sin = tl.cos(angle), tl.sin(angle)
    x, y = centre_x + (dx * cos - dy * sin), centre_y + (dx * sin + dy * cos)
    start = image * side * side * CHANNELS
    sample(canvas + start, out + start, pixel, inside, x, y, side, side, CHANNELS)


@triton.jit  # type: ignore[untyped-decorator]
def _grid(canvas, nodes, out, side, count, pitch, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK pixels of image i, moved by its nodes (2, K, K), which are ``1 / pitch`` pixels apart."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < side * side
    x, y = (pixel % side).to(tl.float32), (pixel // side).to(tl.float32)
    left = tl.minimum(tl.floor(x * pitch).to(tl.int32), tl.maximum(count - 2, 0))
    top = tl.minimum(tl.floor(y * pitch).to(tl.int32), tl.maximum(count - 2, 0))
    right, bottom = tl.minimum(left + 1, count - 1), tl.minimum(top + 1, count - 1)
    across, down = x * pitch - left.to(tl.float32), y * pitch - top.to(tl.float32)
    moved_x, moved_y = x, y
    for axis in tl.static_range(2):
        own = nodes + (2 * image + axis) * count * count
        a = tl.load(own + top * count + left, mask=inside, other=0.0)
        b = tl.load(own + top * count + right, mask=inside, other=0.0)
        d = tl.load(own + bottom * count + left, mask=inside, other=0.0)
        e = tl.load(own + bottom * count + right, mask=inside, other=0.0)
        upper, lower = a + across * (b - a), d + across * (e - d)
        shift = upper + down * (lower - upper)
        if axis == 0:
            moved_x = x + shift
        else:
            moved_y = y + shift
    start = image * side * side * CHANNELS
    sample(canvas + start, out + start, pixel, inside, moved_x, moved_y, side, side, CHANNELS)


@triton.jit  # type: ignore[untyped-decorator]
def _blur_rows(bits, weights, out, side, RADIUS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK values of the two planes of image i, blurred along rows with mirrored borders."""
    image = tl.program_id(1).to(tl.int64)
    value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = value < 2 * side * side
    column = value % side
    row = bits + 2 * image * side * side + (value - column)
    last = side - 1
    total = tl.full((BLOCK,), 0, tl.float32)
    for tap in tl.static_range(2 * RADIUS + 1):
        at = last - tl.abs(last - tl.abs(column + (tap - RADIUS)))
        total += tl.load(weights + tap) * tl.load(row + at, mask=inside, other=0).to(tl.float32)
    tl.store(out + 2 * image * side * side + value, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _elastic(canvas, half, weights, amplitude, out, side, RADIUS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (j, i): BLOCK pixels of image i, moved by its planes after a blur along columns."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    area = side * side
    inside = pixel < area
    column, row = pixel % side, pixel // side
    own = half + 2 * image * area + column
    last = side - 1
    dx = tl.full((BLOCK,), 0, tl.float32)
    dy = tl.full((BLOCK,), 0, tl.float32)
    for tap in tl.static_range(2 * RADIUS + 1):
        at = last - tl.abs(last - tl.abs(row + (tap - RADIUS)))
        weight = tl.load(weights + tap)
        dx += weight * tl.load(own + at * side, mask=inside, other=0.0)
        dy += weight * tl.load(own + area + at * side, mask=inside, other=0.0)
    # integer q represents (2 q + 1) / 65536 - 1; as the weights sum to 1, the blur may come first
    reach = tl.load(amplitude + image)
    x = column.to(tl.float32) + reach * (dx * (2.0 / 65536) + (1.0 / 65536 - 1.0))
    y = row.to(tl.float32) + reach * (dy * (2.0 / 65536) + (1.0 / 65536 - 1.0))
    start = image * area * CHANNELS
    sample(canvas + start, out + start, pixel, inside, x, y, side, side, CHANNELS)


def swirl(canvas_BSSC: torch.Tensor, centre_B2: F32, radius_B: F32, strength_B: F32) -> torch.Tensor:
    """``warp.swirl`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out."""
    side = _side(canvas_BSSC, len(centre_B2))
    decay_B = -5.0 / (math.log(2.0) * radius_B.astype(np.float64))
    swirls_B4 = np.concatenate([centre_B2, decay_B[:, None], strength_B[:, None]], axis=1).astype(np.float32)
    out_BSSC = torch.empty_like(canvas_BSSC)
    programs = pixel_grid(canvas_BSSC)
    if programs is not None:
        swirls = dispatch.upload(swirls_B4, canvas_BSSC.device)
        dispatch.launch(
            _swirl, programs, canvas_BSSC, swirls, out_BSSC, side, CHANNELS=canvas_BSSC.shape[3], BLOCK=PIXELS
        )
    return out_BSSC


def grid(canvas_BSSC: torch.Tensor, nodes_B2KK: torch.Tensor) -> torch.Tensor:
    """``warp.grid`` of contiguous tensors. Shape: (B, S, S, C) uint8 in and out, (B, 2, K, K) float32 nodes."""
    side = _side(canvas_BSSC, len(nodes_B2KK))
    count = nodes_B2KK.shape[-1]
    dispatch.expect("nodes", nodes_B2KK, torch.float32, (len(canvas_BSSC), 2, count, count), canvas_BSSC.device)
    out_BSSC = torch.empty_like(canvas_BSSC)
    programs = pixel_grid(canvas_BSSC)
    if programs is not None:
        pitch = (count - 1) / max(side - 1, 1)
        constants = {"CHANNELS": canvas_BSSC.shape[3], "BLOCK": PIXELS}
        dispatch.launch(_grid, programs, canvas_BSSC, nodes_B2KK, out_BSSC, side, count, float(pitch), **constants)
    return out_BSSC


def elastic(canvas_BSSC: torch.Tensor, keys_B: U64, name: str, amplitude_B: F32, sigma: float) -> torch.Tensor:
    """``warp.elastic`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out; S must exceed the blur radius."""
    side, device = _side(canvas_BSSC, len(keys_B)), canvas_BSSC.device
    out_BSSC = torch.empty_like(canvas_BSSC)
    programs = pixel_grid(canvas_BSSC)
    rows = dispatch.grid("field", len(keys_B), 2 * side * side, PIXELS)
    if programs is None or rows is None:
        return out_BSSC
    weights = dispatch.upload(displacement.blur_weights(sigma), device)
    radius = len(weights) // 2
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (len(amplitude_B), side, side, None))
    bits = bits16(keys_B, name, 2 * side * side, device, dtype=torch.uint16)
    half = torch.empty(bits.shape, dtype=torch.float32, device=device)
    dispatch.launch(_blur_rows, rows, bits, weights, half, side, RADIUS=radius, BLOCK=PIXELS)
    amplitude = dispatch.upload(amplitude_B.astype(np.float32), device)
    constants = {"RADIUS": radius, "CHANNELS": canvas_BSSC.shape[3], "BLOCK": PIXELS}
    dispatch.launch(_elastic, programs, canvas_BSSC, half, weights, amplitude, out_BSSC, side, **constants)
    return out_BSSC


def _side(canvas_BSSC: torch.Tensor, batch: int) -> int:
    side = canvas_BSSC.shape[1]
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (batch, side, side, None))
    return side


# Zoom blur takes one pass per stage, with the sum in float32 between them. A stage adds to every pixel of the sum the
# sum at its enlarged coordinates: five reads from cache and 3 multiplications per value, against 2 S as dense matrices.
