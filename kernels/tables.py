"""Tables and constants shared by the CPU and GPU kernels."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RANDOM_LEVELS = 1 << 16  # number of distinct random numbers
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue; ITU-R BT.601


U8 = NDArray[np.uint8]


@lru_cache(maxsize=1)
def normal_quantiles() -> NDArray[np.float64]:
    """Standard normal quantiles of 16-bit random numbers. Shape: (65536,)."""
    upper = np.array(
        [NormalDist().inv_cdf((q + 0.5) / RANDOM_LEVELS) for q in range(RANDOM_LEVELS // 2, RANDOM_LEVELS)]
    )
    return np.concatenate([-upper[::-1], upper])


@lru_cache(maxsize=64)
def gaussian_table(std: float) -> NDArray[np.int16]:
    """Gaussian noise in levels for a standard deviation in units of full range. Shape: (65536,) int16."""
    return np.rint(255.0 * std * normal_quantiles()).astype(np.int16)


@lru_cache(maxsize=8)
def shot_table(rate: float) -> U8:
    """Noisy level by (level, random number): Poisson with mean ``rate * level / 255``. Shape: (256, 65536) uint8."""
    table = np.empty((256, RANDOM_LEVELS), np.uint8)
    for level in range(256):
        mean = rate * level / 255.0
        most = int(mean + 8.0 * mean**0.5 + 16.0)  # higher counts have a probability far below 2**-16
        terms = np.cumprod(np.concatenate([[1.0], mean / np.arange(1, most + 1)])) * np.exp(-mean)
        up_to = np.floor(np.minimum(np.cumsum(terms), 1.0) * RANDOM_LEVELS + 0.5).astype(
            np.int64
        )  # quantiles of counts 0..k
        up_to[-1] = RANDOM_LEVELS
        noisy = np.minimum(np.rint(np.arange(most + 1) * (255.0 / rate)), 255).astype(np.uint8)
        table[level] = np.repeat(noisy, np.diff(up_to, prepend=0))
    return table


def impulse_threshold(amount: float) -> int:
    """Random numbers below the threshold set a value to 0; as many at the upper end set it to 255."""
    return round(amount * RANDOM_LEVELS / 2)


_SHARE = 1.0 - np.arange(256) / 255.0  # inked share of a cell by level


@lru_cache(maxsize=1)
def dot_radii() -> NDArray[np.float64]:
    """Radius, in cells, of the dot that inks the required share of its square cell. Shape: (256,), by level.

    Dots touch at a radius of 1/2. Beyond, the disk is cut off at the cell's four edges, and the covered share is
    ``pi r^2 - 4 (r^2 arccos(1 / 2r) - sqrt(r^2 - 1/4) / 2)``. Inverted by interpolation.
    """
    radius = np.linspace(0.0, np.sqrt(0.5), 8193)
    beyond = np.maximum(radius, 0.5)
    cut = beyond**2 * np.arccos(0.5 / beyond) - 0.5 * np.sqrt(beyond**2 - 0.25)
    share = np.pi * radius**2 - 4.0 * cut
    return np.interp(_SHARE, share / share[-1], radius)


WEIGHT_SHIFT = 7  # weights are in 128ths: (colour - level) * weight fits 16 bits


ZOOM_STAGES = 4  # 2 ** 4 = 16 enlargements
