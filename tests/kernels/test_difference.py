"""Distinctness off the CPU. For the CPU see test_variants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.kernels import difference


def pictures(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(2, 60, 50, 3), (1, 1, 1, 1), (3, 0, 2, 3), (0, 5, 5, 3), (2, 33, 31, 3)])
def test_sums_are_exact(shape: tuple[int, ...]) -> None:
    a, b = pictures(0, *shape), pictures(1, *shape)
    expected = (a.long() - b.long()).abs().flatten(1).sum(1)
    assert difference.total(a, b).dtype == torch.int64
    assert torch.equal(difference.total(a, b), expected)


def test_opposite_pictures() -> None:
    black = torch.zeros(2, 120, 100, 3, dtype=torch.uint8)
    assert difference.total(black, ~black).tolist() == [255 * 36000] * 2


def test_off_the_cpu_all_rows_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "total", lambda a, b: torch.tensor([74, 75, 76]))
    elsewhere = torch.empty(3, 5, 5, 3, dtype=torch.uint8, device="meta")
    assert difference.distinct(elsewhere, elsewhere).tolist() == [False, True, True]


@pytest.mark.parametrize("side", [1, 17, 50])
def test_both_devices_say_the_same(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near one level on average, where the order of a floating-point sum would matter."""
    a = pictures(side, 30, side, side, 3)
    change = pictures(side + 1, 30, side, side, 3) % 3
    b = torch.where(a > 127, a - change, a + change)
    on_gpu = difference.total(a, b) >= a[0].numel()
    assert torch.equal(on_gpu, difference.distinct(a, b))


@pytest.mark.parametrize("where", [(0, 0, 0, 0), (1, 3, 16, 2), (2, 31, 30, 1), None])
def test_subtle_differences_are_of_any_value(where: tuple[int, ...] | None) -> None:
    a = torch.randint(0, 255, (3, 32, 31, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    if where is not None:
        b[where] += 1
    expected = (a != b).flatten(1).any(1)
    assert expected.sum() == (where is not None)
    assert torch.equal(difference.distinct(a, b, subtle=True), expected)
    assert not difference.distinct(a, b).any()
    assert torch.equal(difference.total(a, b) >= 1, expected)
