"""Gaussian, impulse and shot noise, keyed per image: a 16-bit random number per pixel and channel, then a table.

The random number q represents the quantile (q + 0.5) / 65536: distributions are exact to 2**-16 in probability, and
Gaussian noise is truncated at 4.3 standard deviations. Operations run in numpy with a thread per image on a CPU, in
Triton on a GPU if installed, else in plain torch (the ``*_reference`` functions), with identical pixels. Noise per
pixel and channel, and its strengths, follow ImageNet-C (Hendrycks and Dietterich, 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import philox
from substyle.kernels.dispatch import for_each_image, on_triton, scratch
from substyle.kernels.tables import RANDOM_LEVELS, U8, gaussian_table, impulse_threshold, normal_quantiles, shot_table

_LOWER = 5  # bits of a random number that rarely affect shot noise
U16 = NDArray[np.uint16]
F32 = NDArray[np.float32]
Work = Callable[[U8, U16, float, U8], None]


@lru_cache(maxsize=8)
def _shot_start(rate: float) -> U16:
    """:func:`shot_table` by the upper 11 bits of the random number, 256 where the lower 5 matter. Shape: (256, 2048).

    Fits a core's cache, unlike the whole table, and covers 98 % of values.
    """
    first, last = (shot_table(rate)[:, at :: 1 << _LOWER] for at in (0, (1 << _LOWER) - 1))
    return np.where(first == last, first, np.uint16(256))  # the table is monotonic in the random number


def bits16(keys_B: philox.U64, name: str, count: int, device: torch.device) -> torch.Tensor:
    """``philox.bits16_torch``, in Triton if installed. Shape: (B, count) int32 in [0, 65536)."""
    if on_triton(torch.empty(0, device=device)):
        from substyle.kernels import philox_triton

        return philox_triton.bits16(keys_B, name, count, device)
    return philox.bits16_torch(keys_B, name, count, device)


def gaussian_noise(canvas_BSSC: torch.Tensor, std_B: F32, keys_B: philox.U64, name: str) -> torch.Tensor:
    """Add Gaussian noise, round and clip. Shape: (B, S, S, C) uint8 in and out.

    Args:
        std_B: standard deviation of each image's noise, in units of full range.
        keys_B: Philox keys of the images.
        name: name of the transformation, for the random numbers.
    """

    def work(pixels: U8, bits: U16, strength: float, out: U8) -> None:
        noisy = scratch("noise.noisy", bits.shape, np.int16)
        np.take(gaussian_table(strength), bits, mode="wrap", out=noisy)
        np.add(noisy, pixels, out=noisy)
        np.clip(noisy, 0, 255, out=noisy)
        out[...] = noisy

    if canvas_BSSC.device.type == "cpu":
        return _image_by_image(work, canvas_BSSC, std_B, keys_B, name)
    if on_triton(canvas_BSSC):
        from substyle.kernels import noise_triton

        return noise_triton.gaussian_noise(canvas_BSSC.contiguous(), std_B, keys_B, name)
    return gaussian_noise_reference(canvas_BSSC, std_B, keys_B, name)


def gaussian_noise_reference(canvas_BSSC: torch.Tensor, std_B: F32, keys_B: philox.U64, name: str) -> torch.Tensor:
    """:func:`gaussian_noise` in plain torch."""
    bits_BSSC = _bits_like(canvas_BSSC, keys_B, name)
    quantiles = torch.from_numpy(normal_quantiles()).to(canvas_BSSC.device)
    scale_B111 = _per_image(255.0 * std_B.astype(np.float64), canvas_BSSC)
    return (canvas_BSSC + (scale_B111 * quantiles[bits_BSSC]).round()).clamp(0, 255).to(torch.uint8)


def impulse_noise(canvas_BSSC: torch.Tensor, amount_B: F32, keys_B: philox.U64, name: str) -> torch.Tensor:
    """Set a share ``amount`` of the values to 0 or 255 (salt and pepper). Shape: (B, S, S, C) uint8 in and out."""

    def work(pixels: U8, bits: U16, strength: float, out: U8) -> None:
        threshold = impulse_threshold(strength)
        pepper, salt = (bits < threshold).view(np.uint8), (bits >= RANDOM_LEVELS - threshold).view(np.uint8)
        np.bitwise_or(pixels, np.negative(salt), out=out)  # -1 is 255 in uint8
        np.bitwise_and(out, np.subtract(pepper, 1, dtype=np.uint8), out=out)

    if canvas_BSSC.device.type == "cpu":
        return _image_by_image(work, canvas_BSSC, amount_B, keys_B, name)
    if on_triton(canvas_BSSC):
        from substyle.kernels import noise_triton

        return noise_triton.impulse_noise(canvas_BSSC.contiguous(), amount_B, keys_B, name)
    return impulse_noise_reference(canvas_BSSC, amount_B, keys_B, name)


def impulse_noise_reference(canvas_BSSC: torch.Tensor, amount_B: F32, keys_B: philox.U64, name: str) -> torch.Tensor:
    """:func:`impulse_noise` in plain torch."""
    bits_BSSC = _bits_like(canvas_BSSC, keys_B, name)
    threshold_B111 = _per_image(np.array([impulse_threshold(float(a)) for a in amount_B], np.int32), canvas_BSSC)
    peppered = canvas_BSSC.masked_fill(bits_BSSC < threshold_B111, 0)
    return peppered.masked_fill(bits_BSSC >= RANDOM_LEVELS - threshold_B111, 255)


def shot_noise(canvas_BSSC: torch.Tensor, rate_B: F32, keys_B: philox.U64, name: str) -> torch.Tensor:
    """Draw every value from a Poisson distribution with ``rate`` photons at full range. Shape: (B, S, S, C) uint8."""

    def work(pixels: U8, bits: U16, strength: float, out: U8) -> None:
        index = scratch("noise.index", bits.shape, np.intp)
        start, noisy = (scratch(f"noise.{use}", bits.shape, np.uint16) for use in ("start", "noisy_level"))
        np.left_shift(pixels, 16 - _LOWER, out=index, dtype=np.intp)
        np.bitwise_or(index, np.right_shift(bits, _LOWER, out=start), out=index)
        np.take(_shot_start(strength).reshape(-1), index, mode="wrap", out=noisy)
        out[...] = noisy
        (rest,) = np.nonzero(noisy > 255)
        out[rest] = shot_table(strength)[pixels[rest], bits[rest]]

    if canvas_BSSC.device.type == "cpu":
        return _image_by_image(work, canvas_BSSC, rate_B, keys_B, name)
    if on_triton(canvas_BSSC):
        from substyle.kernels import noise_triton

        return noise_triton.shot_noise(canvas_BSSC.contiguous(), rate_B, keys_B, name)
    return shot_noise_reference(canvas_BSSC, rate_B, keys_B, name)


def shot_noise_reference(canvas_BSSC: torch.Tensor, rate_B: F32, keys_B: philox.U64, name: str) -> torch.Tensor:
    """:func:`shot_noise` in plain torch."""
    bits_BSSC = _bits_like(canvas_BSSC, keys_B, name)
    out_BSSC = torch.empty_like(canvas_BSSC)
    for i, rate in enumerate(rate_B):
        table = torch.from_numpy(shot_table(float(rate))).to(canvas_BSSC.device)
        out_BSSC[i] = table[canvas_BSSC[i].long(), bits_BSSC[i]]
    return out_BSSC


def _image_by_image(
    work: Work, canvas_BSSC: torch.Tensor, strength_B: F32, keys_B: philox.U64, name: str
) -> torch.Tensor:
    """Call ``work(pixels, random numbers, strength, out)`` on the flattened values of each image."""
    source = canvas_BSSC.contiguous().flatten(1).numpy()
    out_BSSC = torch.empty(canvas_BSSC.shape, dtype=torch.uint8)
    target = out_BSSC.flatten(1).numpy()

    def one(i: int) -> None:
        bits = scratch("noise.bits", source.shape[1:], np.uint16)
        philox.bits16(keys_B[i], name, bits)
        work(source[i], bits, float(strength_B[i]), target[i])

    for_each_image(len(source), one)
    return out_BSSC


def _bits_like(canvas_BSSC: torch.Tensor, keys_B: philox.U64, name: str) -> torch.Tensor:
    count = canvas_BSSC[0].numel() if len(canvas_BSSC) else 0
    return philox.bits16_torch(keys_B, name, count, canvas_BSSC.device).reshape(canvas_BSSC.shape)


def _per_image(values_B: NDArray[np.generic], canvas_BSSC: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values_B)).to(canvas_BSSC.device).view(-1, 1, 1, 1)
