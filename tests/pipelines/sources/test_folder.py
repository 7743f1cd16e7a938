"""Folders of images and of real variants: keys, labels, splits, what is skipped, and the summary on one line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.sources.conftest import described, fill

from substyle.errors import ConfigError
from substyle.pipelines.sources import FolderSource, Source, SourceConfig, describe, open_source


def test_class_folders_are_labels(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, "dog/b.jpg", "cat/a.JPEG", "dog/deep/er/c.png", "cat/notes.txt"))
    assert source.class_names == ("cat", "dog")
    assert described(source) == {
        "cat/a.JPEG": ("cat", None, b"cat/a.JPEG"),
        "dog/b.jpg": ("dog", None, b"dog/b.jpg"),
        "dog/deep/er/c.png": ("dog", None, b"dog/deep/er/c.png"),
    }


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "TEST"), ("Training", "VALIDATION", "testing"), ("train", "Dev", "test")],
)
def test_split_folders(tmp_path: Path, train: str, val: str, test: str) -> None:
    names = {f"{train}/cat/a.jpg": ("cat", "train"), f"{train}/dog/b.jpg": ("dog", "train")}
    names |= {f"{val}/dog/c.jpg": ("dog", "val"), f"{test}/d.jpg": (None, "test")}
    source = FolderSource(fill(tmp_path, *names, "notes/readme.txt"))
    assert source.class_names == ("cat", "dog")
    assert {key: found[:2] for key, found in described(source).items()} == names


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (("Train/a/1.jpg", "other/b/2.jpg", "cats/3.jpg"), "Train/ .*cats/, other/ in "),
        (("train/a/1.jpg", "2.jpg"), r"train/ .*\(1\) in "),
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
    assert list(described(source)) == ["a.jpg"]
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
    assert list(described(FolderSource(root))) == ["cat/a.jpg"]
    assert re.search("dog .*Permission denied", caplog.text)


def test_stores_and_results_are_no_photographs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path, "cat/a.jpg", "runs/demo/gallery/g.png", "runs/demo/substyle.json", "runs/mine/b.jpg")
    (root / "cat" / "link").symlink_to(root / "runs" / "demo")
    (root / "dog" / "substyle.json").mkdir(parents=True)  # only a file is a marker
    source = FolderSource(fill(root, "dog/c.jpg"))
    assert list(described(source)) == ["cat/a.jpg", "dog/c.jpg", "runs/mine/b.jpg"]
    assert source.refused == ()
    assert not caplog.text
    for opened in (FolderSource, open_source):
        with pytest.raises(ConfigError, match=r"substyle\.json") as caught:
            opened(root / "runs" / "demo")
        assert (caught.value.field, caught.value.given) == ("images", str(root / "runs" / "demo"))


# --- the summary ------------------------------------------------------------------------------------------------------


def said(path: Path, config: SourceConfig | None = None) -> str:
    """The summary, without the test's folder."""
    line = describe(open_source(path, config))
    assert "\n" not in line
    return line.replace(f"{path.parent}/", "")


def test_a_folder_with_splits(tmp_path: Path) -> None:
    names = [f"{split}/{label}/{i}.jpg" for split in ("Train", "dev") for label in ("cat", "dog") for i in range(600)]
    root = fill(tmp_path / "photos", *names, "Train/cat/a.CR2", "dev/b.cr2", "readme.txt", "readme", ".DS_Store")
    assert said(root) == (
        "folder photos/: 2,400 images, 2 classes, splits train 1,200, val 1,200 (from folders); "
        "skipped 4 files: .cr2 2, no suffix 1, .txt 1"
    )


