"""Five transformations of each library, most of them random, for canvases of any side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all


@contextmanager
def forgotten() -> Iterator[None]:
    """What is registered in the block is forgotten at its end."""
    load_all()
    before = dict(base.REGISTRY)
    try:
        yield
    finally:
        base.REGISTRY.clear()
        base.REGISTRY.update(before)
        sys.modules.pop("my_effects", None)


EFFECTS = """
import os
import random
import sys
import time

import numpy as np
import torch

def sepia(image, strength):
    weights = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return np.clip(image * (1 - strength) + image @ weights.T * strength, 0, 255).astype(np.uint8)

def grain(image, rng, level=20):
    return np.clip(image + rng.normal(0, level, image.shape), 0, 255).astype(np.uint8)

def hidden(image):
    return np.clip(image + np.random.normal(0, 20, image.shape), 0, 255).astype(np.uint8)

def shuffled(image):
    return image[:, :, random.sample(range(3), 3)].copy()

def cut(image):
    top = int(torch.randint(0, 20, ()))
    image[top : top + 20] = 0
    return image

def small(image):
    return image[::2]

def fails(image):
    raise RuntimeError("no")

def ends(image):
    os._exit(7)

def leaves(image):
    sys.exit(0)

def sleeps(image):
    time.sleep(100)

def large(image):
    return bytearray(64 << 30)
"""

ROWS = """
transformations = [
  { name = "a_rain", of = "albumentations:RandomRain", parameters = { slant_range = [-10, 10] }, kind = "weather" },
  { name = "a_noise", of = "albumentations:GaussNoise", kind = "noise" },
  { name = "a_dropout", of = "albumentations:CoarseDropout", kind = "overlay", role = "held_out" },
  { name = "a_affine", of = "albumentations:Affine", parameters = { rotate = [-30, 30] }, kind = "warp" },
  { name = "a_pipeline", of = "albumentations:pipeline", file = "augment.json" },
  { name = "t_perspective", of = "torchvision:RandomPerspective", parameters = { distortion_scale = 0.4 } },
  { name = "t_jitter", of = "torchvision:ColorJitter", parameters = { hue = 0.4, brightness = [0.5, 1.5] } },
  { name = "t_erasing", of = "torchvision:RandomErasing", severities = { scale = [[0.1, 0.2], [0.3, 0.4]] } },
  { name = "t_augment", of = "torchvision:TrivialAugmentWide" },
  { name = "t_blur", of = "torchvision:GaussianBlur", parameters = { kernel_size = 9, sigma = { uniform = [1, 3] } } },
  { name = "k_motion", of = "kornia:RandomMotionBlur", parameters = { kernel_size = 9, angle = 35.0, direction = 0.5 }},
  { name = "k_noise", of = "kornia:RandomGaussianNoise" },
  { name = "k_plasma", of = "kornia:RandomPlasmaShadow" },
  { name = "k_elastic", of = "kornia:RandomElasticTransform" },
  { name = "k_solarize", of = "kornia:RandomSolarize" },
  { name = "g_cubism", of = "gmic:fx_cubism", kind = "style", parameters = { angle = { uniform = [0, 90] } } },
  { name = "g_noise", of = "gmic:fx_noise" },
  { name = "g_spread", of = "gmic:fx_spread" },
  { name = "g_ellipses", of = "gmic:fx_color_ellipses" },
  { name = "g_kuwahara", of = "gmic:fx_kuwahara", parameters = { radius = { one_of = [2, 5] } } },
  { name = "p_sepia", of = "python:my_effects:sepia", parameters = { strength = [0.2, 0.5, 0.8] } },
  { name = "p_grain", of = "python:my_effects:grain" },
  { name = "p_hidden", of = "python:my_effects:hidden" },
  { name = "p_shuffled", of = "python:my_effects:shuffled" },
  { name = "p_cut", of = "python:my_effects:cut" },
]
"""

PIPELINE = """{"__version__": "2.0.8", "transform": {
  "__class_fullname__": "Compose", "p": 1.0, "bbox_params": null, "keypoint_params": null, "additional_targets": {},
  "is_check_shapes": true, "transforms": [
    {"__class_fullname__": "HorizontalFlip", "p": 0.5},
    {"__class_fullname__": "OneOf", "p": 1.0, "transforms": [
      {"__class_fullname__": "GaussNoise", "p": 0.5}, {"__class_fullname__": "RandomGamma", "p": 0.5}]}]}}
"""


def write(folder: Path, rows: str = ROWS) -> Path:
    """Write the suite file, the pipeline and the module into a folder; returns the suite file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "augment.json").write_text(PIPELINE)
    (folder / "my_effects.py").write_text(EFFECTS)
    suite = folder / "mine.toml"
    suite.write_text(rows)
    return suite


def row(text: str) -> str:
    """A suite file of one row."""
    return f"transformations = [ {{ {text} }} ]\n"
