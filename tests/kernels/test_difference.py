"""Distinctness on both kinds of devices. For its definition see test_variants."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.conftest import pictures

from substyle.kernels import difference


@pytest.mark.parametrize("shape", [(3, 0, 2, 3), (0, 5, 5, 3), (2, 33, 31, 3)])
def test_sums_are_exact(shape: tuple[int, ...]) -> None:
    a, b = pictures(*shape), pictures(*shape, seed=1)
    found = difference.total(a, b)
    assert found.dtype == torch.int64
    assert torch.equal(found, (a.long() - b.long()).abs().flatten(1).sum(1))


def test_off_the_cpu_all_rows_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "total", lambda a, b: torch.tensor([74, 75, 76]))
    elsewhere = torch.empty(3, 5, 5, 3, dtype=torch.uint8, device="meta")
    assert difference.distinct(elsewhere, elsewhere).tolist() == [False, True, True]


@pytest.mark.parametrize("side", [1, 17, 50])
def test_both_devices_say_the_same(side: int) -> None:
    """Near one level on average, where the order of a floating-point sum would matter."""
    a = pictures(30, side, side, 3, seed=side)
    change = pictures(30, side, side, 3, seed=side + 1) % 3
    b = torch.where(a > 127, a - change, a + change)
    assert torch.equal(difference.total(a, b) >= a[0].numel(), difference.distinct(a, b))
