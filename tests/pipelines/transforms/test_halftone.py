"""Dot and line halftone as transformations."""

from __future__ import annotations

import numpy as np
import pytest

from substyle.kernels import philox
from substyle.pipelines.transforms.base import get


@pytest.mark.parametrize(("name", "size", "turn"), [("dot_halftone", "cell", 90), ("line_halftone", "pitch", 180)])
def test_screens_are_those_declared(name: str, size: str, turn: float) -> None:
    keys = philox.image_keys(0, [str(i) for i in range(300)])
    half, full = get(name).draw(keys, 112), get(name).draw(keys, 224)
    assert full[size].min() >= 4
    assert full[size].max() <= 8
    assert np.allclose(2 * half[size], full[size])
    assert full["angle"].min() >= 0
    assert np.radians(turn) * 0.97 < full["angle"].max() <= np.radians(turn)
