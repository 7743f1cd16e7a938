"""ImageNet-C: deterministic corruptions against scikit-image, random ones against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian
from tests.conftest import photograph

from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.transforms.suites.fields import plasma
from substyle.pipelines.transforms.suites.imagenet_c import PREFIX, fog
from substyle.pipelines.variants import VariantMaker

SIDE = 224
KEYS = [f"photo-{i}" for i in range(3)]
NAMES = suite("imagenet_c")


def canvas(side: int = SIDE) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = [np.asarray(photograph(i, side, side)) for i in range(2)]
    return torch.from_numpy(np.stack([*smooth, rng.integers(0, 256, (side, side, 3), np.uint8)]))


def made(names: tuple[str, ...], x_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
    maker = VariantMaker(names, side=x_BSSC.shape[1], seed=0, batch=len(x_BSSC), threads=1)
    return {variant.name: variant.pixels_BSSC for variant in maker(x_BSSC, KEYS[: len(x_BSSC)])}


def error(found: torch.Tensor, expected_BSSC: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.abs(found.numpy().astype(np.float64) - np.clip(expected_BSSC, 0, 1) * 255)


def test_the_suite() -> None:
    known = [base.get(name) for name in NAMES]
    assert len(NAMES) == 20
    assert [t.severities for t in known] == [0] + [5] * 19
    assert sum(t.role == "held_out" for t in known) == 4
    assert len(suite("imagenet_c@1..5")) == 96


@pytest.mark.parametrize(("severity", "shift"), list(enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1)))
def test_brightness(severity: int, shift: float) -> None:
    x = canvas()
    name = f"{PREFIX}brightness@{severity}"
    hsv = rgb2hsv(x.numpy() / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + shift, 0, 1)
    assert error(made((name,), x)[name], hsv2rgb(hsv)).max() < 0.51


@pytest.mark.parametrize(("severity", "scale"), list(enumerate(((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)), 1)))
def test_saturate(severity: int, scale: tuple[float, float]) -> None:
    x = canvas()
    x[0, :9, :9] = 128  # grey, of hue 0
    name = f"{PREFIX}saturate@{severity}"
    hsv = rgb2hsv(x.numpy() / 255)
    hsv[..., 1] = np.clip(hsv[..., 1] * scale[0] + scale[1], 0, 1)
    assert error(made((name,), x)[name], hsv2rgb(hsv)).max() < 0.51


@pytest.mark.parametrize(("severity", "factor"), list(enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1)))
def test_contrast(severity: int, factor: float) -> None:
    x = canvas()
    name = f"{PREFIX}contrast@{severity}"
    unit = x.numpy() / 255
    mean = unit.mean((1, 2), keepdims=True)
    assert error(made((name,), x)[name], (unit - mean) * factor + mean).max() < 0.51


@pytest.mark.parametrize(("severity", "sigma"), list(enumerate((1, 2, 3, 4, 6), 1)))
def test_gaussian_blur(severity: int, sigma: float) -> None:
    x = canvas()
    name = f"{PREFIX}gaussian_blur@{severity}"
    expected = np.stack([gaussian(each / 255, sigma, channel_axis=-1, mode="mirror") for each in x.numpy()])
    assert error(made((name,), x)[name], expected).max() < 2  # ours is cut at three sigma, theirs at four


@pytest.mark.parametrize(("severity", "scale"), list(enumerate((0.6, 0.5, 0.4, 0.3, 0.25), 1)))
def test_pixelate(severity: int, scale: float) -> None:
    x = canvas()
    name = f"{PREFIX}pixelate@{severity}"
    small = int(SIDE * scale)
    for found, each in zip(made((name,), x)[name].numpy(), x.numpy(), strict=True):
        expected = Image.fromarray(each).resize((small, small), Image.Resampling.BOX)
        expected = np.asarray(expected.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_speckle_noise_is_in_proportion_to_the_value() -> None:
    x = torch.full((2, SIDE, SIDE, 3), 50, dtype=torch.uint8)
    x[1] = 100
    name = f"{PREFIX}speckle_noise@1"
    deviation = (made((name,), x)[name].double() - x).std((1, 2, 3))
    torch.testing.assert_close(deviation, torch.tensor([7.5, 15.0], dtype=torch.float64), rtol=0.02, atol=0)


def test_glass_blur_moves_pixels_by_at_most_its_distance() -> None:
    side = 64
    x = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    x[0, :, side // 2 :] = 255
    name = f"{PREFIX}glass_blur@5"
    out = made((name,), x)[name][0, :, :, 0].double()
    reach = 2 * 4 + 2 * 6  # two moves of at most four, two blurs of radius six
    assert out[:, : side // 2 - reach].max() == 0
    assert out[:, side // 2 + reach :].min() == 255
    assert out.std(0).max() > 1  # the edge is rough


@pytest.mark.parametrize("name", ["snow", "frost", "fog", "spatter"])
def test_weather(name: str) -> None:
    x = canvas()
    names = tuple(f"{PREFIX}{name}@{severity}" for severity in range(1, 6))
    variants = made(names, x)
    changed = [float((variants[each].double() - x).abs().mean()) for each in names]
    assert min(changed) > 1.0
    assert changed[0] < changed[2]
    if name == "snow":  # flakes are light
        assert all((variants[each].double() - x).mean() > 0 for each in names)
    again = made(names[:1], x[:1])[names[0]]
    assert torch.equal(again[0], variants[names[0]][0])  # whatever the batch


def test_mud_is_brown_and_water_is_light() -> None:
    x = torch.full((1, SIDE, SIDE, 3), 128, dtype=torch.uint8)
    variants = made((f"{PREFIX}spatter@1", f"{PREFIX}spatter@4"), x)
    water, mud = (variants[f"{PREFIX}spatter@{severity}"][0].double() for severity in (1, 4))
    assert (water >= 128).all()
    spots = mud[(mud != 128).any(-1)].mean(0)
    assert spots[2] < spots[1] < spots[0] < 128


def test_fog_is_as_smooth_as_published() -> None:
    """Mean difference of neighbours in clouds of 224 pixels, as parts of their range: of 24 by the published code."""
    published = {1: 0.00292, 5: 0.00763}
    black = torch.zeros(6, 224, 224, 3, dtype=torch.uint8)
    black[:, 0, 0] = 255  # in a black photograph fog shows its clouds
    keys_B = philox.image_keys(0, [f"{n}" for n in range(6)])
    for severity, rough in published.items():
        foggy = fog(black, {"severity": np.full(6, severity, np.int64)}, keys_B)
        clouds = foggy[:, 1:, 1:, 0].float()
        spread = clouds.amax((1, 2)) - clouds.amin((1, 2))
        found = ((clouds[:, 1:] - clouds[:, :-1]).abs().mean((1, 2)) / spread).mean()
        assert float(found) == pytest.approx(rough, rel=0.25)


def test_plasma_has_more_detail_where_it_decays_less() -> None:
    keys_B = philox.image_keys(0, KEYS)
    decay_B = np.array([1.2, 2.0, 3.0], np.float32)
    field = plasma(np.repeat(keys_B[:1], 3), "imagenet_c_fog", 128, decay_B, torch.device("cpu"))
    assert field.shape == (3, 128, 128)
    assert field.min() == 0
    assert field.max() <= 1
    rough = (field[:, 1:] - field[:, :-1]).abs().mean((1, 2))
    assert rough[0] > rough[1] > rough[2]
    other = plasma(keys_B[1:2], "imagenet_c_fog", 128, decay_B[:1], torch.device("cpu"))
    assert not torch.equal(other[0], field[0])
