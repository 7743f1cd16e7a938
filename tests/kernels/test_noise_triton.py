"""Noise in Triton, bit for bit against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import slow_after
from tests.kernels.conftest import Place

from substyle.errors import ConfigError
from substyle.kernels import noise, philox, tables

STRENGTHS = {
    "gaussian_noise": (0.12, 0.38, 0.0),
    "impulse_noise": (0.06, 0.27, 1.0),
    "shot_noise": (25.0, 3.0, 60.5),
}


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize(
    "shape", slow_after(1, zip([(3, 19, 23, 3), (1, 1, 5, 3), (2, 7, 1, 1), (3, 0, 4, 3), (0, 8, 8, 3)]))
)
def test_equals_the_reference(place: Place, name: str, shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    keys, strength = philox.image_keys(5, [f"{i}" for i in range(shape[0])]), np.float32(STRENGTHS[name][: shape[0]])
    got = getattr(place.load("noise_triton"), name)(x.to(place.device), strength, keys, "n")
    assert got.dtype == torch.uint8
    assert torch.equal(got.cpu(), getattr(noise, f"{name}_reference")(x, strength, keys, "n"))


@pytest.mark.parametrize("rate", [0.5, 1.0, 5.0, 300.0])
def test_shot_noise_by_halving_is_the_table(place: Place, rate: float) -> None:
    """Rates of few photons, and of more photons than levels."""
    x = torch.arange(256, dtype=torch.uint8).repeat(8).view(1, 32, 64, 1)
    keys, strength = philox.image_keys(1, ["a"]), np.float32([rate])
    got = place.load("noise_triton").shot_noise(x.to(place.device), strength, keys, "s")
    assert torch.equal(got.cpu(), noise.shot_noise_reference(x, strength, keys, "s"))


def test_impulse_thresholds_are_met_exactly(place: Place) -> None:
    """Amounts whose thresholds equal drawn numbers, the boundary cases."""
    keys = philox.image_keys(1, ["a", "a"])
    bits = philox.bits16_torch(keys[:1], "n", 192, torch.device("cpu"))[0]
    thresholds = [int(bits[bits < 20000].max()), tables.RANDOM_LEVELS - int(bits[bits > 45000].min())]
    amount = np.float32(thresholds) * np.float32(2 / tables.RANDOM_LEVELS)
    assert [tables.impulse_threshold(float(a)) for a in amount] == thresholds
    x = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    got = place.load("noise_triton").impulse_noise(x.to(place.device), amount, keys, "n")
    assert torch.equal(got.cpu(), noise.impulse_noise_reference(x, amount, keys, "n"))


def test_bad_input_is_named(place: Place) -> None:
    made = place.load("noise_triton")
    keys, std = philox.image_keys(1, ["a", "b"]), np.float32([0.1, 0.2])
    canvas = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device=place.device)
    for bad, field in ((canvas.float(), "dtype"), (canvas[:1], "shape"), (canvas.transpose(1, 2), "stride")):
        with pytest.raises(ConfigError, match=rf"canvas\.{field}"):
            made.gaussian_noise(bad, std, keys, "n")
    with pytest.raises(ConfigError, match=r"strength\.shape"):
        made.gaussian_noise(canvas, std[:1], keys, "n")
