"""NumPy archives of images: pixels, labels, splits, damage."""

from __future__ import annotations

import errno
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from substyle.errors import ConfigError
from substyle.pipelines.decode import Decoder
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


def test_images_are_decoded_to_their_pixels(tmp_path: Path) -> None:
    big = RNG.integers(0, 256, (2, 16, 16, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    source = open_source(archive(tmp_path / "x.npz", images=big))
    assert source.class_names == ()
    assert source.understood.remarks == ("no array labels: no classes",)
    decoded = Decoder(64, 2, 1)([record.read() for record in source.records])
    expected = [Image.fromarray(each).resize((73, 73), Image.Resampling.BICUBIC).crop((4, 4, 68, 68)) for each in big]
    for canvas, picture in zip(decoded.canvas_BSSC, expected, strict=True):
        assert np.abs(canvas.numpy().astype(int) - np.asarray(picture)).mean() < 4


def test_a_negative_label_is_none(tmp_path: Path) -> None:
    source = open_source(archive(tmp_path / "x.npz", test_images=VAL, test_labels=np.array([5, -1, 0])))
    assert source.class_names == ("0", "5")
    assert [record.label for record in source.records] == [1, None, 0]


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


@pytest.mark.parametrize("array", [False, True])
def test_what_is_no_archive_is_refused(tmp_path: Path, array: bool) -> None:
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.save(file, TRAIN) if array else file.write(b"PK\x03\x04 no archive")
    with pytest.raises(ConfigError, match=r"x\.npz"):
        open_source(path)


def test_a_header_of_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": (1 << 40, 28, 28), "fortran_order": False, "descr": "|u1"})
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("images.npy", file.getvalue() + VAL.tobytes())
    with pytest.raises(ConfigError, match="bytes for an array"):
        open_source(path)


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", images=TRAIN)
    record = open_source(path).records[0]
    archive(path, images=np.concatenate([TRAIN, TRAIN]))
    with pytest.raises(OSError, match="changed"):
        record.read()


def test_damage_spoils_only_what_follows_in_its_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "BLOCK_BYTES", 3 * 28 * 28 * 3)
    noise = RNG.integers(0, 256, (60, 28, 28, 3), np.uint8)
    path = archive(tmp_path / "x.npz", train_images=noise, val_images=VAL)
    data = bytearray(path.read_bytes())
    data[70_000:80_000] = b"\xff" * 10_000
    path.write_bytes(data)
    failed: list[int | None] = []
    for number, record in enumerate(open_source(path).records):
        try:
            record.read()
        except OSError as error:
            failed.append(number if error.errno == errno.EIO else None)
    assert failed
    assert failed == list(range(60 - len(failed), 60))
    assert len(failed) < 40
