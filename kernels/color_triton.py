"""Triton kernels: colour maps, in one read of the canvas for all variants, and sums of levels and of differences.

A thread processes four pixels, twelve bytes in three 32-bit words: a quarter of the loads and stores of single bytes.
The number of pixels of an image must be a multiple of four.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.kernels import dispatch
from substyle.kernels.errors import ConfigError

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

GROUPS, GROUP = 128, 4  # groups of pixels per program, pixels per group
VALUES = 8192  # per program of a sum
LANES = 512  # of those at once


@triton.jit
def byte(word, j):  # type: ignore[no-untyped-def]
    """Byte j of a word, least significant first."""
    return ((word >> (8 * j)) & 0xFF).to(tl.float32)


@triton.jit
def mix(r, g, b, row):  # type: ignore[no-untyped-def]
    """An output channel in [0, 255] from three, by the weights and the constant at ``row``."""
    mixed = tl.load(row) * r + tl.load(row + 1) * g + tl.load(row + 2) * b + tl.load(row + 3)
    return (tl.minimum(tl.maximum(mixed, 0.0), 255.0) + 0.5).to(tl.uint32)


@triton.jit
def pack(a, b, c, d):  # type: ignore[no-untyped-def]
    """Pack four bytes into a word, least significant (first in memory) first."""
    return a | (b << 8) | (c << 16) | (d << 24)


@triton.jit
def put(at, u, v, w, inside):  # type: ignore[no-untyped-def]
    """Write the three words of a group."""
    tl.store(at, u.to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 1, v.to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 2, w.to(tl.int32, bitcast=True), mask=inside)


@triton.jit
def flip(rows, columns, pixel, width, inside):  # type: ignore[no-untyped-def]
    """255 where a pixel is inverted, else 0."""
    row = tl.load(rows + pixel // width, mask=inside, other=0)
    return (row ^ tl.load(columns + pixel % width, mask=inside, other=0)).to(tl.uint32)


@triton.jit  # type: ignore[untyped-decorator]
def _colours(canvas, maps, rows, columns, out, batch, height, width, VARIANTS: tl.constexpr, BANDS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (j, i): BLOCK groups of four pixels of image i in all variants; canvas and out are in words."""
    image = tl.program_id(1).to(tl.int64)
    images = batch.to(tl.int64)
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = height * width // 4 * 3  # of an image
    inside = group * 3 < words
    source = canvas + image * words + group * 3
    u = tl.load(source, mask=inside, other=0).to(tl.uint32, bitcast=True)
    v = tl.load(source + 1, mask=inside, other=0).to(tl.uint32, bitcast=True)
    w = tl.load(source + 2, mask=inside, other=0).to(tl.uint32, bitcast=True)
    r0, g0, b0, r1 = byte(u, 0), byte(u, 1), byte(u, 2), byte(u, 3)
    g1, b1, r2, g2 = byte(v, 0), byte(v, 1), byte(v, 2), byte(v, 3)
    b2, r3, g3, b3 = byte(w, 0), byte(w, 1), byte(w, 2), byte(w, 3)
    for i in range(VARIANTS):
        place = i * images + image
        red, green, blue = maps + place * 12, maps + place * 12 + 4, maps + place * 12 + 8
        new_u = pack(mix(r0, g0, b0, red), mix(r0, g0, b0, green), mix(r0, g0, b0, blue), mix(r1, g1, b1, red))
        new_v = pack(mix(r1, g1, b1, green), mix(r1, g1, b1, blue), mix(r2, g2, b2, red), mix(r2, g2, b2, green))
        new_w = pack(mix(r2, g2, b2, blue), mix(r3, g3, b3, red), mix(r3, g3, b3, green), mix(r3, g3, b3, blue))
        put(out + place * words + group * 3, new_u, new_v, new_w, inside)
    if BANDS:
        rows += image * height
        columns += image * width
        f0 = flip(rows, columns, group * 4, width, inside)
        f1 = flip(rows, columns, group * 4 + 1, width, inside)
        f2 = flip(rows, columns, group * 4 + 2, width, inside)
        f3 = flip(rows, columns, group * 4 + 3, width, inside)
        at = out + (VARIANTS * images + image) * words + group * 3
        put(at, u ^ pack(f0, f0, f0, f1), v ^ pack(f1, f1, f2, f2), w ^ pack(f2, f3, f3, f3), inside)


@triton.jit
def add(a, b):  # type: ignore[no-untyped-def]
    """For ``tl.reduce``: the interpreter cannot run ``tl.sum`` if Triton was imported for compilation."""
    return a + b


