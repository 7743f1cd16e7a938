"""The summary of a source on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kinds import write_tar
from tests.pipelines.sources.tables import BLOBS, parquet, structs

from substyle.pipelines.sources import SourceConfig, describe, open_source


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


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


def test_a_flat_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "a.jpg")
    assert said(root) == "folder photos/: 1 image, no classes, no splits"


def test_what_is_not_taken(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "photos", "train/cat/a.jpg", "b.jpg", "c.jpg", "run/substyle.json", "run/d.jpg", "more/e.jpg"
    )
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


def test_odd_and_many_suffixes(tmp_path: Path) -> None:
    root = fill(tmp_path / "p", "a.jpg", "b.\x1b[2J", "c." + "x" * 100, *(f"{i}.k{i}" for i in range(10)))
    line = said(root)
    assert "\x1b" not in line
    assert line.endswith(" and 4 more")
    assert len(line) < 300


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("path\na.jpg\n", "1 image, no classes, no splits; path column path"),
        (
            "IMG,Fine_Label,split\na.jpg,cat,train\nb.jpg,,\n../c.jpg,dog,test\n",
            "2 images, 1 class (1 image without), splits train 1, without 1 (from its column); "
            "path column IMG, label column Fine_Label, split column split; left out 1: ../c.jpg",
        ),
        (
            "path,breed,,weather\na.jpg,x,,y\n",
            "1 image, no classes, no splits; path column path; "
            "no label column in breed, weather; choose one with source.label_column",
        ),
        (
            "path,subset\na.jpg,coco\n",
            "1 image, no classes, no splits; path column path; "
            "no label column in subset; choose one with source.label_column",
        ),
    ],
)
def test_lists(tmp_path: Path, text: str, rest: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    assert said(tmp_path / "list.csv") == f"list list.csv: {rest}"


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (
            {"img": BLOBS[:2], "fine_label": [1, 0], "coarse_label": [0, 0]},
            "2 images, 2 classes, no splits; image column img, label column fine_label",
        ),
        (
            {"image": structs(BLOBS[:2]), "caption": ["a", "b"], "label": [0.5, 1.0], "subset": ["x", "train"]},
            "2 images, no classes, no splits; image column image; "
            "no label column in label (of type double), caption, subset; choose one with source.label_column",
        ),
        (
            {"image": structs(BLOBS[:2]), "class": ["a", "b"], "subset": ["test", "train"]},
            "2 images, 2 classes, splits train 1, test 1 (from its column); "
            "image column image, label column class, split column subset",
        ),
        ({"image": structs(BLOBS[:2])}, "2 images, no classes, no splits; image column image"),
    ],
)
def test_tables(tmp_path: Path, content: dict[str, Any], rest: str) -> None:
    parquet(tmp_path / "x.parquet", content)
    assert said(tmp_path / "x.parquet") == f"parquet x.parquet: {rest}"


def test_tables_that_differ(tmp_path: Path) -> None:
    parquet(tmp_path / "p" / "train.parquet", {"image": BLOBS[:2], "label": [0, 1]})
    parquet(tmp_path / "p" / "test.parquet", {"img": BLOBS[:1], "class": [0]})
    assert said(tmp_path / "p") == (
        "parquet p/: 3 images, 2 classes, splits train 2, test 1 (from the names of the files); "
        "image column img or image, label column class or label"
    )


def test_tar_shards(tmp_path: Path) -> None:
    for split in ("train", "val"):
        members = [("1.jpg", b"1"), ("1.cls", b"0"), ("1.txt", b"a caption"), ("2.cr2", b"2"), ("3.jpg", b"3")]
        write_tar(tmp_path / "s" / f"{split}.tar", members)
    fill(tmp_path / "s", "index.json")
    assert said(tmp_path / "s") == (
        "tar s/: 4 images, 1 class (2 images without), splits train 2, val 2 (from the names of the shards); "
        "skipped 5 files: .cr2 2, .txt 2, .json 1"
    )


def test_imagenet(tmp_path: Path) -> None:
    root = fill(tmp_path / "i", "train/n00000001/a.jpg", "val/n00000001/b.jpg", "test/c.jpg")
    assert said(root, SourceConfig("imagenet")) == (
        "imagenet i/: 2 images, 1 class, splits train 1, val 1 (from folders); "
        "images outside train/ and val/ ignored: 1"
    )
