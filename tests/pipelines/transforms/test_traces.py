"""Traces of processing: Pillow's operations on a CPU, the same in torch elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from tests.conftest import photograph

from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.transforms.suites import traces
from substyle.pipelines.variants import VariantMaker

KEYS = [f"photo-{i}" for i in range(3)]
NAMES = suite("traces16")


def canvas(side: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = [np.asarray(photograph(i, side, side)) for i in range(2)]
    return torch.from_numpy(np.stack([*smooth, rng.integers(0, 256, (side, side, 3), np.uint8)]))


def made(names: tuple[str, ...], x_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
    maker = VariantMaker(names, side=x_BSSC.shape[1], seed=0, batch=len(x_BSSC), threads=1)
    return {variant.name: variant.pixels_BSSC for variant in maker(x_BSSC, KEYS[: len(x_BSSC)])}


def encoded(picture: Image.Image, quality: int = 95, chroma: str = "4:4:4") -> torch.Tensor:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=chroma)
    return torch.from_numpy(np.asarray(Image.open(file)).copy())


def scale_of(name: str, i: int) -> float:
    return float(base.get(name).draw(philox.image_keys(0, KEYS), 224)["scale"][i])


def resized(filter: Image.Resampling, name: str) -> Callable[[Image.Image, int], torch.Tensor]:
    def change(picture: Image.Image, i: int) -> torch.Tensor:
        length = int(picture.width * round(scale_of(name, i), 6))
        there = picture.resize((length, length), filter)
        return encoded(there.resize(picture.size, Image.Resampling.BICUBIC))

    return change


EXPECTED: dict[str, Callable[[Image.Image, int], torch.Tensor]] = {
    **{f"traces_jpeg{q}_420": lambda x, i, q=q: encoded(x, q, "4:2:0") for q in (75, 85, 95)},
    **{f"traces_jpeg{q}_444": lambda x, i, q=q: encoded(x, q, "4:4:4") for q in (75, 85, 95)},
    **{f"traces_sharpen{f}": lambda x, i, f=f: encoded(ImageEnhance.Sharpness(x).enhance(f)) for f in (2, 4, 8)},
    **{
        name: resized(Image.Resampling.BILINEAR, name)
        for name in ("traces_resize_half", "traces_resize_three_quarters", "traces_resize_double")
    },
    **{
        f"traces_interpolate_{filter.name.lower()}": resized(filter, f"traces_interpolate_{filter.name.lower()}")
        for filter in (
            *(Image.Resampling.BOX, Image.Resampling.BILINEAR),
            *(Image.Resampling.BICUBIC, Image.Resampling.LANCZOS),
        )
    },
}


def test_a_trace_is_distinct_unless_it_changes_nothing() -> None:
    """Also below one grey level on average, where other transformations count as identity."""
    smooth = canvas(64)[:1].float().lerp(torch.tensor(128.0), 0.7).to(torch.uint8)
    x = torch.cat([smooth, torch.full_like(smooth, 128)])
    maker = VariantMaker(("identity", "traces_jpeg95_444"), side=64, seed=0, batch=2, threads=1)
    _, variant = maker(x, KEYS[:2])
    assert 0 < (variant.pixels_BSSC[0].float() - x[0]).abs().mean() < 1
    assert variant.distinct_B.tolist() == [True, False]


@pytest.mark.parametrize("side", [64, 97, 224])
def test_pixels_are_those_of_pillow(side: int) -> None:
    x = canvas(side)
    variants = made(NAMES, x)
    for name, change in EXPECTED.items():
        for i, picture in enumerate(x.numpy()):
            assert torch.equal(variants[name][i], change(Image.fromarray(picture), i)), (name, i)


@pytest.mark.parametrize("inputs", [1, 64, 224])
@pytest.mark.parametrize("scale", [0.5, 0.75, 0.87, 1.13, 2.0])
@pytest.mark.parametrize("interpolation", sorted(traces.FILTERS))
def test_torch_resizes_as_pillow(inputs: int, scale: float, interpolation: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (2, inputs, inputs, 3), np.uint8)
    found = traces.resized(torch.from_numpy(x), np.full(2, scale), interpolation)
    length = max(int(inputs * scale), 1)
    for each, picture in zip(found.numpy(), x, strict=True):
        there = Image.fromarray(picture).resize((length, length), traces.FILTERS[interpolation])
        back = np.asarray(there.resize((inputs, inputs), Image.Resampling.BICUBIC))
        difference = np.abs(each.astype(int) - back)
        assert difference.max() <= 2
        assert difference.mean() < 0.1  # halves that fixed point rounds otherwise


@pytest.mark.parametrize("factor", [2.0, 4.0, 8.0])
def test_torch_sharpens_as_pillow(factor: float) -> None:
    x = canvas(64)
    for each, picture in zip(traces.sharpened(x, np.full(len(x), factor, np.float32)).numpy(), x.numpy(), strict=True):
        expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(picture)).enhance(factor))
        difference = np.abs(each.astype(int) - expected)
        assert difference.max() <= factor  # of one level of the smoothed picture
        assert difference.mean() < 0.1
