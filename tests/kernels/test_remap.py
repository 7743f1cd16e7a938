"""Remapping against scipy's spline interpolation of order one with mirrored borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from substyle.kernels.warp import remap, remap_reference


def case(batch: int, height: int, width: int, reach: float, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(height * width)
    x = rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    shift = rng.uniform(-reach, reach, (batch, 2, height, width)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(shift)


@pytest.mark.parametrize(
    ("height", "width", "reach"), [(32, 32, 3.0), (19, 33, 60.0), (1, 20, 4.0), (20, 1, 4.0), (1, 1, 2.0), (2, 2, 0.5)]
)
def test_equals_scipy(height: int, width: int, reach: float) -> None:
    x, shift = case(2, height, width, reach)
    got = remap(x, shift)
    y_SS, x_SS = np.mgrid[0:height, 0:width].astype(np.float64)
    for i in range(len(x)):
        places = [y_SS + shift[i, 1].numpy(), x_SS + shift[i, 0].numpy()]
        for channel in range(3):
            plane = x[i, :, :, channel].double().numpy()
            expected = ndimage.map_coordinates(plane, places, order=1, mode="mirror")
            assert np.abs(got[i, :, :, channel].numpy() - expected).max() <= 0.5 + 0.02  # float32 grid coordinates
    assert (got.int() - remap_reference(x, shift).int()).abs().max() <= 1


def test_no_shift_is_identity() -> None:
    x, shift = case(3, 24, 24, 1.0)
    assert torch.equal(remap(x, torch.zeros_like(shift)), x)
    assert torch.equal(remap_reference(x, torch.zeros_like(shift)), x)


def test_empty_batch_and_strided_input() -> None:
    x, shift = case(2, 12, 12, 4.0)
    assert remap(x[:0], shift[:0]).shape == (0, 12, 12, 3)
    assert remap_reference(x[:0], shift[:0]).shape == (0, 12, 12, 3)
    planar = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(remap(planar, shift), remap(x, shift))
