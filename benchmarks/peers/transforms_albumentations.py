"""Albumentations' transformations, if installed, with parameters in the suite's ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "Albumentations"
U8 = NDArray[np.uint8]
Rng = np.random.Generator

try:
    import albumentations as A
    import cv2
except ImportError:
    A = None


def _all() -> dict[str, Any]:
    """Return its transforms by our names; each draws its own parameters."""
    mirrored = {"border_mode": cv2.BORDER_REFLECT_101, "p": 1}
    nearest = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_NEAREST}
    cubic = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_CUBIC}
    return {
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
        "pixelate": A.Downscale(scale_range=(0.25, 0.5), interpolation_pair=nearest, p=1),
        "low_resolution": A.Downscale(scale_range=(0.15, 0.35), interpolation_pair=cubic, p=1),
        "elastic": A.ElasticTransform(alpha=25, sigma=2.24, **mirrored),
        "grid_distortion": A.GridDistortion(num_steps=5, distort_limit=0.3, **mirrored),
    }


def _call(transform: Any) -> Callable[[U8, Rng], U8]:  # noqa: ANN401 - may not be installed
    def work(x: U8, rng: Rng) -> U8:
        del rng
        made: U8 = transform(image=x)["image"]
        return made

    return work


ALL: dict[str, Callable[[U8, Rng], U8]] = {} if A is None else {name: _call(t) for name, t in _all().items()}
