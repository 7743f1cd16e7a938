"""NumPy archives of images: pixels, labels, splits, damage."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from substyle.errors import ConfigError
from substyle.pipelines.sources import TableSource, describe, kind_of, open_source
from substyle.pipelines.sources import table as table_module

RNG = np.random.default_rng(0)
TRAIN, VAL = RNG.integers(0, 256, (7, 28, 28, 3), np.uint8), RNG.integers(0, 256, (3, 28, 28), np.uint8)


def archive(path: Path, *, compressed: bool = True, **arrays: Any) -> Path:  # noqa: ANN401
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("compressed", [False, True])
def test_pixels_labels_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    monkeypatch.setattr(table_module, "BLOCK_BYTES", 2 * 28 * 28 * 3)
    monkeypatch.setattr(table_module, "BLOCKS", 1)  # so that readers go back in the array
    labels = np.array([[10], [2], [0], [2], [10], [0], [0]], np.uint8)
    path = archive(
        tmp_path / "bloodmnist.npz",
        compressed=compressed,
        train_images=TRAIN,
        train_labels=labels,
        val_images=VAL,
        val_labels=np.array([2, 0, 10]),
    )
    source = open_source(path)
    assert isinstance(source, TableSource)
    assert kind_of(path) == "npz"
    assert source.class_names == ("0", "2", "10")
    assert [record.key for record in source.records][6:8] == ["train/000000006", "val/000000000"]
    assert [record.split for record in source.records] == ["train"] * 7 + ["val"] * 3
    assert [record.label for record in source.records] == [2, 1, 0, 1, 2, 0, 0, 1, 0, 2]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda record: pixels(record.read()), [*source.records] * 3))
    for shown, expected in zip(found, [*TRAIN, *np.repeat(VAL[..., None], 3, axis=3)] * 3, strict=True):
        np.testing.assert_array_equal(shown, expected)
    assert describe(source) == (
        f"npz {path}: 10 images, 3 classes, splits train 7, val 3 (from the names of the arrays)"
    )


def test_several_labels_make_no_classes(tmp_path: Path) -> None:
    source = open_source(archive(tmp_path / "x.npz", test_images=VAL, test_labels=np.zeros((3, 14), np.uint8)))
    assert [record.label for record in source.records] == [None] * 3
    assert source.understood.remarks == ("several labels per image in test_labels: no classes",)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"other": TRAIN},
        {"images": TRAIN.astype(np.float32)},
        {"images": TRAIN[..., :2]},
        {"images": TRAIN[0, 0]},
        {"images": TRAIN[:0]},
        {"images": np.asfortranarray(TRAIN)},
        {"images": TRAIN, "labels": np.zeros(6, np.int64)},
        {"images": TRAIN, "labels": np.zeros(7)},
        {"images": np.array([None])},
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="images"):
        open_source(archive(tmp_path / "x.npz", **arrays))


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", images=TRAIN)
    record = open_source(path).records[0]
    archive(path, images=np.concatenate([TRAIN, TRAIN]))
    with pytest.raises(OSError, match="changed"):
        record.read()
