"""Remapping in Triton against the reference. Tolerance: one level, where a value is near a half."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place

from substyle.kernels.warp import remap_reference


def case(shape: tuple[int, int, int, int], reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(sum(shape))
    shift = rng.uniform(-reach, reach, (shape[0], 2, *shape[1:3])).astype(np.float32)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)), torch.from_numpy(shift)


@pytest.mark.parametrize(
    ("shape", "reach"),
    [((2, 19, 33, 3), 60.0), ((1, 1, 20, 3), 4.0), ((3, 20, 1, 3), 4.0), ((1, 1, 1, 1), 2.0), ((2, 2, 2, 4), 0.5)],
)
def test_equals_the_reference(place: Place, shape: tuple[int, int, int, int], reach: float) -> None:
    x, shift = case(shape, reach)
    got = place.load("warp_triton").remap(x.to(place.device), shift.to(place.device)).cpu()
    difference = (got.int() - remap_reference(x, shift).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().sum() <= 0.002 * difference.numel() + 1


def test_whole_pixels_and_their_mirrors_are_exact(place: Place) -> None:
    x, shift = case((1, 12, 16, 3), 1.0)
    made = place.load("warp_triton")
    shift[:, 0], shift[:, 1] = 3.0, -2.0
    got = made.remap(x.to(place.device), shift.to(place.device)).cpu()
    padded = np.pad(x.numpy(), ((0, 0), (2, 0), (0, 3), (0, 0)), mode="reflect")
    assert np.array_equal(got.numpy(), padded[:, :12, 3:])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
def test_places_that_are_no_numbers_stay_inside(place: Place) -> None:
    x, shift = case((1, 9, 9, 3), 1.0)
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e9])
    shift[0, 0, 0, :6], shift[0, 1, 1, :6] = wild, wild
    got = place.load("warp_triton").remap(x.to(place.device), shift.to(place.device)).cpu()
    assert (got[0, 2:].int() - remap_reference(x, shift)[0, 2:].int()).abs().max() <= 1
