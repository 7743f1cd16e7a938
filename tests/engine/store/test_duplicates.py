from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tests.conftest import photograph

from substyle.engine.store.duplicates import groups, thumbnails


def canvas(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.resize((224, 224))))


def test_copies_are_found_and_others_are_not() -> None:
    pictures = [photograph(i) for i in range(12)]
    copy = Image.fromarray((np.array(pictures[3]).astype(int) * 0.99).astype(np.uint8))
    small = thumbnails(torch.stack([canvas(p) for p in [*pictures, copy, pictures[7]]]))
    found = groups(small)
    assert found[:12].tolist() == list(range(12))
    assert found[12:].tolist() == [3, 7]


def test_same_hash_but_other_brightness_is_no_duplicate() -> None:
    dark = torch.full((224, 224, 3), 20, dtype=torch.uint8)
    bright = torch.full((224, 224, 3), 200, dtype=torch.uint8)
    assert groups(thumbnails(torch.stack([dark, bright, dark]))).tolist() == [0, 1, 0]


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
    assert groups([row.tobytes().hex() for row in every]).tolist() == expected
    assert expected != list(range(len(every)))


def test_none() -> None:
    assert groups([]).shape == (0,)