@triton.jit  # type: ignore[untyped-decorator]
def _total(canvas, out, count, LANES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): sums BLOCK values of image i. Integers, so the order does not matter."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK + tl.arange(0, LANES)
    sums = tl.full((LANES,), 0, tl.int32)
    for run in tl.static_range(BLOCK // LANES):
        value = first + run * LANES
        sums += tl.load(canvas + image * count + value, mask=value < count, other=0).to(tl.int32)
    tl.atomic_add(out + image, tl.reduce(sums, 0, add).to(tl.int64))


def colours(
    canvas_BSS3: torch.Tensor, maps_VB34: torch.Tensor, bands: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    """``color.colours`` of contiguous tensors. Shape: (V or V + 1, B, S, S, 3) uint8.

    Raises:
        ConfigError: invalid dtype, shape or device, or a number of pixels that is not a multiple of 4.
    """
    dispatch.expect("canvas", canvas_BSS3, torch.uint8, (None, None, None, 3))
    batch, height, width, _ = canvas_BSS3.shape
    device, variants = canvas_BSS3.device, len(maps_VB34)
    dispatch.expect("maps", maps_VB34, torch.float32, (None, batch, 3, 4), device)
    if height * width % GROUP:
        raise ConfigError("canvas.shape", (height, width), "a number of pixels that is a multiple of 4")
    if bands is not None:
        dispatch.expect("rows", bands[0], torch.uint8, (batch, height), device)
        dispatch.expect("columns", bands[1], torch.uint8, (batch, width), device)
    out = torch.empty((variants + (bands is not None), *canvas_BSS3.shape), dtype=torch.uint8, device=device)
    grid = dispatch.grid("canvas", batch, height * width * 3, GROUPS * GROUP * 3)
    if grid is not None and len(out):
        if canvas_BSS3.data_ptr() % 4:  # a view may start at any byte
            canvas_BSS3 = canvas_BSS3.clone()
        words = canvas_BSS3.view(-1).view(torch.int32)
        rows, columns = bands or (canvas_BSS3, canvas_BSS3)  # not read without bands
        constants = {"VARIANTS": variants, "BANDS": bands is not None, "BLOCK": GROUPS}
        into = out.view(-1).view(torch.int32)
        dispatch.launch(_colours, grid, words, maps_VB34, rows, columns, into, batch, height, width, **constants)
    return out


def total(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    """Sum of the levels of each image. Shape: (B,) int64."""
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (None, None, None, None))
    out_B = torch.zeros(len(canvas_BSSC), dtype=torch.int64, device=canvas_BSSC.device)
    count = canvas_BSSC.shape[1:].numel()
    grid = dispatch.grid("canvas", len(canvas_BSSC), count, VALUES)
    if grid is not None:
        dispatch.launch(_total, grid, canvas_BSSC, out_B, count, LANES=LANES, BLOCK=VALUES)
    return out_B


DIFFERENCE_VALUES = 4096  # per program of a sum of differences


@triton.jit  # type: ignore[untyped-decorator]
def _difference_total(a, b, out, count, LANES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): sums BLOCK absolute differences of image i. Integers, so the order does not matter."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK + tl.arange(0, LANES)
    sums = tl.full((LANES,), 0, tl.int32)
    for run in tl.static_range(BLOCK // LANES):
        value = first + run * LANES
        x = tl.load(a + image * count + value, mask=value < count, other=0).to(tl.int32)
        y = tl.load(b + image * count + value, mask=value < count, other=0).to(tl.int32)
        sums += tl.abs(x - y)
    tl.atomic_add(out + image, tl.reduce(sums, 0, add).to(tl.int64))


def difference_total(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """``color.total_reference`` of contiguous images. Shape: (B,) int64."""
    dispatch.expect("a", a_BSSC, torch.uint8, (None, None, None, None))
    dispatch.expect("b", b_BSSC, torch.uint8, tuple(a_BSSC.shape), a_BSSC.device)
    out_B = torch.zeros(len(a_BSSC), dtype=torch.int64, device=a_BSSC.device)
    count = a_BSSC.shape[1:].numel()
    grid = dispatch.grid("a", len(a_BSSC), count, DIFFERENCE_VALUES)
    if grid is not None:
        dispatch.launch(_difference_total, grid, a_BSSC, b_BSSC, out_B, count, LANES=LANES, BLOCK=DIFFERENCE_VALUES)
    return out_B
