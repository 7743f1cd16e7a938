"""Triton kernel: contracting convolution that normalises as it loads and sums statistics as it stores.

Each program computes mean and sum of squared deviations of its own pixels; they are combined as by Chan, Golub and
LeVeque (1979), which does not subtract large sums, and always in the same order.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.errors import ConfigError
from substyle.kernels import dispatch

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

PIXELS = 128  # of a program's result


@triton.jit
def add(a, b):  # type: ignore[no-untyped-def]
    """For ``tl.reduce``: the interpreter cannot run ``tl.sum`` if Triton was imported for compilation."""
    return a + b


@triton.jit  # type: ignore[untyped-decorator]
def _contract(maps, factors, offsets, kernel, out, tile_means, tile_squares, images, styles, own, height, width, CHANNELS: tl.constexpr, MADE: tl.constexpr, PIXELS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (j, i): PIXELS pixels of image i in one style. Styles run side by side, since they read the same maps.

    ``own`` is 1 if each style has its own maps, 0 if they share them.
    """
    image = tl.program_id(1).to(tl.int64)
    style, tile = tl.program_id(0) % styles, tl.program_id(0) // styles
    pixels = height // 2 * (width // 2)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < pixels)[:, None]
    y, x = pixel // (width // 2) * 2, pixel % (width // 2) * 2
    channel, made = tl.arange(0, CHANNELS), tl.arange(0, MADE)
    result = style * images + image
    source = style * own * images + image
    factor = tl.load(factors + result * CHANNELS + channel)[None, :]
    offset = tl.load(offsets + result * CHANNELS + channel)[None, :]
    corner = maps + source * height * width * CHANNELS + channel[None, :]
    weights = kernel + channel[:, None] * MADE + made[None, :]
    total = tl.full((PIXELS, MADE), 0, tl.float32)
    for tap in tl.static_range(9):
        # an even side is mirrored at its start only
        row, column = tl.abs(y + tap // 3 - 1), tl.abs(x + tap % 3 - 1)
        level = tl.load(corner + ((row * width + column) * CHANNELS)[:, None], mask=inside, other=0.0)
        level = (level.to(tl.float32) * factor + offset).to(maps.dtype.element_ty)
        # two values at once in 16 bits; before Triton 3.9 the maximum is float32
        level = tl.maximum(level, 0.0, propagate_nan=tl.PropagateNan.ALL).to(maps.dtype.element_ty)
        total = tl.dot(level, tl.load(weights + tap * CHANNELS * MADE), total, input_precision="ieee")
    level = total.to(maps.dtype.element_ty)
    tl.store(out + (result * pixels + pixel[:, None]) * MADE + made[None, :], level, mask=inside)
    level = level.to(tl.float32)  # statistics are those of what is stored
    average = tl.reduce(tl.where(inside, level, 0.0), 0, add) / tl.minimum(pixels - tile * PIXELS, PIXELS)
    away = tl.where(inside, level - average[None, :], 0.0)
    at = (result * ((pixels + PIXELS - 1) // PIXELS) + tile) * MADE + made
    tl.store(tile_means + at, average)
    tl.store(tile_squares + at, tl.reduce(away * away, 0, add))


def contract(
    x_XBHWC: torch.Tensor, factor_GBC: torch.Tensor, offset_GBC: torch.Tensor, kernel_TCO: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``contraction.contract`` of contiguous maps; channels are powers of two from 16."""
    shared, batch, height, width, channels = x_XBHWC.shape
    styles, made = len(factor_GBC), kernel_TCO.shape[2]
    device = x_XBHWC.device
    dispatch.expect("factor", factor_GBC, torch.float32, (styles, batch, channels), device)
    dispatch.expect("offset", offset_GBC, torch.float32, (styles, batch, channels), device)
    dispatch.expect("kernel", kernel_TCO, x_XBHWC.dtype, (9, channels, None), device)
    dispatch.expect("x", x_XBHWC, x_XBHWC.dtype, (1 if shared == 1 else styles, batch, None, None, None))
    if height % 2 or width % 2:
        raise ConfigError("x.shape", tuple(x_XBHWC.shape), "an even height and width")
    tall, wide = height // 2, width // 2
    out_GBHWO = x_XBHWC.new_empty(styles, batch, tall, wide, made)
    tiles = -(-tall * wide // PIXELS)
    tile_mean_GBTO, tile_square_GBTO = torch.empty(2, styles, batch, tiles, made, device=device)
    if dispatch.grid("x", batch, height * width * max(channels, made), PIXELS) is not None:
        tensors = x_XBHWC, factor_GBC, offset_GBC, kernel_TCO, out_GBHWO, tile_mean_GBTO, tile_square_GBTO
        sizes = batch, styles, int(shared > 1), height, width
        dispatch.launch(
            _contract, (tiles * styles, batch), *tensors, *sizes, CHANNELS=channels, MADE=made, PIXELS=PIXELS
        )
    count_T1 = torch.full((tiles, 1), float(PIXELS), device=device)
    count_T1[-1] = tall * wide - (tiles - 1) * PIXELS
    mean_GBO = (tile_mean_GBTO * count_T1).sum(2) / (tall * wide)
    between_GBTO = (tile_mean_GBTO - mean_GBO[:, :, None]).square() * count_T1
    return out_GBHWO, mean_GBO, (tile_square_GBTO + between_GBTO).sum(2) / (tall * wide)
