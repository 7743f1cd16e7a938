"""ImageNet-C: deterministic corruptions against scikit-image, random ones against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.filters import gaussian
from tests.conftest import photograph

from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
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


@pytest.mark.parametrize(("severity", "sigma"), list(enumerate((1, 2, 3, 4, 6), 1)))
def test_gaussian_blur(severity: int, sigma: float) -> None:
    x = canvas()
    name = f"{PREFIX}gaussian_blur@{severity}"
    expected = np.stack([gaussian(each / 255, sigma, channel_axis=-1, mode="mirror") for each in x.numpy()])
    assert error(made((name,), x)[name], expected).max() < 2  # ours is cut at three sigma, theirs at four


def test_speckle_noise_is_in_proportion_to_the_value() -> None:
    x = torch.full((2, SIDE, SIDE, 3), 50, dtype=torch.uint8)
    x[1] = 100
    name = f"{PREFIX}speckle_noise@1"
    deviation = (made((name,), x)[name].double() - x).std((1, 2, 3))
    torch.testing.assert_close(deviation, torch.tensor([7.5, 15.0], dtype=torch.float64), rtol=0.02, atol=0)


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
