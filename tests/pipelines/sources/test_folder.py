"""Folders of images: keys, labels, splits, and what is skipped."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from substyle.errors import ConfigError
from substyle.pipelines.sources import FolderSource, open_source


def fill(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return root


def described(source: FolderSource) -> list[tuple[str, str | None, str | None]]:
    names = source.class_names
    return [(r.key, None if r.label is None else names[r.label], r.split) for r in source.records]


def test_class_folders_are_labels(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, "dog/b.jpg", "cat/a.JPEG", "dog/deep/er/c.png", "cat/notes.txt"))
    assert source.class_names == ("cat", "dog")
    assert described(source) == [
        ("cat/a.JPEG", "cat", None),
        ("dog/b.jpg", "dog", None),
        ("dog/deep/er/c.png", "dog", None),
    ]
    assert source.records[1].read() == b"dog/b.jpg"


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("val", ["val", "VALIDATION", "valid", "Dev"])
@pytest.mark.parametrize("test", ["TEST", "testing"])
def test_split_folders(tmp_path: Path, train: str, val: str, test: str) -> None:
    root = fill(tmp_path, f"{train}/cat/a.jpg", f"{train}/dog/b.jpg", f"{val}/dog/c.jpg", f"{test}/d.jpg")
    source = FolderSource(fill(root, "notes/readme.txt"))
    assert source.class_names == ("cat", "dog")
    assert sorted(described(source)) == sorted([
        (f"{test}/d.jpg", None, "test"),
        (f"{train}/cat/a.jpg", "cat", "train"),
        (f"{train}/dog/b.jpg", "dog", "train"),
        (f"{val}/dog/c.jpg", "dog", "val"),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (("Train/a/1.jpg", "other/b/2.jpg", "cats/3.jpg"), "Train/ .*cats/, other/ in "),
        (("train/a/1.jpg", "2.jpg"), r"train/ .*\(1\) in "),
        (("val/a/1.jpg", "test/a/2.jpg"), "test/, val/ .*train/ in "),
        (("val/a/1.jpg",), "val/ .*train/ in "),
        ((*(f"c{i}/1.jpg" for i in range(10)), "dev/2.jpg"), "dev/ .*c0/, .*, c7/ and 2 more in "),
    ],
)
def test_folders_that_are_partly_splits_are_refused(tmp_path: Path, names: tuple[str, ...], given: str) -> None:
    with pytest.raises(ConfigError, match=rf"got '{given}.*source.splits = folders .*source.splits = none") as caught:
        FolderSource(fill(tmp_path, *names))
    assert caught.value.field == "source.splits"


def test_what_is_no_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = FolderSource(tmp_path)
    assert [r.key for r in source.records] == ["a.jpg"]
    assert source.refused == ("gone.jpg", "loop.jpg", "pipe.jpg")
    assert all(name in caplog.text for name in source.refused)


def test_a_class_folder_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path, "cat/a.jpg", "dog/b.jpg")
    scan = os.scandir

    def refuse(path: str) -> Any:  # noqa: ANN401
        if path.endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert [r.key for r in FolderSource(root).records] == ["cat/a.jpg"]
    assert re.search("dog .*Permission denied", caplog.text)


def test_stores_and_results_are_no_photographs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path, "cat/a.jpg", "runs/demo/gallery/g.png", "runs/demo/substyle.json", "runs/mine/b.jpg")
    (root / "cat" / "link").symlink_to(root / "runs" / "demo")
    (root / "dog" / "substyle.json").mkdir(parents=True)  # only a file is a marker
    fill(root, "dog/c.jpg")
    source = FolderSource(root)
    assert [r.key for r in source.records] == ["cat/a.jpg", "dog/c.jpg", "runs/mine/b.jpg"]
    assert source.refused == ()
    assert not caplog.text
    for opened in (FolderSource, open_source):
        with pytest.raises(ConfigError, match=r"substyle\.json") as caught:
            opened(root / "runs" / "demo")
        assert (caught.value.field, caught.value.given) == ("images", str(root / "runs" / "demo"))
