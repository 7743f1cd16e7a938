"""Random orders against plain integers, and against uniform ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from substyle.kernels import philox
from substyle.kernels.shuffle import Shuffle


def plain(position: int, count: int, seed: int) -> int:
    """One item, in Python integers of 64 bits."""
    mask, odd = (1 << 64) - 1, 0x2545F4914F6CDD1D

    def mixed(value: int, key: int) -> int:
        product = ((value & mask) ^ (key & mask)) * odd & mask
        return (product ^ product >> 32) & 0xFFFFFFFF

    rounds = 12 if count < 256 else 5
    words = philox.words(philox.keys_of_seeds([seed]), "x", 6 * rounds)[0].view(np.int64).tolist()
    epoch, item = divmod(position, count)
    base = min(count, max(2, math.isqrt(count)))
    rest = count // base
    for turn, first, second in zip(words[::3], words[1::3], words[2::3], strict=True):
        item = (item + turn) % count
        if item < base * rest:
            high, low = divmod(item, base)
            low = (low + mixed(high + epoch * odd, first)) % base
            high = (high + mixed(low + epoch * odd, second)) % rest
            item = high * base + low
    return item


@pytest.mark.parametrize("count", [1, 3, 255, 256, 1_281_167, 1 << 40])
def test_items_by_plain_integers(count: int) -> None:
    position = torch.cat([torch.arange(20), torch.randint(1 << 45, (50,), generator=torch.Generator().manual_seed(0))])
    before = position.clone()
    for seed in (0, 2**63 - 1):
        assert Shuffle(count, seed, "x")(position).tolist() == [plain(p, count, seed) for p in position.tolist()]
    assert torch.equal(position, before)


def test_each_item_comes_once_an_epoch() -> None:
    for count in (*range(1, 40), 255, 256, 257, 10_007):
        epochs = Shuffle(count, 0, "x")(torch.arange(3 * count)).view(3, count)
        assert torch.equal(epochs.sort().values, torch.arange(count).expand(3, -1)), count


@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_orders_of_few_items_are_equally_likely(count: int) -> None:
    epochs = Shuffle(count, 0, "x")(torch.arange(30_000 * count)).view(-1, count).numpy()
    found, times = np.unique(epochs @ count ** np.arange(count), return_counts=True)
    assert len(found) == math.factorial(count)
    assert stats.chisquare(times).pvalue > 1e-4
