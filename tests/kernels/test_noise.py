"""Noise: the threaded path against plain torch, distributions, and dependence only on key and name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from substyle.kernels import noise, philox, tables

OPERATIONS = [
    (noise.gaussian_noise, noise.gaussian_noise_reference, (0.12, 0.38, 0.0)),
    (noise.impulse_noise, noise.impulse_noise_reference, (0.06, 0.27, 0.0)),
    (noise.shot_noise, noise.shot_noise_reference, (25.0, 3.0, 60.5)),
]
Operation = Callable[..., torch.Tensor]


def canvas(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize(("operation", "reference", "strengths"), OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 17, 17, 3), (3, 1, 5, 3), (1, 224, 224, 3), (0, 8, 8, 3)])
def test_equals_plain_torch(
    operation: Operation, reference: Operation, strengths: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    x, keys = canvas(*shape), philox.image_keys(5, [f"{i}" for i in range(shape[0])])
    strength = np.array(strengths[: shape[0]], np.float32)
    before = x.clone()
    got = operation(x, strength, keys, "n")
    assert got.dtype == torch.uint8
    assert torch.equal(got, reference(x, strength, keys, "n"))
    assert torch.equal(x, before)


@pytest.mark.parametrize(("operation", "reference", "strengths"), OPERATIONS)
def test_depends_on_key_and_name_alone(
    operation: Operation, reference: Operation, strengths: tuple[float, ...]
) -> None:
    x = canvas(1, 32, 32, 3).expand(4, -1, -1, -1)  # not contiguous: the same photograph four times
    keys, strength = philox.image_keys(0, ["a", "b", "c", "a"]), np.full(4, strengths[1], np.float32)
    batch = operation(x, strength, keys, "n")
    assert torch.equal(batch[0], batch[3])
    assert not torch.equal(batch[0], batch[1])
    alone = operation(x[1:2], strength[1:2], keys[1:2], "n")
    assert torch.equal(alone[0], batch[1])
    assert not torch.equal(operation(x, strength, keys, "m"), batch)


def grey(level: int, count: int = 4) -> torch.Tensor:
    return torch.full((count, 128, 128, 3), level, dtype=torch.uint8)


@pytest.mark.parametrize("std", [0.05, 0.12])
def test_gaussian_moments(std: float) -> None:
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


@pytest.mark.parametrize("amount", [0.06, 0.27])
def test_impulse_shares(amount: float) -> None:
    keys = philox.image_keys(1, list("abcd"))
    noisy = noise.impulse_noise(grey(100), np.full(4, amount, np.float32), keys, "n")
    count = noisy.numel()
    assert set(noisy.unique().tolist()) == {0, 100, 255}
    for level in (0, 255):
        share = (noisy == level).double().mean().item()
        assert abs(share - amount / 2) < 4 * (amount / 2 / count) ** 0.5


@pytest.mark.parametrize(("rate", "level"), [(25.0, 128), (5.0, 60), (3.0, 255)])
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
