"""Zoom blur in Triton against the reference. Tolerance: one level, where a value is near a half."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place

from substyle.kernels.warp import zoom_blur_reference


@pytest.mark.parametrize("shape", [(2, 0, 3), (1, 16, 3), (2, 1, 3), (2, 2, 1), (0, 8, 3)])
def test_equals_the_reference(place: Place, shape: tuple[int, int, int]) -> None:
    batch, side, channels = shape[0], shape[1] or place.large, shape[2]
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, side, side, channels), dtype=np.uint8))
    zoom = np.linspace(1.15, 1.3, batch).astype(np.float32)
    got = place.load("warp_triton").zoom_blur(x.to(place.device), zoom).cpu()
    assert got.dtype == torch.uint8
    difference = (got.int() - zoom_blur_reference(x, zoom).int()).abs()
    assert (difference <= 1).all()
    assert (difference > 0).float().sum() <= 0.002 * difference.numel() + 1


@pytest.mark.parametrize("level", [0, 1, 255])
def test_flat_pictures_stay_flat(place: Place, level: int) -> None:
    flat = torch.full((2, 20, 20, 3), level, dtype=torch.uint8, device=place.device)
    assert torch.equal(place.load("warp_triton").zoom_blur(flat, np.float32([1.15, 1.3])), flat)
