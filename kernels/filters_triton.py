"""Triton kernels: correlation of each image with its own kernel, on tensor cores.

One kernel writes planes with mirrored borders in float16, which holds bytes exactly; the other filters them. A row of a
kernel is a banded matrix that takes a run of columns to a run of filtered columns: its products with lines of the
planes are summed over the rows of the kernel, skipping columns that only meet zeros. Weights are rounded to float16,
products are summed in float32, and sums are divided by the sum of the rounded weights, so that flat areas keep their
level. Results differ from the reference by one level where a value is near a half.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import dispatch

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

LINES, COLUMNS, DEPTH = 128, 64, 32  # of a program's result, and columns of the planes per product


@triton.jit
def mirrored(at, last):  # type: ignore[no-untyped-def]
    """Mirror integer coordinates about 0 and ``last`` to [0, last]."""
    return last - tl.abs(last - tl.abs(at) % tl.maximum(2 * last, 1))


@triton.jit  # type: ignore[untyped-decorator]
def _pad(canvas, planes, height, width, channels, tall, wide, above, before, across, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Program (j, i): SIDE columns of SIDE lines of the planes of image i, which begin ``above`` and ``before`` it."""
    image = tl.program_id(1).to(tl.int64)
    line = tl.program_id(0) // across * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(0) % across * SIDE + tl.arange(0, SIDE)
    inside = (line < channels * tall)[:, None]
    y, x = mirrored(line % tall - above, height - 1), mirrored(column - before, width - 1)
    at = (y * width * channels + line // tall)[:, None] + (x * channels)[None, :]
    level = tl.load(canvas + image * height * width * channels + at, mask=inside, other=0)
    at = planes + image * channels * tall * wide + ((line * wide)[:, None] + column[None, :])
    tl.store(at, level.to(tl.float16), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _filter(planes, weights, spans, scales, out, height, width, channels, tall, wide, rows, columns, across, LINES: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (j, i): COLUMNS columns of LINES lines of image i; a line is a row of one channel.

    Row r of a kernel has nonzero weights from ``8 * spans[i, r, 0]`` to before ``spans[i, r, 1]``.
    """
    image = tl.program_id(1).to(tl.int64)
    line = tl.program_id(0) // across * LINES + tl.arange(0, LINES)
    left = tl.program_id(0) % across * COLUMNS
    column, inner = tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    y, channel = line % height, tl.minimum(line // height, channels - 1)
    source = planes + image * channels * tall * wide + ((channel * tall + y) * wide + left)[:, None] + inner[None, :]
    total = tl.full((LINES, COLUMNS), 0, tl.float32)
    for row in range(rows):
        span = spans + (image * rows + row) * 2
        first, end = tl.load(span) * 8, tl.load(span + 1)  # a multiple of 8: lines are read 16 bytes at a time
        own = weights + (image * rows + row) * columns
        for tap in range(first, end + COLUMNS - 1, DEPTH):
            level = tl.load(source + (row * wide + tap))
            at = tap + inner[:, None] - column[None, :]
            weight = tl.load(own + at, mask=(at >= 0) & (at < end), other=0.0)
            total = tl.dot(level, weight, total)
    level = tl.minimum((total * tl.load(scales + image) + 0.5).to(tl.int32), 255)
    x = left + column
    at = ((y * width * channels + channel)[:, None] + (x * channels)[None, :]) + image * height * width * channels
    tl.store(out + at, level.to(tl.uint8), mask=(line < height * channels)[:, None] & (x < width)[None, :])


def filtered(canvas_BSSC: torch.Tensor, kernel_BKL: NDArray[np.float32]) -> torch.Tensor:
    """``filters.filtered`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out."""
    batch, rows, columns = kernel_BKL.shape
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (batch, None, None, None))
    height, width, channels = canvas_BSSC.shape[1:]
    out_BSSC = torch.empty_like(canvas_BSSC)
    across, tall = -(-width // COLUMNS), height + rows - 1
    wide = across * COLUMNS + -(-columns // DEPTH) * DEPTH + DEPTH  # up to the last column that a product reads
    if not out_BSSC.numel() or dispatch.grid("canvas", batch, channels * tall * wide, LINES * COLUMNS) is None:
        return out_BSSC
    weight_BKL = torch.from_numpy(kernel_BKL).half()  # numpy takes ten times as long, and longer for what underflows
    used_BKL = weight_BKL.numpy().view(np.int16) != 0
    end_BK = np.where(used_BKL.any(2), columns - used_BKL[:, :, ::-1].argmax(2), -COLUMNS)
    span_BK2 = np.stack([used_BKL.argmax(2) // 8, end_BK], axis=2)
    scale_B = 1.0 / weight_BKL.float().sum((1, 2))
    weights, spans, scales = (
        dispatch.upload(values, canvas_BSSC.device)
        for values in (weight_BKL.numpy(), span_BK2.astype(np.int32), scale_B.numpy())
    )
    planes = torch.empty(batch, channels, tall, wide, dtype=torch.float16, device=canvas_BSSC.device)
    sizes, tiles = (height, width, channels, tall, wide), wide // DEPTH
    programs = tiles * -(-tall * channels // DEPTH), batch
    dispatch.launch(_pad, programs, canvas_BSSC, planes, *sizes, rows // 2, columns // 2, tiles, SIDE=DEPTH)
    constants = {"LINES": LINES, "COLUMNS": COLUMNS, "DEPTH": DEPTH}
    programs = across * -(-height * channels // LINES), batch
    dispatch.launch(
        _filter, programs, planes, weights, spans, scales, out_BSSC, *sizes, rows, columns, across, **constants
    )
    return out_BSSC
