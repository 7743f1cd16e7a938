"""Zoom blur: both paths agree, and invariants hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from substyle.kernels.tables import ZOOM_STAGES
from substyle.kernels.warp import enlargement, zoom_blur


def plainly(x: torch.Tensor, zoom_B: NDArray[np.float32]) -> torch.Tensor:
    """Stage by stage, by products with whole matrices."""
    total: torch.Tensor = x.permute(0, 3, 1, 2).float()
    for stage in range(ZOOM_STAGES):
        steps = [float(zoom) ** (2**stage / (2**ZOOM_STAGES - 1)) for zoom in zoom_B]
        matrices = np.reshape([enlargement(x.shape[1], step) for step in steps], (-1, 1, x.shape[1], x.shape[1]))
        matrix_B1SS = torch.from_numpy(matrices).float()
        total = total + matrix_B1SS @ total @ matrix_B1SS.mT
    return (total / 2**ZOOM_STAGES + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


@pytest.mark.parametrize("shape", [(3, 40, 40, 3), (2, 97, 97, 3), (2, 1, 1, 3), (2, 2, 2, 1), (0, 8, 8, 3)])
def test_both_paths_alike(shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    zoom = np.linspace(1.15, 1.3, shape[0]).astype(np.float32)
    fast, plain = zoom_blur(x, zoom), plainly(x, zoom)
    assert fast.shape == plain.shape == shape
    assert fast.dtype == plain.dtype == torch.uint8
    difference = (fast.int() - plain.int()).abs()
    assert (difference <= 1).all()
    assert (difference > 0).float().sum() <= 0.002 * difference.numel() + 1  # halves, rounded either way


def test_enlargement_is_about_the_middle() -> None:
    assert np.array_equal(enlargement(9, 1.0), np.eye(9))
    line = np.arange(10.0)
    assert np.allclose(enlargement(10, 2.0) @ line, np.linspace(2.25, 6.75, 10))
    assert np.allclose(enlargement(10, 1.3).sum(axis=1), 1)
