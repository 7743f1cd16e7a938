"""Halftone screens in Triton against the reference, with the tolerance of the two CPU paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place

from substyle.kernels import halftone


@pytest.mark.parametrize("shape", [(3, 0, 40, 3), (3, 1, 30, 3), (2, 30, 1, 3), (1, 1, 1, 1), (0, 8, 8, 3)])
def test_equals_the_reference(place: Place, shape: tuple[int, int, int, int]) -> None:
    batch, height, width, channels = shape[0], shape[1] or place.large, *shape[2:]
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8))
    size = rng.uniform(4, 8, (batch, channels)).astype(np.float32)
    angle = rng.uniform(0, 3, (batch, channels)).astype(np.float32)
    made, there = place.load("halftone_triton"), x.to(place.device)
    pairs = [
        (made.dots(there, size, angle), halftone.dots_reference(x, size, angle)),
        (made.lines(there, size[:, 0], angle[:, 0]), halftone.lines_reference(x, size[:, 0], angle[:, 0])),
    ]
    for got, expected in pairs:
        assert got.dtype == torch.uint8
        difference = (got.cpu().int() - expected.int()).abs()
        assert (difference > 1).float().sum() <= 0.001 * difference.numel()
        assert (difference > 0).float().sum() <= 0.01 * difference.numel()


@pytest.mark.parametrize("level", [0, 3, 128, 255])
def test_mean_tone_is_kept(place: Place, level: int) -> None:
    made = place.load("halftone_triton")
    flat = torch.full((1, 48, 48, 3), level, dtype=torch.uint8, device=place.device)
    dots = made.dots(flat, np.float32([[6, 6, 6]]), np.float32([[0, 0.5, 1]]))
    lines = made.lines(flat, np.float32([6]), np.float32([0.3]))
    for printed in (dots, lines):
        assert printed.float().mean().item() == pytest.approx(level, abs=8)
        if level in (0, 255):
            assert (printed == level).all()
