"""Halftone screens: tone, shape and edges; both paths agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.kernels.conftest import pictures

from substyle.kernels import halftone


def flat(level: int, batch: int = 1, side: int = 224) -> torch.Tensor:
    return torch.full((batch, side, side, 3), level, dtype=torch.uint8)


def draws(batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(4, 8, (batch, 3)).astype(np.float32), rng.uniform(0, 3, (batch, 3)).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 40, 40, 3), (3, 1, 30, 3), (0, 8, 8, 3)])
def test_both_paths_alike(shape: tuple[int, ...]) -> None:
    x = pictures(*shape)
    size, angle = draws(shape[0])
    pairs = [
        (halftone.dots(x, size, angle), halftone.dots_reference(x, size, angle)),
        (halftone.lines(x, size[:, 0], angle[:, 0]), halftone.lines_reference(x, size[:, 0], angle[:, 0])),
    ]
    for fast, plain in pairs:
        assert fast.shape == plain.shape == shape
        assert fast.dtype == plain.dtype == torch.uint8
        difference = (fast.int() - plain.int()).abs()
        # float32 coordinates differ by 1 ulp: one level at an edge, or the other side of a border between cells
        assert (difference > 1).float().sum() <= 0.001 * difference.numel()


@pytest.mark.parametrize("level", [0, 3, 128, 252, 255])
def test_mean_tone_is_kept(level: int) -> None:
    size, angle = draws(4, seed=level)
    dots = halftone.dots(flat(level, 4), size, angle)
    lines = halftone.lines(flat(level, 4), size[:, 0], angle[:, 0])
    assert dots.float().mean().item() == pytest.approx(level, abs=6)
    assert lines.float().mean().item() == pytest.approx(level, abs=2)
    if level in (0, 255):
        assert (dots == level).all()
        assert (lines == level).all()


def test_dots_stand_on_their_lattice() -> None:
    cell, angle = np.array([[8, 8, 8]], np.float32), np.array([[0, math.pi / 4, 0]], np.float32)
    printed = halftone.dots(flat(180), cell, angle)[0]
    assert torch.equal(printed[:-8, :, 0], printed[8:, :, 0])
    assert torch.equal(printed[:, :-8, 0], printed[:, 8:, 0])
    assert printed[0, 0, 0] == 0  # the centre of a dot is ink
    assert printed[4, 4, 0] == 255  # the centre between four dots is paper
    assert torch.equal(printed[..., 0], printed[..., 2])
    assert not torch.equal(printed[..., 0], printed[..., 1])


@pytest.mark.parametrize(("angle", "along"), [(0.0, 2), (math.pi / 2, 1)])
def test_lines_run_at_their_angle(angle: float, along: int) -> None:
    """Angle 0 is horizontal: levels vary along columns only."""
    printed = halftone.lines(flat(128), np.array([6], np.float32), np.array([angle], np.float32)).float()
    across = 3 - along
    assert printed.diff(dim=along).abs().max() <= 2
    assert printed.diff(dim=across).abs().max() > 100
    assert torch.equal(printed.narrow(across, 0, 100), printed.narrow(across, 6, 100)) or angle > 0
