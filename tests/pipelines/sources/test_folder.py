"""Folders of images: keys, labels, splits, and what is skipped."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from substyle.errors import ConfigError
from substyle.pipelines.sources import FolderSource, SourceConfig, open_source


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


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, "b.webp", "a.tiff", "c.gif", "readme.md", "d.mpo", "e.bmp"))
    assert source.class_names == ()
    assert described(source) == [(key, None, None) for key in ("a.tiff", "b.webp", "c.gif", "d.mpo", "e.bmp")]


def test_loose_files_beside_classes_are_unlabelled(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, "cat/a.jpg", "z.jpg"))
    assert described(source) == [("cat/a.jpg", "cat", None), ("z.jpg", None, None)]


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


def test_one_train_folder_is_a_split(tmp_path: Path) -> None:
    assert described(FolderSource(fill(tmp_path, "train/cat/a.jpg"))) == [("train/cat/a.jpg", "cat", "train")]


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


def test_split_folders_as_classes(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, "train/a/1.jpg", "car/2.jpg", "3.jpg"), SourceConfig(splits="none"))
    assert source.class_names == ("car", "train")
    assert described(source) == [("3.jpg", None, None), ("car/2.jpg", "car", None), ("train/a/1.jpg", "train", None)]
    assert source.options == {"kind": "folder", "splits": "none"}
    # also where they would be splits by default
    (tmp_path / "car" / "2.jpg").unlink()
    (tmp_path / "3.jpg").unlink()
    assert FolderSource(tmp_path, SourceConfig(splits="none")).class_names == ("train",)


def test_split_folders_as_splits_leave_out_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path, "val/a/1.jpg", "Test/b/2.jpg", "car/3.jpg", "car/4.jpg", "5.jpg")
    source = FolderSource(root, SourceConfig(splits="folders"))
    assert described(source) == [("Test/b/2.jpg", "b", "test"), ("val/a/1.jpg", "a", "val")]
    assert [record.read() for record in source.records] == [b"Test/b/2.jpg", b"val/a/1.jpg"]
    assert source.refused == ("5.jpg", "car/")
    assert re.search(r"car/ .*\(2\)", caplog.text)
    again = FolderSource(root, SourceConfig.from_options(source.options))
    assert again.records == source.records


def test_the_choice_matters_to_split_folders_alone(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, "cat/a.jpg", "dog/b.jpg"), SourceConfig(splits="folders"))
    assert described(source) == [("cat/a.jpg", "cat", None), ("dog/b.jpg", "dog", None)]


def test_keys_sort_as_paths_and_do_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = ["a/10.jpg", "a/9.jpg", "a-b/1.jpg", "B/1.jpg", "a/ü.jpg"]
    source = FolderSource(fill(tmp_path, *reversed(names)))
    assert [r.key for r in source.records] == sorted(names)


def test_links_out_of_the_root_are_refused_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = fill(tmp_path / "root-not", "secret.jpg")
    root = fill(tmp_path / "root", "cat/a.jpg")
    (root / "cat" / "link.jpg").symlink_to(outside / "secret.jpg")
    (root / "stolen").symlink_to(outside)
    (root / "cat" / "up").symlink_to("../..")
    with caplog.at_level(logging.WARNING):
        source = FolderSource(root)
    assert [r.key for r in source.records] == ["cat/a.jpg"]
    assert source.refused == ("cat/link.jpg", "cat/up", "stolen")
    assert all(name in caplog.text for name in source.refused)


def test_links_inside_the_root_are_followed_once(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (root / "dog" / "same.jpg").symlink_to(root / "cat" / "a.jpg")
    (root / "cat" / "loop").symlink_to(root)
    (root / "broken.jpg").symlink_to(root / "nowhere.jpg")
    source = FolderSource(root)
    assert [r.key for r in source.records] == ["cat/a.jpg", "dog/b.jpg", "dog/same.jpg"]
    assert source.records[2].read() == b"cat/a.jpg"


def test_a_file_that_was_just_written_has_no_mark_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    record = FolderSource(tmp_path).records[0]
    assert record.mark() == 0
    now = time.time()
    monkeypatch.setattr("substyle.pipelines.sources.files.time.time", lambda: now + 10)
    assert record.mark() > 0


@pytest.mark.usefixtures("settled")
def test_marks_are_those_of_the_files(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (root / "link.jpg").symlink_to("c.jpg")
    records = FolderSource(root).records
    before = [record.mark() for record in records]
    assert before[2] == before[3]  # a link has the mark of its target
    (root / "b.jpg").write_bytes(b"more bytes")
    (root / "new").write_bytes(b"c.jpg")
    (root / "new").replace(root / "c.jpg")
    after = [record.mark() for record in records]
    assert [new != old for new, old in zip(after, before, strict=True)] == [False, True, True, True]
    (root / "b.jpg").unlink()
    os.mkfifo(root / "b.jpg")
    (root / "c.jpg").unlink()
    assert [record.mark() for record in records] == [after[0], 0, 0, 0]


def test_a_linked_root_is_fine(tmp_path: Path) -> None:
    real = fill(tmp_path / "real", "a.jpg")
    (tmp_path / "link").symlink_to(real)
    assert len(FolderSource(tmp_path / "link").records) == 1


def test_odd_names(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (record,) = FolderSource(tmp_path).records
    assert record.read() == b"x"


def test_a_name_that_is_no_utf8_becomes_a_key_that_is(tmp_path: Path) -> None:
    fill(tmp_path / "cat", "a.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/cat/\xff.jpg")).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe")).mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe/b.jpg")).write_bytes(b"y")
    source = FolderSource(tmp_path)
    assert {r.key: r.read() for r in source.records if r.key != "cat/a.jpg"} == {
        "cat/\ufffdff.jpg": b"x",
        "\ufffdfe/b.jpg": b"y",
    }
    assert source.class_names == ("cat", "\ufffdfe")


def test_two_names_with_one_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    fill(tmp_path, "\ufffdff.jpg")
    source = FolderSource(tmp_path)
    assert [r.key for r in source.records] == ["\ufffdff.jpg"]
    assert source.refused == ("\ufffdff.jpg",)
    assert "\ufffdff.jpg" in caplog.text


def test_what_is_no_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = FolderSource(tmp_path)
    assert [r.key for r in source.records] == ["a.jpg"]
    assert source.refused == ("gone.jpg", "loop.jpg", "pipe.jpg")
    assert all(name in caplog.text for name in source.refused)


def test_a_link_that_is_turned_outside_after_listing_is_not_followed(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "secret.jpg")
    root = fill(tmp_path / "root", "a.jpg", "b.jpg")
    first, second = FolderSource(root).records
    (root / "a.jpg").unlink()
    (root / "a.jpg").symlink_to(outside / "secret.jpg")
    with pytest.raises(PermissionError, match=r"a\.jpg"):
        first.read()
    assert second.read() == b"b.jpg"


def test_what_is_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, "a.jpg", "b.jpg")
    os.mkfifo(root / "pipe.jpg")
    first, second = FolderSource(root).records
    (root / "a.jpg").unlink()
    os.mkfifo(root / "a.jpg")
    with pytest.raises(OSError, match=r"a\.jpg") as caught:
        first.read()
    assert caught.value.errno == errno.EINVAL
    monkeypatch.setattr("substyle.pipelines.limits.MAX_IMAGE_FILE", 3)
    with pytest.raises(OSError, match="3 bytes") as caught:
        second.read()
    assert caught.value.errno == errno.EFBIG


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


def test_readable_class_names(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "n02012849/a.jpg", "n03126707/b.jpg", "n01440764/c.jpg", "n00000001/d.jpg")
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text("n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n")
    source = FolderSource(root, SourceConfig(names=names))
    assert source.class_names == ("crane (n02012849)", "crane (n03126707)", "n00000001", "tench")
    assert source.options == {"kind": "folder", "names": str(names)}


def test_folders_with_padded_numbers_have_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path / "root", *(f"{number:02d}/a.jpg" for number in range(12)))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["crane", "crane", "crane (1)", *(f"class {number}" for number in range(3, 11))]))
    source = FolderSource(root, SourceConfig(names=names))
    three = ("crane (0)", "crane (1) (1)", "crane (1) (2)")  # the third is the name in the file, with its number
    assert source.class_names == (*three, *(f"class {number}" for number in range(3, 11)), "11")
    assert [record.label for record in source.records] == list(range(12))
    assert "no line for 11" in caplog.text


@pytest.mark.parametrize("content", [(), ("readme.txt", "cat/labels.csv")])
def test_an_empty_folder_is_an_error(tmp_path: Path, content: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"\.jpg") as caught:
        FolderSource(fill(tmp_path, *content))
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "file.jpg"])
def test_no_folder_is_an_error(tmp_path: Path, name: str) -> None:
    path = fill(tmp_path, "file.jpg") / name
    with pytest.raises(ConfigError) as caught:
        FolderSource(path)
    assert (caught.value.field, caught.value.given) == ("images", str(path))
