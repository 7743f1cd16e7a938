"""Triton kernels: JPEG compression artefacts, in one read and one write of the canvas.

One kernel converts colours, averages chroma and codes blocks of 8 x 8; the other upsamples chroma and converts back.
Between them, the decoded planes are in memory: luma, then both of chroma, in whole blocks of 64 consecutive bytes. All
arithmetic is in int32: a coefficient is at most 1024 + 127, so sums of the inverse transform are below 2 ** 31.
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

BLOCKS = 16  # per program: a line of a block per thread
PIXELS = 256  # per program


@triton.jit  # type: ignore[untyped-decorator]
def cut(x, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns 0 to 7 of (COUNT, 8, 8)."""
    even, odd = tl.split(tl.reshape(x, (COUNT, 8, 4, 2)))
    a, c = tl.split(tl.reshape(even, (COUNT, 8, 2, 2)))
    b, d = tl.split(tl.reshape(odd, (COUNT, 8, 2, 2)))
    x0, x4 = tl.split(a)
    x1, x5 = tl.split(b)
    x2, x6 = tl.split(c)
    x3, x7 = tl.split(d)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit  # type: ignore[untyped-decorator]
def joined(x0, x1, x2, x3, x4, x5, x6, x7, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """(COUNT, 8, 8) of eight columns."""
    even = tl.join(tl.join(x0, x4), tl.join(x2, x6))
    odd = tl.join(tl.join(x1, x5), tl.join(x3, x7))
    return tl.reshape(tl.join(even, odd), (COUNT, 8, 8))


@triton.jit  # type: ignore[untyped-decorator]
def forward(x, SHIFT: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """``jfdctint`` of every line of (COUNT, 8, 8), divided by ``2 ** SHIFT``."""
    x0, x1, x2, x3, x4, x5, x6, x7 = cut(x, COUNT)
    a, b, c, d = x0 + x7, x1 + x6, x2 + x5, x3 + x4
    e, f, g, h = x0 - x7, x1 - x6, x2 - x5, x3 - x4
    HALF: tl.constexpr = 1 << (SHIFT - 1)
    return joined(
        (((a + d) + (b + c)) * 8192 + HALF) >> SHIFT,
        (11363 * e + 9633 * f + 6437 * g + 2260 * h + HALF) >> SHIFT,
        (10703 * (a - d) + 4433 * (b - c) + HALF) >> SHIFT,
        (9633 * e - 2259 * f - 11362 * g - 6436 * h + HALF) >> SHIFT,
        (((a + d) - (b + c)) * 8192 + HALF) >> SHIFT,
        (6437 * e - 11362 * f + 2261 * g + 9633 * h + HALF) >> SHIFT,
        (4433 * (a - d) - 10704 * (b - c) + HALF) >> SHIFT,
        (2260 * e - 6436 * f + 9633 * g - 11363 * h + HALF) >> SHIFT,
        COUNT,
    )


@triton.jit  # type: ignore[untyped-decorator]
def inverse(x, SHIFT: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """``jidctint`` of every line of (COUNT, 8, 8), divided by ``2 ** SHIFT``."""
    x0, x1, x2, x3, x4, x5, x6, x7 = cut(x, COUNT)
    HALF: tl.constexpr = 1 << (SHIFT - 1)
    added, less = (x0 + x4) * 8192 + HALF, (x0 - x4) * 8192 + HALF
    outer, inner = 10703 * x2 + 4433 * x6, 4433 * x2 - 10704 * x6
    a, b, c, d = added + outer, less + inner, less - inner, added - outer
    e = 11363 * x1 + 9633 * x3 + 6437 * x5 + 2260 * x7
    f = 9633 * x1 - 2259 * x3 - 11362 * x5 - 6436 * x7
    g = 6437 * x1 - 11362 * x3 + 2261 * x5 + 9633 * x7
    h = 2260 * x1 - 6436 * x3 + 9633 * x5 - 11363 * x7
    return joined(
        (a + e) >> SHIFT, (b + f) >> SHIFT, (c + g) >> SHIFT, (d + h) >> SHIFT,
        (d - h) >> SHIFT, (c - g) >> SHIFT, (b - f) >> SHIFT, (a - e) >> SHIFT, COUNT,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _code(canvas, quantisers, planes, height, width, luma, chroma, luma_programs, chroma_programs, HALVED: tl.constexpr, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (j, i): BLOCKS blocks of a plane of image i.

    ``luma`` and ``chroma`` are the numbers of blocks of a plane. Planes are in order: luma, blueness, redness.
    """
    image = tl.program_id(1).to(tl.int64)
    program = tl.program_id(0)
    plane = (program >= luma_programs).to(tl.int32) + (program >= luma_programs + chroma_programs).to(tl.int32)
    is_luma = plane == 0
    shift = tl.where(is_luma, 0, HALVED)  # a value is the average of 2 ** shift pixels along both axes
    before = tl.where(is_luma, 0, luma_programs + (plane - 1) * chroma_programs)
    block = (program - before) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < tl.where(is_luma, luma, chroma)
    block = tl.where(inside, block, 0)
    inner = tl.arange(0, 8)
    columns = (((width + shift) >> shift) + 7) >> 3  # blocks in a row
    last = ((height + shift) >> shift) - 1
    # as in libjpeg, columns are padded before averaging and lines after it
    y = tl.minimum((block // columns << 3)[:, None] + inner[None, :], last)[:, :, None] << shift
    x = ((block % columns << 3)[:, None] + inner[None, :])[:, None, :] << shift
    # 16 fractional bits; a half of chroma is rounded down, so that its maximum is 255
    red = tl.where(is_luma, 19595, tl.where(plane == 1, -11059, 32768))
    green = tl.where(is_luma, 38470, tl.where(plane == 1, -21709, -27439))
    blue = tl.where(is_luma, 7471, tl.where(plane == 1, 32768, -5329))
    offset = tl.where(is_luma, 32768, (128 << 16) + 32767)
    source = canvas + image * height * width * 3
    level = tl.full((BLOCKS, 8, 8), 0, tl.int32)
    for down in range(1 << shift):
        for right in range(1 << shift):
            at = source + (tl.minimum(y + down, height - 1) * width + tl.minimum(x + right, width - 1)) * 3
            r, g, b = tl.load(at).to(tl.int32), tl.load(at + 1).to(tl.int32), tl.load(at + 2).to(tl.int32)
            level += (red * r + green * g + blue * b + offset) >> 16
    # halves of an average are rounded down and up alternately along a line
    level = tl.where(shift == 0, level, (level + 1 + (inner & 1)[None, None, :]) >> 2) - 128
    # coefficients are transposed, and eight times too large
    level = forward(tl.permute(forward(level, 11, BLOCKS), (0, 2, 1)), 15, BLOCKS)
    table = quantisers + (image * 2 + tl.where(is_luma, 0, 1)) * 64 + inner[:, None] + (inner << 3)[None, :]
    quantiser = tl.load(table)[None, :, :]
    whole = (tl.abs(level) + (quantiser << 2)) // (quantiser << 3) * quantiser
    level = tl.where(level < 0, -whole, whole)
    level = inverse(tl.permute(inverse(level, 11, BLOCKS), (0, 2, 1)), 18, BLOCKS)
    level = tl.minimum(tl.maximum(level + 128, 0), 255)
    first = image * (luma + 2 * chroma) + tl.where(is_luma, 0, luma + (plane - 1) * chroma)
    at = planes + first * 64 + ((block << 6)[:, None] + (inner << 3)[None, :])[:, :, None] + inner[None, None, :]
    tl.store(at, level.to(tl.uint8), mask=inside[:, None, None])


@triton.jit
def place(y, x, columns):  # type: ignore[no-untyped-def]
    """Offset of a value in a plane that has so many blocks in a row."""
    return ((y >> 3) * columns + (x >> 3) << 6) + ((y & 7) << 3) + (x & 7)


@triton.jit
def smooth(plane, a, b, c, d, bias):  # type: ignore[no-untyped-def]
    """Chroma less 128 of a pixel, from the nearest four values of a plane: 9, 3, 3 and 1 sixteenths.

    Of four equal values, it is this value.
    """
    near, far = tl.load(plane + a).to(tl.int32), tl.load(plane + d).to(tl.int32)
    between = tl.load(plane + b).to(tl.int32) + tl.load(plane + c).to(tl.int32)
    return ((9 * near + 3 * between + far + bias) >> 4) - 128


@triton.jit
def put(at, level, inside):  # type: ignore[no-untyped-def]
    """Write levels, clipped to bytes."""
    tl.store(at, tl.minimum(tl.maximum(level, 0), 255).to(tl.uint8), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _upsample(planes, out, height, width, luma, chroma, HALVED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK pixels of image i."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    pixel = tl.where(inside, pixel, 0)
    y, x = pixel // width, pixel % width
    bottom, right = (height - 1) >> HALVED, (width - 1) >> HALVED  # last line and column of chroma
    step = tl.where(right >= 2, HALVED, 0)  # libjpeg repeats chroma of one or two columns
    v, h = y >> HALVED, x >> HALVED
    next_v = tl.minimum(tl.maximum(v + (2 * (y & 1) - 1) * step, 0), bottom)
    next_h = tl.minimum(tl.maximum(h + (2 * (x & 1) - 1) * step, 0), right)
    source = planes + image * (luma + 2 * chroma) * 64
    level = tl.load(source + place(y, x, (width + 7) >> 3)).to(tl.int32)
    columns = (right + 8) >> 3
    a, b = place(v, h, columns), place(v, next_h, columns)
    c, d = place(next_v, h, columns), place(next_v, next_h, columns)
    blueness = smooth(source + luma * 64, a, b, c, d, 8 - (x & 1))
    redness = smooth(source + (luma + chroma) * 64, a, b, c, d, 8 - (x & 1))
    at = out + image * height * width * 3 + pixel * 3
    put(at, level + ((91881 * redness + 32768) >> 16), inside)
    put(at + 1, level + ((32768 - 22554 * blueness - 46802 * redness) >> 16), inside)
    put(at + 2, level + ((116130 * blueness + 32768) >> 16), inside)


def compressed(canvas_BSS3: torch.Tensor, table_B288: NDArray[np.int32], *, whole_chroma: bool = False) -> torch.Tensor:
    """``jpeg_codec.compressed`` of a contiguous canvas. Shape: (B, S, S, 3) uint8 in and out.

    Args:
        table_B288: (B, 2, 8, 8) quantisation tables of luma and chroma.
        whole_chroma: 4:4:4 in place of 4:2:0.
    """
    dispatch.expect("canvas", canvas_BSS3, torch.uint8, (len(table_B288), None, None, 3))
    batch, height, width, _ = canvas_BSS3.shape
    out_BSS3 = torch.empty_like(canvas_BSS3)
    grid = dispatch.grid("canvas", batch, height * width * 3, PIXELS * 3)
    if grid is not None:
        halved = 0 if whole_chroma else 1
        luma, chroma = (-(-height // side) * -(-width // side) for side in (8, 8 << halved))
        planes = torch.empty(batch * (luma + 2 * chroma) * 64, dtype=torch.uint8, device=canvas_BSS3.device)
        quantisers = dispatch.upload(table_B288, canvas_BSS3.device)
        sizes, each = (height, width, luma, chroma), (-(-luma // BLOCKS), -(-chroma // BLOCKS))
        programs = each[0] + 2 * each[1], batch
        dispatch.launch(_code, programs, canvas_BSS3, quantisers, planes, *sizes, *each, HALVED=halved, BLOCKS=BLOCKS)
        dispatch.launch(_upsample, grid, planes, out_BSS3, *sizes, HALVED=halved, BLOCK=PIXELS)
    return out_BSS3
