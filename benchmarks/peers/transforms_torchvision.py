"""torchvision's transformations of one (3, S, S) uint8 picture, with parameters in the suite's ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

NAME = "torchvision"
Rng = np.random.Generator
Work = Callable[[torch.Tensor, Rng], torch.Tensor]


def _blur(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    sigma = float(rng.choice((2, 3, 4, 6)))
    return tv.gaussian_blur(x, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma, sigma])


def _noise(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    return tv.gaussian_noise(x, sigma=float(rng.choice((0.12, 0.18, 0.26, 0.38))))


def _hue(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    return tv.adjust_hue(x, float(rng.uniform(0.1, 0.5) * rng.choice((-1, 1))))


def _grey(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    del rng
    return tv.rgb_to_grayscale(x, num_output_channels=3)


def _permute(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    return tv.permute_channels(x, [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][int(rng.integers(5))])


def _brightness(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    return tv.adjust_brightness(x, 1 + float(rng.choice((0.2, 0.3, 0.4, 0.5))))


def _contrast(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    return tv.adjust_contrast(x, float(rng.choice((0.3, 0.2, 0.1, 0.05))))


def _saturate(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    return tv.adjust_saturation(x, float(rng.choice((3, 5))))


def _jpeg(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    return tv.jpeg(x, int(rng.choice((18, 15, 10, 7))))


def _resized(x: torch.Tensor, rng: Rng, *, low: float, high: float, down: str, up: str) -> torch.Tensor:
    side = x.shape[-1]
    small = round(side * float(rng.uniform(low, high)))
    reduced = tv.resize(x, [small, small], InterpolationMode(down), antialias=True)
    return tv.resize(reduced, [side, side], InterpolationMode(up), antialias=False)


def _elastic(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    side, amplitude = x.shape[-1], float(rng.choice((16, 21, 25, 30)))
    sigma = 0.01 * side
    field = tv.gaussian_blur(torch.rand(1, 2, side, side) * 2 - 1, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma, sigma])
    return tv.elastic(x, (field * (2 * amplitude / side)).permute(0, 2, 3, 1))


ALL: dict[str, Work] = {
    "gaussian_blur": _blur,
    "gaussian_noise": _noise,
    "hue_shift": _hue,
    "grayscale": _grey,
    "channel_permute": _permute,
    "brightness": _brightness,
    "low_contrast": _contrast,
    "saturate": _saturate,
    "jpeg": _jpeg,
    "pixelate": partial(_resized, low=0.25, high=0.5, down="bilinear", up="nearest"),
    "low_resolution": partial(_resized, low=0.15, high=0.35, down="bicubic", up="bicubic"),
    "elastic": _elastic,
}
