from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
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
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (20, 8, 9), dtype=np.uint8)
    near = np.clip(base.astype(int) + rng.integers(-3, 4, base.shape), 0, 255).astype(np.uint8)
    every = np.concatenate([base, near])
    bits = (every[:, :, 1:] > every[:, :, :-1]).reshape(len(every), 64)
    parent = list(range(len(every)))
    for i in range(len(every)):
        for j in range(i):
            differing = int((bits[i] != bits[j]).sum())
            levels = float(np.abs(every[i].astype(int) - every[j]).mean())
            if differing <= 3 and levels <= 4:
                roots = [i, j]
                for k in (0, 1):
                    while parent[roots[k]] != roots[k]:
                        roots[k] = parent[roots[k]]
                parent[max(roots)] = min(roots)

    def root(i: int) -> int:
        return i if parent[i] == i else root(parent[i])

    expected = [root(i) for i in range(len(every))]
    assert groups(every).tolist() == expected
    assert expected != list(range(len(every)))


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
