"""Distinctness off the CPU: both paths, and the exact sums in Triton. For the CPU see test_variants."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tests.kernels.conftest import Place
from tests.kernels.test_dispatch import fake

from substyle.kernels import color
from substyle.kernels.errors import ConfigError


def pictures(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(2, 60, 50, 3), (1, 1, 1, 1), (3, 0, 2, 3), (0, 5, 5, 3), (2, 33, 31, 3)])
def test_sums_are_exact(place: Place, shape: tuple[int, ...]) -> None:
    a, b = pictures(0, *shape), pictures(1, *shape)
    got = place.load("color_triton").difference_total(a.to(place.device), b.to(place.device))
    expected = (a.long() - b.long()).abs().flatten(1).sum(1)
    assert got.dtype == torch.int64
    assert torch.equal(got.cpu(), expected)
    assert torch.equal(color.total_reference(a, b), expected)


@pytest.mark.slow
def test_opposite_pictures(place: Place) -> None:
    black = torch.zeros(2, 120, 100, 3, dtype=torch.uint8, device=place.device)
    assert place.load("color_triton").difference_total(black, ~black).tolist() == [255 * 36000] * 2


def test_bad_input_is_named(place: Place) -> None:
    made, x = place.load("color_triton"), pictures(0, 2, 4, 4, 3).to(place.device)
    with pytest.raises(ConfigError, match=r"b\.shape"):
        made.difference_total(x, x[:1])
    with pytest.raises(ConfigError, match=r"a\.dtype"):
        made.difference_total(x.int(), x)


@pytest.mark.parametrize("used", [True, False])
def test_both_sides_of_the_fork(monkeypatch: pytest.MonkeyPatch, used: bool) -> None:
    stand_in, plain = fake(monkeypatch, "color_triton"), Mock()
    monkeypatch.setattr(color, "on_triton", lambda tensor: used)
    monkeypatch.setattr(color, "total_reference", plain)
    totals = torch.tensor([74, 75, 76])
    stand_in.difference_total.return_value = plain.return_value = totals
    elsewhere = torch.empty(3, 5, 5, 3, dtype=torch.uint8, device="meta")
    assert color.distinct(elsewhere.transpose(1, 2), elsewhere).tolist() == [False, True, True]
    assert (stand_in.difference_total.called, plain.called) == (used, not used)
    if used:
        assert all(given.is_contiguous() for given in stand_in.difference_total.call_args.args)
    color.distinct(*(torch.zeros(1, 2, 2, 3, dtype=torch.uint8) for _ in range(2)))
    assert (stand_in.difference_total.call_count, plain.call_count) == (used, not used)


@pytest.mark.parametrize("side", [1, 17, 50])
def test_both_devices_say_the_same(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near one level on average, where the order of a floating-point sum would matter."""
    a = pictures(side, 30, side, side, 3)
    change = pictures(side + 1, 30, side, side, 3) % 3
    b = torch.where(a > 127, a - change, a + change)
    on_gpu = color.total_reference(a, b) >= a[0].numel()
    assert torch.equal(on_gpu, color.distinct(a, b))


@pytest.mark.parametrize("where", [(0, 0, 0, 0), (1, 3, 16, 2), (2, 31, 30, 1), None])
def test_subtle_differences_are_of_any_value(where: tuple[int, ...] | None) -> None:
    a = torch.randint(0, 255, (3, 32, 31, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    if where is not None:
        b[where] += 1
    expected = (a != b).flatten(1).any(1)
    assert expected.sum() == (where is not None)
    assert torch.equal(color.distinct(a, b, subtle=True), expected)
    assert not color.distinct(a, b).any()
    assert torch.equal(color.total_reference(a, b) >= 1, expected)
