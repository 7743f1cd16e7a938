"""Images and helpers shared by the tests of this folder."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.conftest import photograph

from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.variants import VariantMaker, load_all

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
Made = tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]


@pytest.fixture
def shared() -> Path:
    """Folder of real photographs, if available."""
    if not SHARED.is_dir():
        pytest.skip("no photographs in shared/data")
    return SHARED


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours, hard edges and grain, (H, W, 3) uint8: resampled and compressed like a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase = rng.uniform(0, 6, 3)
    image = (
        120 + 60 * np.sin(9 * x[..., None] + phase) + 50 * np.cos(7 * y[..., None] * (1 + x[..., None]) + phase[::-1])
    )
    for _ in range(6):
        cy, cx, r = rng.uniform(0, 1, 3)
        image[np.hypot(y - cy, x - cx) < 0.25 * r] = rng.uniform(0, 255, 3)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def encode(image: NDArray[Any] | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Encode an image in memory."""
    out = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture(params=[64, 97])
def canvas(request: pytest.FixtureRequest) -> NDArray[np.uint8]:
    """Eight (S, S, 3) images: scenes, noise, black, white, a checkerboard and a grey ramp; even and odd S."""
    side = request.param
    y, x = np.mgrid[0:side, 0:side]
    checks = np.repeat(((y + x) % 2 * 255)[..., None], 3, axis=2)
    ramp = np.repeat((x * 255 // (side - 1))[..., None], 3, axis=2)
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3))
    flat = [np.zeros((side, side, 3)), np.full((side, side, 3), 255)]
    images = [*(scene(side, side, seed) for seed in range(3)), noise, *flat, checks, ramp]
    return np.stack(images).astype(np.uint8)


def keys_of(count: int) -> list[str]:
    """Keys of photographs."""
    return [f"class/{i}.jpg" for i in range(count)]


def parameters(name: str, side: int, count: int = 8, **options: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401
    """What a transformation draws for the photographs of :func:`variants`, as its implementation takes it."""
    load_all()
    return base.get(name).draw(philox.image_keys(7, keys_of(count)), side, **options)


def variants(names: Sequence[str], canvas_BSSC: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """Pixels of some transformations, by name."""
    load_all()
    maker = VariantMaker(tuple(names), side=canvas_BSSC.shape[1], seed=7, batch=max(len(canvas_BSSC), 1), threads=2)
    made = maker(canvas_BSSC, keys_of(len(canvas_BSSC)), **options)
    return {variant.name: variant.pixels_BSSC.clone() for variant in made}


def make_variant(name: str, canvas: NDArray[np.uint8], **options: Any) -> Made:  # noqa: ANN401
    """A transformation's pixels and the parameters it drew, as declared (before ``prepare``)."""
    load_all()
    keys_B = philox.image_keys(7, keys_of(len(canvas)))
    drawn = dataclasses.replace(base.get(name), prepare=None).draw(keys_B, canvas.shape[1])
    return variants([name], torch.from_numpy(canvas), **options)[name].numpy(), drawn


def photographs(side: int, count: int = 3) -> torch.Tensor:
    """Smooth photographs, and noise as the last one. Shape: (B, S, S, 3) uint8."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return torch.from_numpy(np.stack([*(photograph(i, side, side) for i in range(count - 1)), noise]))
