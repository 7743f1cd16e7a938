"""Noise: the threaded path and Triton, bit for bit against plain torch; distributions; dependence on key and name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.conftest import slow_after
from tests.kernels.conftest import Place, pictures

from substyle.errors import ConfigError
from substyle.kernels import noise, philox, tables

STRENGTHS = {
    "gaussian_noise": (0.12, 0.38, 0.0),
    "impulse_noise": (0.06, 0.27, 1.0),
    "shot_noise": (25.0, 3.0, 60.5),
}


def case(name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, np.ndarray, np.ndarray, torch.Tensor]:
    """Pictures, strengths and keys, and the reference's pictures."""
    x, keys = pictures(*shape), philox.image_keys(5, [f"{i}" for i in range(shape[0])])
    strength = np.array(STRENGTHS[name][: shape[0]], np.float32)
    return x, strength, keys, getattr(noise, f"{name}_reference")(x, strength, keys, "n")


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("shape", [(3, 17, 17, 3), (1, 224, 224, 3), (0, 8, 8, 3)])
def test_equals_plain_torch(name: str, shape: tuple[int, ...]) -> None:
    x, strength, keys, expected = case(name, shape)
    before = x.clone()
    got = getattr(noise, name)(x, strength, keys, "n")
    assert got.dtype == torch.uint8
    assert torch.equal(got, expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", STRENGTHS)
def test_depends_on_key_and_name_alone(name: str) -> None:
    operation = getattr(noise, name)
    x = pictures(1, 32, 32, 3).expand(4, -1, -1, -1)  # not contiguous: the same photograph four times
    keys, strength = philox.image_keys(0, ["a", "b", "c", "a"]), np.full(4, STRENGTHS[name][1], np.float32)
    batch = operation(x, strength, keys, "n")
    assert torch.equal(batch[0], batch[3])
    assert not torch.equal(batch[0], batch[1])
    alone = operation(x[1:2], strength[1:2], keys[1:2], "n")
    assert torch.equal(alone[0], batch[1])
    assert not torch.equal(operation(x, strength, keys, "m"), batch)


def grey(level: int, count: int = 4) -> torch.Tensor:
    return torch.full((count, 128, 128, 3), level, dtype=torch.uint8)


def test_gaussian_moments() -> None:
    std = 0.12
    keys = philox.image_keys(1, list("abcd"))
    noisy = noise.gaussian_noise(grey(128), np.full(4, std, np.float32), keys, "n").double() / 255.0
    count = noisy.numel()
    assert abs(noisy.mean().item() - 128 / 255) < 4 * std / count**0.5
    assert abs(noisy.std().item() / std - 1) < 4 / (2 * count) ** 0.5 + 1e-3  # 1e-3: rounded to whole levels
    neighbours = torch.corrcoef(torch.stack([noisy[..., 0].flatten(), noisy[..., 1].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 0.02


def test_gaussian_quantiles_are_normal() -> None:
    quantiles = tables.normal_quantiles()
    assert np.allclose(quantiles, stats.norm.ppf((np.arange(65536) + 0.5) / 65536), atol=1e-9)
    assert np.array_equal(quantiles, -quantiles[::-1])


def test_impulse_shares() -> None:
    amount = 0.06
    keys = philox.image_keys(1, list("abcd"))
    noisy = noise.impulse_noise(grey(100), np.full(4, amount, np.float32), keys, "n")
    count = noisy.numel()
    assert set(noisy.unique().tolist()) == {0, 100, 255}
    for level in (0, 255):
        share = (noisy == level).double().mean().item()
        assert abs(share - amount / 2) < 4 * (amount / 2 / count) ** 0.5


@pytest.mark.parametrize(("rate", "level"), [(25.0, 128), (3.0, 255)])
def test_shot_counts_are_poisson(rate: float, level: int) -> None:
    keys = philox.image_keys(2, list("abcd"))
    noisy = noise.shot_noise(grey(level), np.full(4, rate, np.float32), keys, "n").numpy().ravel()
    mean = rate * level / 255
    most = int(rate)  # higher counts are clipped to full range
    observed = np.array([(noisy == min(round(k * 255 / rate), 255)).sum() for k in range(most + 1)])
    expected = stats.poisson.pmf(np.arange(most + 1), mean) * noisy.size
    expected[-1] = stats.poisson.sf(most - 1, mean) * noisy.size
    keep = expected > 20
    chi2 = ((observed - expected) ** 2 / expected)[keep].sum()
    assert observed.sum() == noisy.size
    assert chi2 < stats.chi2.ppf(0.9999, keep.sum())


# --- Triton -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("shape", slow_after(1, zip([(3, 19, 23, 3), (2, 7, 1, 1), (3, 0, 4, 3)])))
def test_triton(place: Place, name: str, shape: tuple[int, ...]) -> None:
    x, strength, keys, expected = case(name, shape)
    got = getattr(place.load("noise_triton"), name)(x.to(place.device), strength, keys, "n")
    assert got.dtype == torch.uint8
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("rate", [0.5, 5.0, 300.0])
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
