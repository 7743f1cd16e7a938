from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse.csgraph import connected_components
from tests.conftest import photograph

from substyle.engine.store.manifest import _shrunk_by_numpy, _shrunk_by_torch, as_hex, groups, shrunk


def canvas(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.resize((224, 224))))


def test_copies_are_found_and_others_are_not() -> None:
    pictures = [photograph(i) for i in range(12)]
    copy = Image.fromarray((np.array(pictures[3]).astype(int) * 0.99).astype(np.uint8))
    small = shrunk(torch.stack([canvas(p) for p in [*pictures, copy, pictures[7]]]))
    found = groups(small.numpy())
    assert found[:12].tolist() == list(range(12))
    assert found[12:].tolist() == [3, 7]


def test_none() -> None:
    assert groups(np.zeros((0, 8, 9), np.uint8)).shape == (0,)


def test_no_canvases_have_no_thumbnails() -> None:
    empty = torch.zeros(0, 32, 32, 3, dtype=torch.uint8)
    assert as_hex(shrunk(empty).numpy()) == []
    assert _shrunk_by_torch(empty[:, ::2, ::2]).shape == (0, 8, 9)


def test_agrees_with_all_pairs() -> None:
    """Independent pixels, plain pictures, whose hashes are equal, and pairs that differ in three or four bits."""
    rng = np.random.default_rng(0)
    count = 200
    plain = np.broadcast_to(np.arange(count)[:, None, None], (count, 8, 9))
    few = np.concatenate([rng.integers(0, 256, (count, 8, 9)), plain])
    near = [few + rng.integers(-noise, noise + 1, few.shape) for noise in (1, 8)]
    step = rng.choice([-1, 1], (count, 64))
    other = np.copy(step)
    for n, row in enumerate(other):
        row[rng.choice(64, 3 + n % 2, replace=False)] *= -1
    walks = [128 + np.cumsum(each.reshape(count, 8, 8), axis=2) for each in (step, other)]
    bits_differ = [np.pad(walk, ((0, 0), (0, 0), (1, 0)), constant_values=128) for walk in walks]
    every = np.clip(np.concatenate([few, *near, *bits_differ]), 0, 255).astype(np.uint8)
    bits = (every[:, :, 1:] > every[:, :, :-1]).reshape(len(every), 64)
    flat = every.reshape(len(every), -1).astype(int)
    few_bits = np.array([(bits != one).sum(axis=1) <= 3 for one in bits])
    few_levels = np.array([np.abs(flat - one).mean(axis=1) <= 4 for one in flat])
    _, first, group = np.unique(connected_components(few_bits & few_levels)[1], return_index=True, return_inverse=True)
    assert groups(every).tolist() == first[group].tolist()
    assert 3 < len(first) < len(every) - 300


def test_many_equal_ones_take_little_memory() -> None:
    small = np.random.default_rng(0).integers(0, 256, (20_000, 8, 9), dtype=np.uint8)
    small[5:] = small[5]  # such as a placeholder: 200 million pairs
    assert groups(small).tolist() == [0, 1, 2, 3, 4, *[5] * 19_995]


@pytest.mark.parametrize("side", [32, 36, 64, 224])
def test_a_device_s_thumbnails_are_those_of_the_cpu_but_for_rounding(side: int) -> None:
    rng = np.random.default_rng(side)
    noise = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    flat = np.broadcast_to(np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None], (5, side, side, 3))
    some = torch.from_numpy(np.concatenate([noise, flat]))[:, ::2, ::2]
    on_cpu = torch.from_numpy(_shrunk_by_numpy(some.numpy()))
    on_device = _shrunk_by_torch(some)
    assert (on_device.shape, on_device.dtype) == ((8, 8, 9), torch.uint8)
    difference = (on_device.int() - on_cpu.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    whole = shrunk(torch.from_numpy(np.concatenate([noise, flat])))
    assert as_hex(on_cpu.numpy()) == [bytes(small.flatten().tolist()).hex() for small in whole]
