"""Keyed dropout: documented counter, fraction of kept units, dependence on seed, step and unit only."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from substyle.kernels import philox, probe_data

SEEDS = [7, -1, 2**63 + 5]


def masks(seeds: Sequence[int], first: int, threshold: int, steps: int, *shape: int) -> torch.Tensor:
    kept = torch.empty(steps, len(seeds), *shape, dtype=torch.bool)
    probe_data.draw_masks(kept, seeds, first, threshold)
    return kept


@pytest.mark.parametrize("step", [3, 2**32 - 1])
def test_bytes_have_the_documented_counter(step: int) -> None:
    name = philox.name_word("dropout")
    kept = {level: masks([7, -1], step, level, 1, 5, 8) for level in range(257)}
    drawn = sum(mask[0].flatten(1).int() for mask in kept.values()) - 1  # a byte is kept by all thresholds up to itself
    for row, key in zip(drawn, (7, 2**64 - 1), strict=True):
        for j in (0, 1, 5, 15, 16, 39):
            counter = [np.array([c], np.uint64) for c in (j // 16, step, name & 0xFFFFFFFF, name >> 32)]
            words = philox.philox_4x32(counter, [np.array([k], np.uint64) for k in (key & 0xFFFFFFFF, key >> 32)])
            word = int(words[j % 16 // 4][0])
            assert row[j] == word >> 8 * (j % 4) & 0xFF


def test_seed_step_and_unit_alone_decide() -> None:
    whole = masks([1, 2, 3], 9, 128, 2, 10, 10)
    assert torch.equal(masks([2], 9, 128, 1, 6, 10)[0, 0], whole[0, 1, :6])
    assert torch.equal(masks([2], 10, 128, 1, 10, 10)[0, 0], whole[1, 1])
    for a, b in ((whole[0, 0], whole[0, 1]), (whole[0, 1], whole[1, 1])):
        assert 0.3 < (a == b).double().mean() < 0.7


@pytest.mark.parametrize("shape", [(5, 37), (1, 1), (33, 32)])
@pytest.mark.parametrize(("first", "threshold"), [(0, 51), (2**32 - 2, 128)])
def test_a_gpu_draws_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], first: int, threshold: int
) -> None:
    """Its branch, computed on a CPU."""
    expected = masks(SEEDS, first, threshold, 2, *shape)
    found = torch.empty_like(expected)
    flat = found.flatten(2)
    elsewhere = SimpleNamespace(shape=flat.shape, device=SimpleNamespace(type="cuda"))
    cpu, empty, ge = torch.device("cpu"), torch.empty, torch.ge
    monkeypatch.setattr(probe_data, "upload", lambda values, device: torch.from_numpy(values))
    monkeypatch.setattr(torch, "empty", lambda *given, dtype, device: empty(*given, dtype=dtype, device=cpu))
    monkeypatch.setattr(torch, "ge", lambda a, b, *, out: ge(a, b, out=flat))
    probe_data.draw_masks(SimpleNamespace(flatten=lambda start: elsewhere), SEEDS, first, threshold)  # type: ignore[arg-type]
    assert torch.equal(found, expected)
