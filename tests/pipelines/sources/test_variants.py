"""Folders of transformations: which file shows which photograph, and what is refused or skipped."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.pipelines.sources.test_folder import described, fill

from substyle.errors import ConfigError
from substyle.pipelines.sources import FolderSource, Source, SourceConfig, describe, open_source
from substyle.pipelines.sources.variants import VariantsSource

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
    assert describe(source).endswith("3 images, 2 classes, no splits; real variants: phone 2, scan 3 of 3; "
                                     "skipped 1 file: .txt 1")  # fmt: skip


@pytest.mark.parametrize("names", [OWN, ("identity/train/cat/a.jpg", "identity/test/cat/b.jpg")])
def test_photographs_are_those_of_a_folder_source(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = fill(tmp_path, *names, *(name.replace("identity", "phone") for name in names))
    source = opened(root)
    alone = FolderSource(root / "identity")
    assert described(source) == described(alone)  # type: ignore[arg-type]
    assert source.class_names == alone.class_names
    assert [record.read() for record in source.records] == [record.read() for record in alone.records]
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
    root = fill(tmp_path, *OWN, *extra, "run.zarr/substyle.json", "run.zarr/dog/c.jpg")
    with caplog.at_level(logging.WARNING):
        source = VariantsSource(root)
    assert source.understood.transformations == ("phone",)
    assert source.refused == ("my phone/", "notes/", "phone/dog/z.jpg")
    assert "phone/dog/z.jpg shows no photograph of identity/; skipped" in caplog.text
    assert describe(source).endswith("skipped 1 file: .txt 1; 1 substyle folder skipped")
