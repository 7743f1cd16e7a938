"""Transformations of the kind noise: parameters, strength and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.kernels import philox
from substyle.pipelines.transforms import noise as module
from substyle.pipelines.transforms.base import get

NAMES = ("gaussian_noise", "impulse_noise", "shot_noise")
KEYS = philox.image_keys(7, [f"{i}.jpg" for i in range(6)])


def picture(batch: int, side: int = 96) -> torch.Tensor:
    ramp = torch.linspace(0, 255, side).to(torch.uint8)
    return torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side), ramp.flip(0).expand(side, side)], -1
    )[None].repeat(batch, 1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_visible_repeatable_and_by_key(name: str) -> None:
    transformation = get(name)
    x = picture(6)
    noisy = transformation.function(x, transformation.draw(KEYS, 96), KEYS)
    assert noisy.shape == x.shape
    assert noisy.dtype == torch.uint8
    assert (noisy.float() - x.float()).abs().mean(dim=(1, 2, 3)).min() > 5
    for i in range(6):
        alone = transformation.function(x[i : i + 1], transformation.draw(KEYS[i : i + 1], 96), KEYS[i : i + 1])
        assert torch.equal(alone[0], noisy[i])
    assert not torch.equal(noisy[0], noisy[1])


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name: str) -> None:
    transformation = get(name)
    assert transformation.function(picture(0), transformation.draw(KEYS[:0], 96), KEYS[:0]).shape == (0, 96, 96, 3)


def test_names_do_not_share_their_noise() -> None:
    """The noise of two transformations is independent for the same image key."""
    x = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    gaussian = module.gaussian_noise(x, {"std": np.full(1, 0.1, np.float32)}, KEYS[:1]).double().flatten()
    shot = module.shot_noise(x, {"rate": np.full(1, 25, np.float32)}, KEYS[:1]).double().flatten()
    assert torch.corrcoef(torch.stack([gaussian, shot]))[0, 1].abs() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_strengths_are_those_declared(name: str) -> None:
    transformation = get(name)
    keys = philox.image_keys(0, [str(i) for i in range(200)])
    (parameter,) = transformation.parameters
    drawn = transformation.draw(keys, 224)[parameter.name]
    assert set(np.round(drawn, 4).tolist()) == {np.round(np.float32(v), 4).item() for v in parameter.values}
    assert np.array_equal(drawn, transformation.draw(keys, 96)[parameter.name])  # not in px
