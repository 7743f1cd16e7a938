from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import slow_after

from substyle.errors import ConfigError
from substyle.pipelines import packaged_photographs
from substyle.pipelines.sources import FolderSource

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


def test_crops_are_large_and_differ(drawn: Drawn) -> None:
    everything = [(path, crop) for path, crops in drawn for _, crop in crops]
    assert len(set(everything)) == len(everything)
    width_N, height_N = np.array([(c.right - c.left, c.bottom - c.top) for _, c in everything]).T
    shorter_N, longer_N = np.minimum(width_N, height_N), np.maximum(width_N, height_N)
    assert shorter_N.min() >= 150
    assert np.median(256 / shorter_N) < 1.5  # enlargement by a canvas of 224 px
    assert (longer_N / shorter_N).max() <= 1.51
    assert np.std(longer_N / shorter_N) > 0.05
    assert (width_N > height_N).any()
    assert (width_N < height_N).any()


def test_crops_of_all_splits_are_enlarged_alike(drawn: Drawn) -> None:
    for path, crops in drawn:
        shorter = [min(c.right - c.left, c.bottom - c.top) for _, c in crops]
        assert max(shorter) <= 1.5 * min(shorter), path.name


def test_the_folder_is_a_source_with_splits(tmp_path: Path, drawn: Drawn) -> None:
    folder = tmp_path / "photographs"
    count = packaged_photographs.write(folder)
    source = FolderSource(folder)
    assert len(source.records) == count == 272
    assert set(source.class_names) == {path.stem for path, _ in drawn}
    splits = [(record.split, record.label) for record in source.records]
    for split, number in (("train", 7), ("val", 3), ("test", 6)):
        for label in range(17):
            assert splits.count((split, label)) == number
    for path, crops in drawn:
        photograph = Image.open(path).convert("RGB")
        for number, (split, rectangle) in enumerate(crops):
            written = Image.open(folder / split / path.stem / f"{number:02d}.jpg")
            assert written.size == (rectangle.right - rectangle.left, rectangle.bottom - rectangle.top)
            off = np.array(written, dtype=float).mean((0, 1)) - np.array(photograph.crop(rectangle)).mean((0, 1))
            assert np.abs(off).max() < 2  # grey levels, due to JPEG


@pytest.mark.parametrize("side", slow_after(1, [64, 224]))
def test_canvases_are_different_crops_and_do_not_depend_on_their_number(side: int) -> None:
    canvas_NSSC, names = packaged_photographs.canvases(64, side)
    assert (canvas_NSSC.shape, canvas_NSSC.dtype) == ((64, side, side, 3), np.uint8)
    assert len({canvas.tobytes() for canvas in canvas_NSSC}) == len(set(names)) == 64
    few, some = packaged_photographs.canvases(20, side)
    np.testing.assert_array_equal(few, canvas_NSSC[:20])
    assert some == names[:20]
    for name, canvas in zip(names, canvas_NSSC, strict=True):
        (path,) = (path for path in packaged_photographs.paths() if path.stem == name.split("/")[0])
        whole = np.asarray(Image.open(path).convert("RGB"), dtype=float)
        assert whole.min() <= canvas.min() + 25  # cubic interpolation overshoots
        assert canvas.max() <= whole.max() + 25


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").touch()
    with pytest.raises(ConfigError) as caught:
        packaged_photographs.write(tmp_path)
    assert caught.value.field == "FOLDER"


def test_photographs_are_made_once_and_again_from_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "photographs"
    packaged_photographs.ensure(folder)
    assert len(FolderSource(folder).records) == 272
    (folder / "train" / "coffee" / "00.jpg").unlink()
    packaged_photographs.ensure(folder)
    assert len(FolderSource(folder).records) == 271
    monkeypatch.setattr(packaged_photographs, "SOURCES", ("numpy",))
    packaged_photographs.ensure(folder)
    assert len(FolderSource(folder).records) == 272
    assert [path.name for path in folder.parent.iterdir()] == ["photographs"]


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
    with pytest.raises(ConfigError, match="photographs"):
        packaged_photographs.ensure(tmp_path)
    assert (tmp_path / "mine.jpg").exists()
