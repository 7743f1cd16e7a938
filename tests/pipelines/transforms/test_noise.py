"""Transformations of the kind noise: parameters, strength and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest

from substyle.kernels import philox
from substyle.pipelines.transforms.base import get

NAMES = ("gaussian_noise", "impulse_noise", "shot_noise")


@pytest.mark.parametrize("name", NAMES)
def test_strengths_are_those_declared(name: str) -> None:
    transformation = get(name)
    keys = philox.image_keys(0, [str(i) for i in range(200)])
    (parameter,) = transformation.parameters
    drawn = transformation.draw(keys, 224)[parameter.name]
    assert set(np.round(drawn, 4).tolist()) == {np.round(np.float32(v), 4).item() for v in parameter.values}
    assert np.array_equal(drawn, transformation.draw(keys, 96)[parameter.name])  # not in px
