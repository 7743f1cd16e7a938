"""Triton kernels: Gaussian, impulse and shot noise, in one read and one write of the canvas.

Random numbers are drawn in registers. Pixels are bit-identical to :mod:`substyle.kernels.noise`: noise comes from the
same tables. Gaussian noise reads half of its table, which is odd (64 KiB per standard deviation, which fits the L1
cache). Shot noise searches, per level, the random numbers at which the noisy level changes (128 bytes per level at a
rate of 25).
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import dispatch, tables
from substyle.kernels.philox import NOISE, U64
from substyle.kernels.philox_triton import BLOCKS, WORDS, device_keys, halves, name_words

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

HALF: Any = tl.constexpr(tables.RANDOM_LEVELS // 2)
F32 = NDArray[np.float32]


@triton.jit(do_not_specialize=WORDS)  # type: ignore[untyped-decorator]
def _gaussian(canvas, out, keys, row, table, count, low, high, stream, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): 8 N values of image i; its noise is row row[i] of the table (R, 32768) of positive noise."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * N
    value = first * 8 + tl.arange(0, 8 * N)
    inside = value < count
    bits = halves(tl.load(keys + image), low, high, stream, first + tl.arange(0, N), N)
    own = table + tl.load(row + image) * HALF
    positive = bits >= HALF
    added = tl.load(own + tl.where(positive, bits - HALF, HALF - 1 - bits)).to(tl.int32)
    pixel = tl.load(canvas + image * count + value, mask=inside, other=0).to(tl.int32)
    noisy = pixel + tl.where(positive, added, -added)
    tl.store(out + image * count + value, tl.minimum(tl.maximum(noisy, 0), 255).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=WORDS)  # type: ignore[untyped-decorator]
def _impulse(canvas, out, keys, threshold, count, low, high, stream, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): 8 N values of image i."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * N
    value = first * 8 + tl.arange(0, 8 * N)
    inside = value < count
    bits = halves(tl.load(keys + image), low, high, stream, first + tl.arange(0, N), N)
    pepper = tl.load(threshold + image)
    pixel = tl.load(canvas + image * count + value, mask=inside, other=0).to(tl.int32)
    pixel = tl.where(bits < pepper, 0, pixel)
    pixel = tl.where(bits >= 2 * HALF - pepper, 255, pixel)
    tl.store(out + image * count + value, pixel.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=WORDS)  # type: ignore[untyped-decorator]
def _shot(canvas, out, keys, row, rises, levels, count, low, high, stream, STEPS: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Program (j, i): 8 N values of image i; photon counts are found by binary search in 2 ** STEPS - 1 rises."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * N
    value = first * 8 + tl.arange(0, 8 * N)
    inside = value < count
    bits = halves(tl.load(keys + image), low, high, stream, first + tl.arange(0, N), N)
    rate = tl.load(row + image)
    pixel = tl.load(canvas + image * count + value, mask=inside, other=0).to(tl.int32)
    own = rises + ((rate * 256 + pixel) << STEPS)
    photons = tl.full((8 * N,), 0, tl.int32)
    for step in tl.static_range(STEPS):
        lower = photons + ((1 << (STEPS - 1 - step)) - 1)
        photons = tl.where(bits >= tl.load(own + lower), lower + 1, photons)
    noisy = tl.load(levels + (rate << STEPS) + photons)
    tl.store(out + image * count + value, noisy, mask=inside)


def gaussian_noise(canvas_BSSC: torch.Tensor, std_B: F32, keys_B: U64, name: str) -> torch.Tensor:
    """``noise.gaussian_noise`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out."""
    stds, row_B = _rows(std_B)
    row = dispatch.upload(row_B, canvas_BSSC.device)
    return _launch(_gaussian, canvas_BSSC, keys_B, name, (row, gaussian_tables(stds, canvas_BSSC.device)))


def impulse_noise(canvas_BSSC: torch.Tensor, amount_B: F32, keys_B: U64, name: str) -> torch.Tensor:
    """``noise.impulse_noise`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out."""
    threshold_B = np.array([tables.impulse_threshold(float(amount)) for amount in amount_B], np.int32)
    return _launch(_impulse, canvas_BSSC, keys_B, name, (dispatch.upload(threshold_B, canvas_BSSC.device),))


def shot_noise(canvas_BSSC: torch.Tensor, rate_B: F32, keys_B: U64, name: str) -> torch.Tensor:
    """``noise.shot_noise`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out."""
    rates, row_B = _rows(rate_B)
    row = dispatch.upload(row_B, canvas_BSSC.device)
    rises, levels = shot_tables(rates, canvas_BSSC.device)
    steps = levels.shape[-1].bit_length() - 1
    return _launch(_shot, canvas_BSSC, keys_B, name, (row, rises, levels), STEPS=steps)


@lru_cache(maxsize=16)
def gaussian_tables(stds: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """The upper half of ``tables.gaussian_table``; the lower is its mirrored negative. Shape: (R, 32768) int16."""
    upper = [tables.gaussian_table(std)[tables.RANDOM_LEVELS // 2 :] for std in stds]
    return torch.from_numpy(np.stack(upper) if upper else np.zeros((0, tables.RANDOM_LEVELS // 2), np.int16)).to(device)


@lru_cache(maxsize=16)
def shot_tables(rates: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``tables.shot_table`` of each rate as steps.

    Returns:
        rises (R, 256, P) int32: the random number at which the noisy level rises from the p-th to the next, per level
        of the canvas; and the distinct noisy levels (R, P) uint8. P is a power of two, for binary search.
    """
    rows = [tables.shot_table(rate) for rate in rates]
    distinct = [np.unique(table) for table in rows]
    length = 1 << max((len(noisy) - 1 for noisy in distinct), default=0).bit_length()
    rises = np.full((len(rates), 256, length), tables.RANDOM_LEVELS, np.int32)  # never reached
    levels = np.zeros((len(rates), length), np.uint8)
    for r, (table, noisy) in enumerate(zip(rows, distinct, strict=True)):
        levels[r, : len(noisy)] = noisy
        for level in range(256):  # the table is monotonic in the random number
            rises[r, level, : len(noisy) - 1] = np.searchsorted(table[level], noisy[:-1], side="right")
    return torch.from_numpy(rises).to(device), torch.from_numpy(levels).to(device)


def _rows(strength_B: F32) -> tuple[tuple[float, ...], NDArray[np.int32]]:
    """The distinct strengths, and the index of each image's."""
    different, row_B = np.unique(strength_B, return_inverse=True)
    return tuple(float(s) for s in different), row_B.astype(np.int32).reshape(-1)


def _launch(
    kernel: Any,  # noqa: ANN401 - Triton has no types
    canvas_BSSC: torch.Tensor,
    keys_B: U64,
    name: str,
    rows: tuple[torch.Tensor, ...],
    **constants: int,
) -> torch.Tensor:
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (len(keys_B), None, None, None))
    dispatch.expect("strength", rows[0], torch.int32, (len(keys_B),), canvas_BSSC.device)
    out_BSSC = torch.empty_like(canvas_BSSC)
    count = canvas_BSSC.shape[1:].numel()
    grid = dispatch.grid("canvas", len(keys_B), count, 8 * BLOCKS)
    if grid is not None:
        keys = device_keys(keys_B, canvas_BSSC.device)
        dispatch.launch(
            kernel, grid, canvas_BSSC, out_BSSC, keys, *rows, count, *name_words(name), NOISE, N=BLOCKS, **constants
        )
    return out_BSSC
