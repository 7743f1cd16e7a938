from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from substyle.errors import ConfigError
from substyle.pipelines import packaged_photographs

Drawn = list[tuple[Path, list[tuple[str, packaged_photographs.Rectangle]]]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Each photograph with its crops, as drawn by `write`."""
    pytest.importorskip("skimage")
    rng = np.random.default_rng(0)
    sizes = [(path, Image.open(path).size) for path in packaged_photographs.paths()]
    return [(path, packaged_photographs.rectangles(*size, rng)) for path, size in sizes]


def test_splits_share_no_pixel(drawn: Drawn) -> None:
    for path, crops in drawn:
        width, height = Image.open(path).size
        taken = {split: np.zeros((height, width), dtype=bool) for split in ("train", "val", "test")}
        for split, (left, top, right, bottom) in crops:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            taken[split][top:bottom, left:right] = True
        for one, other in combinations(taken.values(), 2):
            assert one.any()
            assert not (one & other).any(), path.name


def test_some_photographs_have_the_same_crops(tmp_path: Path, drawn: Drawn) -> None:
    packaged_photographs.ensure(tmp_path / "some", ["moon", "brick"])
    packaged_photographs.write(tmp_path / "all")
    some = {path.relative_to(tmp_path / "some"): path.read_bytes() for path in (tmp_path / "some").rglob("*.jpg")}
    assert {path.parts[1] for path in some} == {"moon", "brick"}
    assert len(some) == 2 * sum(packaged_photographs.CROPS.values())
    assert all((tmp_path / "all" / path).read_bytes() == data for path, data in some.items())
    packaged_photographs.ensure(tmp_path / "some", ["moon"])
    assert {path.parent.name for path in (tmp_path / "some").rglob("*.jpg")} == {"moon"}
    with pytest.raises(ConfigError, match="astronaut"):
        packaged_photographs.ensure(tmp_path / "some", ["sun"])
    assert any((tmp_path / "some").rglob("*.jpg"))


def test_photographs_of_somebody_else_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").touch()
    with pytest.raises(ConfigError, match="FOLDER"):
        packaged_photographs.write(tmp_path)
    with pytest.raises(ConfigError, match="photographs"):
        packaged_photographs.ensure(tmp_path)
    assert (tmp_path / "mine.jpg").exists()
