"""Correlation in torch against numpy, and in Triton against torch: one level where a value is near a half."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import slow_after
from tests.kernels.conftest import Place

from substyle.kernels import filters
from substyle.kernels.errors import ConfigError

# height, width, channels, K, L: kernels of the suite, then lines and columns that end within programs, tiny images
SHAPES = [(50, 65, 3, 5, 9), (97, 70, 3, 13, 15), (1, 1, 3, 3, 5), (2, 9, 1, 7, 1), (3, 4, 2, 9, 11), (129, 2, 1, 1, 3)]


def pictures(batch: int, height: int, width: int, channels: int) -> torch.Tensor:
    rng = np.random.default_rng(height)
    return torch.from_numpy(rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8))


def kernels(batch: int, rows: int, columns: int) -> NDArray[np.float32]:
    """Random weights, half of them zero; without symmetry. The first kernel has empty rows."""
    rng = np.random.default_rng(columns)
    kernel = rng.uniform(0, 1, (batch, rows, columns)) * rng.integers(0, 2, (batch, rows, columns))
    kernel[0, : rows // 2] = 0
    kernel[:, -1, 0] += 0.1
    return (kernel / kernel.sum((1, 2), keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference(shape: tuple[int, int, int, int, int]) -> None:
    height, width, channels, rows, columns = shape
    x, kernel = pictures(2, height, width, channels), kernels(2, rows, columns)
    border = [(rows // 2,) * 2, (columns // 2,) * 2, (0, 0)]
    for image, weights, made in zip(x.numpy(), kernel, filters.filtered_reference(x, kernel).numpy(), strict=True):
        around = np.pad(image.astype(np.float64), border, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(around, (rows, columns), axis=(0, 1))
        assert np.abs(np.einsum("yxckl,kl->yxc", windows, weights) - made).max() <= 0.501


@pytest.mark.parametrize("shape", slow_after(1, zip(SHAPES)))
def test_triton(place: Place, shape: tuple[int, int, int, int, int]) -> None:
    height, width, channels, rows, columns = shape
    x, kernel = pictures(2, height, width, channels), kernels(2, rows, columns)
    got = place.load("filters_triton").filtered(x.to(place.device), kernel)
    difference = (got.cpu().int() - filters.filtered_reference(x, kernel).int()).abs()
    assert got.dtype == torch.uint8
    assert difference.max() <= 1
    assert (difference > 0).float().sum() <= 0.005 * difference.numel() + 1


@pytest.mark.parametrize("level", [0, 1, 200, 255])
def test_flat_areas_keep_their_level(place: Place, level: int) -> None:
    flat = torch.full((2, 20, 20, 3), level, dtype=torch.uint8, device=place.device)
    assert torch.equal(place.load("filters_triton").filtered(flat, kernels(2, 7, 9)), flat)


def test_no_images_and_bad_input(place: Place) -> None:
    made, kernel = place.load("filters_triton"), kernels(2, 3, 5)
    for shape in ((0, 8, 8, 3), (2, 0, 8, 3)):
        x = torch.zeros(shape, dtype=torch.uint8, device=place.device)
        assert made.filtered(x, kernel[: len(x)]).shape == shape
        assert filters.filtered_reference(x, kernel[: len(x)]).shape == shape
    with pytest.raises(ConfigError) as caught:
        made.filtered(torch.zeros(3, 8, 8, 3, dtype=torch.uint8, device=place.device), kernel)
    assert caught.value.field == "canvas.shape"
