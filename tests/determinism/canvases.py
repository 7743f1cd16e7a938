"""Canvases for the tests of this folder: images of every kind, reproducible by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

# "quarantined": zeros, the canvas of an image that cannot be decoded
KINDS = ("photograph", "scene", "noise", "gradient", "checks", "tint", "grey", "black", "white", "quarantined")
SEEDS = 6


@dataclass(frozen=True)
class Picture:
    """An image: the recipe of its pixels, and whether it is a test image."""

    kind: str
    seed: int
    test: bool = False

    @property
    def key(self) -> str:
        return f"{'test' if self.test else 'train'}/{self.kind}/né {self.seed}.jpg"

    def canvas(self, side: int) -> NDArray[np.uint8]:
        return _pixels(self.kind, self.seed, side)


def pictures() -> st.SearchStrategy[Picture]:
    return st.builds(Picture, st.sampled_from(KINDS), st.integers(0, SEEDS - 1), st.booleans())


def parts(count: int, largest: int) -> st.SearchStrategy[list[int]]:
    """Strategy: sizes of consecutive batches of at most ``largest`` for ``count`` images."""

    def cut(sizes: list[int]) -> list[int]:
        taken: list[int] = []
        for size in sizes:
            taken.append(min(size, count - sum(taken)))
        while sum(taken) < count:
            taken.append(min(largest, count - sum(taken)))
        return [size for size in taken if size]

    return st.lists(st.integers(1, largest), max_size=count).map(cut)


def stack(some: list[Picture], side: int) -> NDArray[np.uint8]:
    return np.stack([picture.canvas(side) for picture in some])


@lru_cache(maxsize=1024)
def _pixels(kind: str, seed: int, side: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    if kind == "photograph":
        return _photograph(rng, side)
    if kind == "scene":
        image = 127 + 60 * np.sin(9 * x[..., None] + rng.uniform(0, 6, 3)) + rng.normal(0, 4, (side, side, 3))
        for _ in range(4):
            cy, cx, r = rng.uniform(0, 1, 3)
            image[np.hypot(y - cy, x - cx) < 0.25 * r] = rng.uniform(0, 255, 3)
    elif kind == "noise":
        image = rng.integers(0, 256, (side, side, 3)).astype(np.float64)
    elif kind == "gradient":
        slope = rng.uniform(-1, 1, (2, 3))
        image = 255 * np.abs(x[..., None] * slope[0] + y[..., None] * slope[1]) / 2
    elif kind == "checks":
        period = rng.integers(1, 9)
        image = np.where((x * (side - 1) // period + y * (side - 1) // period) % 2, *rng.integers(0, 256, 2))[..., None]
        image = np.repeat(image, 3, axis=2)
    else:
        levels = {"tint": rng.integers(0, 256, 3), "grey": rng.integers(1, 255), "white": 255}
        image = np.broadcast_to(np.asarray(levels.get(kind, 0), np.float64), (side, side, 3))
    made = np.clip(image, 0, 255).astype(np.uint8)
    made.flags.writeable = False
    return made


def _photograph(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    name = ("china.jpg", "flower.jpg")[rng.integers(2)]
    with resources.as_file(resources.files("sklearn.datasets.images") / name) as path, Image.open(path) as opened:
        size = min(2 * side, opened.height - 20)
        left, top = rng.integers(0, opened.width - size), rng.integers(0, opened.height - size)
        crop = opened.convert("RGB").crop((left, top, left + size, top + size))
    made = np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC)).copy()
    made.flags.writeable = False
    return made
