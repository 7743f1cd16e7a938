"""Keyed dropout: documented counter, fraction of kept units, dependence on seed, step and unit only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.kernels import philox, probe_data

CPU = torch.device("cpu")


def test_bytes_have_the_documented_counter() -> None:
    got = probe_data.random_bytes([7, -1], 3, 40)
    name = philox.name_word("dropout")
    for row, key in zip(got, (7, 2**64 - 1), strict=True):
        for j in (0, 1, 5, 15, 16, 39):
            counter = [np.array([c], np.uint64) for c in (j // 16, 3, name & 0xFFFFFFFF, name >> 32)]
            words = philox.philox_4x32(counter, [np.array([k], np.uint64) for k in (key & 0xFFFFFFFF, key >> 32)])
            word = int(words[j % 16 // 4][0])
            assert row[j] == word >> 8 * (j % 4) & 0xFF


@pytest.mark.parametrize("threshold", [0, 51, 128, 256])
def test_share_of_kept_units(threshold: int) -> None:
    masks = probe_data.masks([0, 1], 5, threshold, (300, 200))
    share, count = 1 - threshold / 256, 60000
    for mask in masks:
        assert abs(mask.double().mean().item() - share) <= 4 * (share * (1 - share) / count) ** 0.5
    if 0 < threshold < 256:
        assert 0 < (masks[0] == masks[1]).double().mean() < 1


def test_seed_step_and_unit_alone_decide() -> None:
    whole = probe_data.random_bytes([1, 2, 3], 9, 100)
    assert np.array_equal(probe_data.random_bytes([2], 9, 60)[0], whole[1, :60])
    assert (probe_data.random_bytes([2], 10, 100)[0] != whole[1]).mean() > 0.9
    assert (whole[0] != whole[1]).mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_of_one_seed_share_its_mask(dtype: torch.dtype) -> None:
    hidden = torch.randn(6, 8, 10).to(dtype)
    hidden[0, 0, 0] = float("nan")
    before = hidden.clone()
    masks = probe_data.masks([4, 5], 0, 100, (8, 10))
    drawn = probe_data.device_keys([4, 5], CPU), probe_data.device_steps([0], CPU)
    assert probe_data.relu_drop_(hidden, *drawn, 100) is hidden
    for k in range(6):
        expected = torch.where(masks[k % 2], before[k].relu(), torch.zeros((), dtype=dtype))
        assert torch.equal(hidden[k].nan_to_num(9), expected.nan_to_num(9))


def test_edges() -> None:
    assert probe_data.masks([], 0, 1, (3, 4)).shape == (0, 3, 4)
    assert probe_data.masks([1, 2], 0, 1, (0, 4)).shape == (2, 0, 4)
    assert probe_data.random_bytes([1], 2**32 - 1, 1).shape == (1, 1)
