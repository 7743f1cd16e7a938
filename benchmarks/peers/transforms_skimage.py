"""scikit-image's transformations of one (S, S, 3) uint8 picture, with parameters in the suite's ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import color, filters, transform, util  # type: ignore[attr-defined]

NAME = "scikit-image"
U8 = NDArray[np.uint8]
Rng = np.random.Generator


def _bytes(x: NDArray[Any]) -> U8:
    return np.asarray(util.img_as_ubyte(np.clip(x, 0, 1)))


def _blur(x: U8, rng: Rng) -> U8:
    return _bytes(filters.gaussian(x, float(rng.choice((2, 3, 4, 6))), mode="mirror", truncate=3, channel_axis=-1))


def _gaussian_noise(x: U8, rng: Rng) -> U8:
    return _bytes(util.random_noise(x, "gaussian", rng=rng, var=float(rng.choice((0.12, 0.18, 0.26, 0.38))) ** 2))


def _impulse_noise(x: U8, rng: Rng) -> U8:
    return _bytes(util.random_noise(x, "s&p", rng=rng, amount=float(rng.choice((0.06, 0.09, 0.17, 0.27)))))


def _shot_noise(x: U8, rng: Rng) -> U8:
    rate = float(rng.choice((25, 12, 5, 3)))
    return _bytes(rng.poisson(util.img_as_float(x) * rate) / rate)


def _hue(x: U8, rng: Rng) -> U8:
    hsv = color.rgb2hsv(x)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0.1, 0.5) * rng.choice((-1, 1))) % 1
    return _bytes(color.hsv2rgb(hsv))


def _grey(x: U8, rng: Rng) -> U8:
    del rng
    return _bytes(color.gray2rgb(color.rgb2gray(x)))


def _pixelate(x: U8, rng: Rng) -> U8:
    small = round(len(x) * float(rng.choice((0.5, 0.4, 0.3, 0.25))))
    reduced = transform.resize(x, (small, small), order=1, anti_aliasing=True)
    return _bytes(transform.resize(reduced, x.shape[:2], order=0))


def _low_resolution(x: U8, rng: Rng) -> U8:
    small = round(len(x) * float(rng.uniform(0.15, 0.35)))
    reduced = transform.resize(x, (small, small), order=3, anti_aliasing=True)
    return _bytes(transform.resize(reduced, x.shape[:2], order=3))


def _swirl(x: U8, rng: Rng) -> U8:
    side = len(x)
    centre, radius = rng.uniform(0.3 * side, 0.7 * side, 2), rng.uniform(0.5, 0.75) * side
    return _bytes(transform.swirl(x, tuple(centre), rng.uniform(3, 6), radius, mode="reflect"))


ALL: dict[str, Callable[[U8, Rng], U8]] = {
    "gaussian_blur": _blur,
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "shot_noise": _shot_noise,
    "hue_shift": _hue,
    "grayscale": _grey,
    "pixelate": _pixelate,
    "low_resolution": _low_resolution,
    "swirl": _swirl,
}
