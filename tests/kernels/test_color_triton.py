"""Pointwise colour changes in Triton against the reference. Tolerance: one level, where a value is near a half."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place

from substyle.kernels import color
from substyle.kernels.errors import ConfigError


def pictures(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def bands(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    rows, columns = (rng.integers(0, 2, (batch, n)).astype(np.uint8) * np.uint8(255) for n in (height, width))
    return torch.from_numpy(rows), torch.from_numpy(columns)


@pytest.mark.parametrize("shape", [(3, 18, 34), (2, 1, 20), (1, 20, 1), (2, 0, 3), (0, 8, 8)])
@pytest.mark.parametrize(("variants", "banded"), [(4, True), (1, False), (0, True)])
def test_equals_the_reference(place: Place, shape: tuple[int, int, int], variants: int, banded: bool) -> None:
    x, maps = pictures(*shape, 3), torch.randn(variants, shape[0], 3, 4, generator=torch.Generator().manual_seed(1))
    maps[..., 3] *= 100
    masks = bands(*shape) if banded else None
    there = None if masks is None else tuple(mask.to(place.device) for mask in masks)
    got = place.load("color_triton").colours(x.to(place.device), maps.to(place.device), there).cpu()
    expected = color.colours_reference(x, maps, masks)
    assert got.shape == expected.shape
    assert got.dtype == torch.uint8
    difference = (got.int() - expected.int()).abs()
    assert (difference <= 1).all()
    assert (difference > 0).float().sum() <= 0.002 * difference.numel() + 1
    if banded:
        assert torch.equal(got[-1], expected[-1])


def test_a_piece_of_a_tensor_that_begins_between_words(place: Place) -> None:
    x = pictures(1, 49)[0, 1:].view(1, 4, 4, 3)
    maps = color.luma(1, place.device)[None]
    there = torch.empty(49, dtype=torch.uint8, device=place.device)[1:].view(1, 4, 4, 3).copy_(x)
    assert there.data_ptr() % 4 == 1
    got = place.load("color_triton").colours(there, maps, None)
    assert (got.cpu().int() - color.colours_reference(x, maps.cpu()).int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(2, 60, 50, 3), (1, 1, 1, 1), (3, 0, 2, 3), (0, 5, 5, 3)])
def test_sums_are_exact(place: Place, shape: tuple[int, ...]) -> None:
    x = pictures(*shape)
    got = place.load("color_triton").total(x.to(place.device))
    assert got.dtype == torch.int64
    assert torch.equal(got.cpu(), x.flatten(1).sum(1, dtype=torch.int64))


def test_bad_input_is_named(place: Place) -> None:
    made = place.load("color_triton")
    x, maps = pictures(2, 4, 4, 3).to(place.device), torch.zeros(1, 2, 3, 4, device=place.device)
    with pytest.raises(ConfigError, match=r"canvas\.shape"):
        made.colours(x[..., :1].contiguous(), maps, None)
    with pytest.raises(ConfigError, match=r"canvas\.shape: got \(3, 3\).* 4"):
        made.colours(x[:, :3, :3].contiguous(), maps, None)
    with pytest.raises(ConfigError, match=r"maps\.shape"):
        made.colours(x, maps[:, :1].contiguous(), None)
    with pytest.raises(ConfigError, match=r"rows\.shape"):
        made.colours(x, maps, tuple(mask.to(place.device) for mask in bands(2, 5, 4)))
