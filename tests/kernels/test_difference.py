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
