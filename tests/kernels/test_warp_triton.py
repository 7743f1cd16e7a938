"""Warps in Triton against ``remap`` of a displacement field. Tolerance: one level, on few pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place

from substyle.errors import ConfigError
from substyle.kernels import philox


def pictures(batch: int, side: int, channels: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(side)
    return torch.from_numpy(rng.integers(0, 256, (batch, side, side, channels), dtype=np.uint8))


def test_no_images_and_bad_input(place: Place) -> None:
    made = place.load("warp_triton")
    x, none = pictures(0, 8).to(place.device), np.empty(0, np.float32)
    assert made.elastic(x, philox.image_keys(0, []), "e", none, 1.0).shape == x.shape
    assert made.grid(x, torch.empty(0, 2, 6, 6, device=place.device)).shape == x.shape
    assert made.swirl(x, np.empty((0, 2), np.float32), none, none).shape == x.shape
    with pytest.raises(ConfigError, match=r"canvas\.shape"):
        made.grid(pictures(2, 8)[:, :5].contiguous(), torch.zeros(2, 2, 6, 6))
