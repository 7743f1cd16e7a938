from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tests.conftest import photograph

from substyle.engine.store.manifest import _shrunk_by_torch, as_hex, groups, shrunk


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
