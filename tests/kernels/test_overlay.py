"""Overlays in Triton against the reference, and the reference against known values.

The comparison with DALI is in tests/pipelines. Tolerance: two levels, where coverage is near a half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place

from substyle.kernels import overlay
from substyle.kernels.errors import ConfigError


def given(batch: int, height: int, width: int, side: int = 29, pages: int = 3) -> tuple[torch.Tensor, ...]:
    """Images, pages and parameters; coordinates exceed the pages."""
    rng = np.random.default_rng(height)
    arrays: list[Any] = [
        rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8),
        rng.integers(0, 256, (pages, side, side), dtype=np.uint8),
    ]
    matrix = rng.uniform(-1.5, 1.5, (batch, 2, 3)).astype(np.float32)
    matrix[:, :, 2] = rng.uniform(0, side, (batch, 2))
    drawn: list[Any] = [
        rng.integers(0, pages, batch),
        matrix,
        rng.integers(0, 256, (batch, 3)).astype(np.int16),
        rng.uniform(0.1, 128 / 255, batch).astype(np.float32),
    ]
    return *(torch.from_numpy(a) for a in arrays), *drawn


@pytest.mark.parametrize("shape", [(3, 18, 34), (2, 1, 20), (1, 20, 1), (2, 0, 3), (0, 8, 8), (1, 25, 25)])
def test_equals_the_reference(place: Place, shape: tuple[int, int, int]) -> None:
    canvas, pages, *drawn = given(*shape)
    got = place.load("overlay_triton").overlay(canvas.to(place.device), pages.to(place.device), *drawn).cpu()
    expected = overlay.overlay_reference(canvas, pages, *drawn)
    assert got.shape == expected.shape
    assert got.dtype == torch.uint8
    difference = (got.int() - expected.int()).abs()
    assert (difference <= 2).all()
    assert (difference > 0).float().sum() <= 0.005 * difference.numel() + 3


def test_places_beyond_a_page_repeat_its_edge(place: Place) -> None:
    """Far and NaN coordinates never read outside the page."""
    canvas = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    pages = torch.zeros(1, 5, 5, dtype=torch.uint8)
    pages[0, -1, -1] = 255
    matrix = np.zeros((3, 2, 3), np.float32)
    matrix[0, :, 2], matrix[1, :, 2], matrix[2, :, 2] = 1e9, -1e9, np.nan
    drawn = (np.zeros(3, np.int64), matrix, np.full((3, 3), 200, np.int16), np.full(3, 128 / 255, np.float32))
    got = place.load("overlay_triton").overlay(canvas.to(place.device), pages.to(place.device), *drawn).cpu()
    assert got[0].unique().tolist() == [200]
    assert got[1].unique().tolist() == [0]


def test_full_and_no_coverage() -> None:
    canvas = torch.full((2, 3, 3, 3), 10, dtype=torch.uint8)
    pages = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 255)]).to(torch.uint8)
    matrix = np.tile(np.array([[1, 0, 0.5], [0, 1, 0.5]], np.float32), (2, 1, 1))
    colour = np.array([[0, 100, 255]] * 2, np.int16)
    got = overlay.overlay(canvas, pages, np.array([0, 1]), matrix, colour, np.full(2, 128 / 255, np.float32))
    assert torch.equal(got[0], canvas[0])
    assert got[1].reshape(-1, 3).unique(dim=0).tolist() == [[0, 100, 255]]


def test_bad_input_is_named(place: Place) -> None:
    made = place.load("overlay_triton")
    canvas, pages, page, *drawn = given(2, 4, 4)
    there = canvas.to(place.device), pages.to(place.device)
    with pytest.raises(ConfigError, match="0 to 2") as caught:
        made.overlay(*there, np.array([0, 3]), *drawn)
    assert (caught.value.field, caught.value.given) == ("page", [0, 3])
    with pytest.raises(ConfigError, match=r"pages\.shape"):
        made.overlay(there[0], there[1][:, :4], page, *drawn)
    with pytest.raises(ConfigError, match=r"canvas\.shape"):
        made.overlay(there[0][..., :2].contiguous(), there[1], page, *drawn)
