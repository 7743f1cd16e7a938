"""Transformations of the kind noise: parameters, strength and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.kernels import philox
from substyle.pipelines.transforms.base import get

NAMES = ("gaussian_noise", "impulse_noise", "shot_noise")
KEYS = philox.image_keys(7, [f"{i}.jpg" for i in range(6)])


def picture(batch: int, side: int = 96) -> torch.Tensor:
    ramp = torch.linspace(0, 255, side).to(torch.uint8)
    return torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side), ramp.flip(0).expand(side, side)], -1
    )[None].repeat(batch, 1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_strengths_are_those_declared(name: str) -> None:
    transformation = get(name)
    keys = philox.image_keys(0, [str(i) for i in range(200)])
    (parameter,) = transformation.parameters
    drawn = transformation.draw(keys, 224)[parameter.name]
    assert set(np.round(drawn, 4).tolist()) == {np.round(np.float32(v), 4).item() for v in parameter.values}
    assert np.array_equal(drawn, transformation.draw(keys, 96)[parameter.name])  # not in px
