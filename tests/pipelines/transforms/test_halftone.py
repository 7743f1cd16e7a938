"""Dot and line halftone as transformations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.kernels import philox
from substyle.pipelines.transforms import halftone as module
from substyle.pipelines.transforms.base import get

NAMES = ("dot_halftone", "line_halftone")
KEYS = philox.image_keys(3, [f"{i}.jpg" for i in range(5)])


def ramp(batch: int, side: int) -> torch.Tensor:
    level = np.linspace(30, 225, side).astype(np.uint8)
    plane = np.broadcast_to(level, (side, side))
    return torch.from_numpy(np.repeat(np.stack([plane, plane.T, plane[:, ::-1]], -1)[None], batch, 0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [96, 224])
def test_visible_repeatable_by_key_and_true_to_tone(name: str, side: int) -> None:
    transformation, x = get(name), ramp(5, side)
    printed = transformation.function(x, transformation.draw(KEYS, side), KEYS)
    assert printed.shape == x.shape
    assert printed.dtype == torch.uint8
    assert (printed.float() - x.float()).abs().mean(dim=(1, 2, 3)).min() > 40
    assert (printed.float().mean(dim=(1, 2)) - x.float().mean(dim=(1, 2))).abs().max() < 6
    for i in range(5):
        alone = transformation.function(x[i : i + 1], transformation.draw(KEYS[i : i + 1], side), KEYS[i : i + 1])
        assert torch.equal(alone[0], printed[i])
    assert not torch.equal(printed[0], printed[1])
    assert len(transformation.function(x[:0], transformation.draw(KEYS[:0], side), KEYS[:0])) == 0


@pytest.mark.parametrize(("name", "size", "turn"), [("dot_halftone", "cell", 90), ("line_halftone", "pitch", 180)])
def test_screens_are_those_declared(name: str, size: str, turn: float) -> None:
    keys = philox.image_keys(0, [str(i) for i in range(300)])
    half, full = get(name).draw(keys, 112), get(name).draw(keys, 224)
    assert full[size].min() >= 4
    assert full[size].max() <= 8
    assert np.allclose(2 * half[size], full[size])
    assert full["angle"].min() >= 0
    assert np.radians(turn) * 0.97 < full["angle"].max() <= np.radians(turn)


def test_each_ink_has_its_own_screen() -> None:
    args = get("dot_halftone").draw(KEYS, 64)
    assert args["cell"].shape == args["angle"].shape == (5, 3)
    grey = torch.full((5, 64, 64, 3), 128, dtype=torch.uint8)
    dots = module.dot_halftone(grey, args, KEYS)
    assert not torch.equal(dots[..., 0], dots[..., 1])
    lines = module.line_halftone(grey, get("line_halftone").draw(KEYS, 64), KEYS)
    assert torch.equal(lines[..., 0], lines[..., 1])  # all inks share the lines: a grey image stays grey
