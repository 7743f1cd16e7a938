"""Tar shards: samples, labels, formats, and rejected members."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.kinds import write_tar

from substyle.pipelines.sources import SourceConfig, TarSource


def described(source: TarSource) -> dict[str, tuple[bytes, str | None, str | None]]:
    names = source.class_names
    return {r.key: (r.read(), None if r.label is None else names[r.label], r.split) for r in source.records}


def one(root: Path, *members: tuple[str, bytes]) -> Path:
    write_tar(root / "a.tar", members)
    return root / "a.tar"


def test_a_sample_is_what_agrees_up_to_the_first_dot(tmp_path: Path) -> None:
    path = one(
        tmp_path,
        ("cat/0001.seg.png", b"mask"), ("cat/0001.png", b"second"), ("cat/0001.JPG", b"image"),
        ("cat/0001.cls", b" 7\n"), ("cat/0002.mask.png", b"only"), ("cat/0002.txt", b"a caption"),
        ("./cat/0003.jpeg", b"third"), ("cat/0003.cls", b"red fox"),
        ("0003.cls", b"8"), ("readme", b"no dot"), ("._0001.jpg", b"no name"), ("b.d/0004.jpg", b"dots in folders"),
    )  # fmt: skip
    assert described(TarSource(path)) == {
        "a.tar/cat/0001": (b"image", "7", None),
        "a.tar/cat/0002": (b"only", None, None),
        "a.tar/cat/0003": (b"third", "red fox", None),
        "a.tar/b.d/0004": (b"dots in folders", None, None),
    }


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff", b"x" * 1001, b"x" * 5000])
def test_cls_that_holds_no_label(tmp_path: Path, text: bytes) -> None:
    source = TarSource(one(tmp_path, ("1.jpg", b"1"), ("1.cls", text)))
    assert described(source) == {"a.tar/1": (b"1", None, None)}


def test_numbers_have_readable_names(tmp_path: Path) -> None:
    path = one(
        tmp_path, ("1.jpg", b"1"), ("1.cls", b"1"), ("2.jpg", b"2"), ("2.cls", b"0"), ("3.jpg", b"3"), ("3.cls", b"7")
    )
    names = tmp_path / "names.txt"
    names.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n\n")
    source = TarSource(path, SourceConfig(names=names))
    assert source.class_names == ("tench", "goldfish", "7")
    assert [source.class_names[r.label or 0] for r in source.records] == ["goldfish", "tench", "7"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-0.tar", "val-0.tar", "test-0.tar"), ["test", "train", "val"]),
        (("x/train/0.tar", "x/validation/0.tar"), ["train", "val"]),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), ["train", "val"]),
        (("train-0.tar", "other-0.tar"), [None, None]),
        (("val-0.tar", "test-0.tar"), [None, None]),
        (("train-val-0.tar", "train-1.tar"), [None, None]),
        (("trains-0.tar",), [None]),
    ],
)
def test_splits_from_the_names_of_shards(tmp_path: Path, names: tuple[str, ...], splits: list[str | None]) -> None:
    for name in names:
        write_tar(tmp_path / name, [("1.jpg", b"1")])
    assert [record.split for record in TarSource(tmp_path).records] == splits
