"""Warps in Triton against ``remap`` of a displacement field. Tolerance: one level, on few pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place

from substyle.kernels import philox, warp


def pictures(batch: int, side: int, channels: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(side)
    return torch.from_numpy(rng.integers(0, 256, (batch, side, side, channels), dtype=np.uint8))


def alike(got: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (got.cpu().int() - expected.int()).abs()
    assert got.shape == expected.shape
    assert difference.max() <= 1
    assert (difference > 0).float().sum() <= 0.005 * difference.numel() + 1


@pytest.mark.parametrize(("side", "sigma"), [(0, 2.24), (17, 0.96), (8, 2.24), (2, 0.1)])
def test_elastic(place: Place, side: int, sigma: float) -> None:
    x, keys = pictures(2, side or place.large), philox.image_keys(0, ["a", "b"])
    amplitude = np.float32([16, 3])
    got = place.load("warp_triton").elastic(x.to(place.device), keys, "e", amplitude, sigma)
    alike(got, warp.elastic(x, keys, "e", amplitude, sigma))


@pytest.mark.parametrize(("side", "count"), [(0, 6), (16, 6), (5, 1), (1, 2), (3, 9)])
def test_grid(place: Place, side: int, count: int) -> None:
    x = pictures(2, side or place.large)
    nodes = torch.from_numpy(np.random.default_rng(count).normal(0, 3, (2, 2, count, count)).astype(np.float32))
    alike(place.load("warp_triton").grid(x.to(place.device), nodes.to(place.device)), warp.grid(x, nodes))


@pytest.mark.parametrize("side", [0, 16, 1])
def test_swirl(place: Place, side: int) -> None:
    x = pictures(2, side or place.large)
    centre, radius, strength = np.float32([[3, 10], [12.5, 4]]), np.float32([16, 20]), np.float32([3, 6])
    got = place.load("warp_triton").swirl(x.to(place.device), centre, radius, strength)
    alike(got, warp.swirl(x, centre, radius, strength))
