"""Transformations of other libraries by our names, one (S, S, 3) uint8 picture at a time, in the suite's ranges.

torchvision takes (3, S, S) tensors instead. The published network of 26 styles takes batches of canvases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage import color, filters, transform, util  # type: ignore[attr-defined]
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from substyle.engine.backbones.runtimes.openvino import core
from substyle.engine.style_transfer.networks import MULTISTYLE, model_bytes

U8 = NDArray[np.uint8]
Rng = np.random.Generator
SIGMAS, STDS, AMOUNTS, RATES = (2, 3, 4, 6), (0.12, 0.18, 0.26, 0.38), (0.06, 0.09, 0.17, 0.27), (25, 12, 5, 3)
SCALES = (0.5, 0.4, 0.3, 0.25)
PERMUTATIONS = [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
STYLES = "the published network in OpenVINO, bf16"
_PIECE = 8  # pictures per inference


def _drawn(rng: Rng, values: Sequence[float]) -> float:
    return float(rng.choice(values))


def _blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return tv.gaussian_blur(x, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma, sigma])


def _resized(x: torch.Tensor, scale: float, down: str, up: str) -> torch.Tensor:
    small = [round(x.shape[-1] * scale)] * 2
    reduced = tv.resize(x, small, InterpolationMode(down), antialias=True)
    return tv.resize(reduced, [x.shape[-1]] * 2, InterpolationMode(up), antialias=False)


def _elastic(x: torch.Tensor, rng: Rng) -> torch.Tensor:
    side, amplitude = x.shape[-1], _drawn(rng, (16, 21, 25, 30))
    field = _blurred(torch.rand(1, 2, side, side) * 2 - 1, 0.01 * side)
    return tv.elastic(x, (field * (2 * amplitude / side)).permute(0, 2, 3, 1))


TORCHVISION: dict[str, Callable[[torch.Tensor, Rng], torch.Tensor]] = {
    "gaussian_blur": lambda x, rng: _blurred(x, _drawn(rng, SIGMAS)),
    "gaussian_noise": lambda x, rng: tv.gaussian_noise(x, sigma=_drawn(rng, STDS)),
    "hue_shift": lambda x, rng: tv.adjust_hue(x, rng.uniform(0.1, 0.5) * _drawn(rng, (-1, 1))),
    "grayscale": lambda x, rng: tv.rgb_to_grayscale(x, num_output_channels=3),
    "channel_permute": lambda x, rng: tv.permute_channels(x, PERMUTATIONS[int(rng.integers(5))]),
    "brightness": lambda x, rng: tv.adjust_brightness(x, 1 + _drawn(rng, (0.2, 0.3, 0.4, 0.5))),
    "low_contrast": lambda x, rng: tv.adjust_contrast(x, _drawn(rng, (0.3, 0.2, 0.1, 0.05))),
    "saturate": lambda x, rng: tv.adjust_saturation(x, _drawn(rng, (3, 5))),
    "jpeg": lambda x, rng: tv.jpeg(x, int(rng.choice((18, 15, 10, 7)))),
    "pixelate": lambda x, rng: _resized(x, rng.uniform(0.25, 0.5), "bilinear", "nearest"),
    "low_resolution": lambda x, rng: _resized(x, rng.uniform(0.15, 0.35), "bicubic", "bicubic"),
    "elastic": _elastic,
}


def _bytes(x: NDArray[Any]) -> U8:
    return np.asarray(util.img_as_ubyte(np.clip(x, 0, 1)))


def _noisy(x: U8, rng: Rng, mode: str, **how: float) -> U8:
    return _bytes(util.random_noise(x, mode, rng=rng, **how))


def _shot_noise(x: U8, rng: Rng) -> U8:
    rate = _drawn(rng, RATES)
    return _bytes(rng.poisson(util.img_as_float(x) * rate) / rate)


def _hue(x: U8, rng: Rng) -> U8:
    hsv = color.rgb2hsv(x)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0.1, 0.5) * rng.choice((-1, 1))) % 1
    return _bytes(color.hsv2rgb(hsv))


def _reduced(x: U8, scale: float, down: int, up: int) -> U8:
    small = [round(len(x) * scale)] * 2
    return _bytes(transform.resize(transform.resize(x, small, order=down, anti_aliasing=True), x.shape[:2], order=up))


def _swirl(x: U8, rng: Rng) -> U8:
    side = len(x)
    centre, radius = rng.uniform(0.3 * side, 0.7 * side, 2), rng.uniform(0.5, 0.75) * side
    return _bytes(transform.swirl(x, tuple(centre), rng.uniform(3, 6), radius, mode="reflect"))


SKIMAGE: dict[str, Callable[[U8, Rng], U8]] = {
    "gaussian_blur": lambda x, rng: _bytes(
        filters.gaussian(x, _drawn(rng, SIGMAS), mode="mirror", truncate=3, channel_axis=-1)
    ),
    "gaussian_noise": lambda x, rng: _noisy(x, rng, "gaussian", var=_drawn(rng, STDS) ** 2),
    "impulse_noise": lambda x, rng: _noisy(x, rng, "s&p", amount=_drawn(rng, AMOUNTS)),
    "shot_noise": _shot_noise,
    "hue_shift": _hue,
    "grayscale": lambda x, rng: _bytes(color.gray2rgb(color.rgb2gray(x))),
    "pixelate": lambda x, rng: _reduced(x, _drawn(rng, SCALES), 1, 0),
    "low_resolution": lambda x, rng: _reduced(x, rng.uniform(0.15, 0.35), 3, 3),
    "swirl": _swirl,
}

_MIRRORED = {"border_mode": cv2.BORDER_REFLECT_101, "p": 1}
_NEAREST = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_NEAREST}
_CUBIC = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_CUBIC}
# each draws its own parameters
_ALBUMENTATIONS = {
    "gaussian_blur": A.GaussianBlur(blur_limit=0, sigma_limit=(2, 6), p=1),
    "motion_blur": A.MotionBlur(blur_limit=(31, 41), p=1),
    "defocus_blur": A.Defocus(radius=(4, 10), alias_blur=(0.5, 0.5), p=1),
    "zoom_blur": A.ZoomBlur(max_factor=(1.15, 1.3), step_factor=(0.015, 0.015), p=1),
    "gaussian_noise": A.GaussNoise(std_range=(0.12, 0.38), p=1),
    "impulse_noise": A.SaltAndPepper(amount=(0.06, 0.27), p=1),
    "shot_noise": A.ShotNoise(scale_range=(0.04, 0.33), p=1),
    "hue_shift": A.HueSaturationValue(hue_shift_limit=(18, 90), sat_shift_limit=0, val_shift_limit=0, p=1),
    "grayscale": A.ToGray(p=1),
    "channel_permute": A.ChannelShuffle(p=1),
    "brightness": A.RandomBrightnessContrast(brightness_limit=(0.2, 0.5), contrast_limit=0, p=1),
    "low_contrast": A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=(-0.95, -0.7), p=1),
    "saturate": A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=(3, 5), hue=(0, 0), p=1),
    "jpeg": A.ImageCompression(quality_range=(7, 18), p=1),
    "pixelate": A.Downscale(scale_range=(0.25, 0.5), interpolation_pair=_NEAREST, p=1),
    "low_resolution": A.Downscale(scale_range=(0.15, 0.35), interpolation_pair=_CUBIC, p=1),
    "elastic": A.ElasticTransform(alpha=25, sigma=2.24, **_MIRRORED),
    "grid_distortion": A.GridDistortion(num_steps=5, distort_limit=0.3, **_MIRRORED),
}
ALBUMENTATIONS: dict[str, Callable[[U8, Rng], U8]] = {
    name: lambda x, rng, made=made: made(image=x)["image"] for name, made in _ALBUMENTATIONS.items()
}
LIBRARIES: dict[str, dict[str, Callable[[Any, Rng], Any]]] = {
    "torchvision": TORCHVISION,
    "scikit-image": SKIMAGE,
    "Albumentations": ALBUMENTATIONS,
}


def published(styles: Sequence[str], side: int, threads: int) -> Callable[[torch.Tensor], list[U8]]:
    """Return a function that applies each style to a batch of canvases. Shape of each style: (B, S, S, 3) uint8."""
    model = core().read_model(model_bytes("multistyle26"))
    model.reshape({"image": [_PIECE, 3, side, side], "style_weights": [26]})
    options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads}
    request = core().compile_model(model, "CPU", options).create_infer_request()

    def run(canvas_BSSC: torch.Tensor) -> list[U8]:
        x_BCSS = (canvas_BSSC.permute(0, 3, 1, 2).contiguous() / 255.0).numpy()
        made = []
        for style in styles:
            weights = np.eye(26, dtype=np.float32)[MULTISTYLE[style]]
            parts = []
            for start in range(0, len(x_BCSS), _PIECE):
                request.infer([x_BCSS[start : start + _PIECE], weights])
                parts.append((request.get_output_tensor(0).data * 255.0 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))
            made.append(np.concatenate(parts))
        return made

    return run