def test_what_is_not_taken(tmp_path: Path) -> None:
    names = ("train/cat/a.jpg", "b.jpg", "c.jpg", "run/substyle.json", "run/d.jpg", "more/e.jpg")
    root = fill(tmp_path / "photos", *names)
    for name in ("x.jpg", "y.jpg"):
        (root / "train" / name).symlink_to(tmp_path / "elsewhere.jpg")
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    assert said(root, SourceConfig(splits="folders")) == (
        "folder photos/: 1 image, 1 class, splits train 1 (from folders); "
        "left out 5: b.jpg, c.jpg, more/ and 2 more; 1 substyle folder skipped"
    )
    assert said(root, SourceConfig(splits="none")) == (
        "folder photos/: 4 images, 2 classes (2 images without), no splits; "
        "left out 2: train/x.jpg, train/y.jpg; 1 substyle folder skipped"
    )


# --- real variants ----------------------------------------------------------------------------------------------------

OWN = ("identity/cat/a.jpg", "identity/cat/b.png", "identity/dog/c.jpg")


def opened(root: Path) -> Source:
    return open_source(root, SourceConfig(kind="variants"))


def shown(source: Source, transformation: str) -> list[bytes | None]:
    found = [record.variant(transformation) for record in source.records]
    return [record.read() if record else None for record in found]


def test_files_are_matched_by_their_path_without_suffix(tmp_path: Path) -> None:
    more = ("phone/cat/a.webp", "phone/dog/c.jpg", "scan/cat/a.jpg", "scan/cat/b.jpg", "scan/dog/c.tiff")
    source = opened(fill(tmp_path, *OWN, *more, "scan/notes.txt"))
    assert shown(source, "phone") == [b"phone/cat/a.webp", None, b"phone/dog/c.jpg"]
    assert shown(source, "scan") == [b"scan/cat/a.jpg", b"scan/cat/b.jpg", b"scan/dog/c.tiff"]
    assert shown(source, "identity") == shown(source, "jpeg") == [None] * 3
    assert source.understood.transformations == ("phone", "scan")
    assert describe(source).endswith("no splits; real variants: phone 2, scan 3 of 3; skipped 1 file: .txt 1")


@pytest.mark.parametrize("names", [OWN, ("identity/train/cat/a.jpg", "identity/test/cat/b.jpg")])
def test_photographs_are_those_of_a_folder_source(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = fill(tmp_path, *names, *(name.replace("identity", "phone") for name in names))
    source, alone = opened(root), FolderSource(root / "identity")
    assert described(source) == described(alone)
    assert source.class_names == alone.class_names
    assert source.options == {"kind": "variants"}
    assert None not in shown(source, "phone")


@pytest.mark.parametrize(
    ("names", "given", "allowed"),
    [
        (("phone/a.jpg", "scan/a.jpg"), "", "a folder with identity/"),
        (("identity/a.jpg",), "", "a folder for each other transformation"),
        (("identity/a.jpg", "phone/a.jpg", "phone/a.webp"), "a.jpg and a.webp in", "one file for each path"),
        (("identity/a.jpg", "identity/a.png", "phone/a.jpg"), "a.jpg and a.png in", "one file for each path"),
        (("identity/a.jpg", "phone/b.jpg"), "phone, with b.jpg", "paths of photographs in identity/, such as a.jpg"),
        (("identity/notes.txt", "phone/b.jpg"), "identity", "a folder of images"),
    ],
)
def test_ambiguous_folders_are_refused_by_name(
    tmp_path: Path, names: tuple[str, ...], given: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(fill(tmp_path, *names))
    assert caught.value.field == "images"
    assert given in str(caught.value.given)
    assert allowed in str(caught.value.allowed)


def test_what_is_no_variant_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = ("phone/dog/c.jpg", "phone/dog/z.jpg", "my phone/dog/c.jpg", ".thumbs/c.jpg", "notes/read.txt")
    source = opened(fill(tmp_path, *OWN, *extra, "run.zarr/substyle.json", "run.zarr/dog/c.jpg"))
    assert source.understood.transformations == ("phone",)
    assert source.refused == ("my phone/", "notes/", "phone/dog/z.jpg")
    assert "phone/dog/z.jpg shows no photograph of identity/; skipped" in caplog.text
    assert describe(source).endswith("skipped 1 file: .txt 1; 1 substyle folder skipped")
