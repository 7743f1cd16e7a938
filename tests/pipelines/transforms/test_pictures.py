"""Styles of one's own pictures in suite files: what is read, what it is named, and what is refused."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import jpeg, photograph

from substyle.engine.store.catalog import Definition
from substyle.errors import ConfigError
from substyle.pipelines.transforms import base, registry, style
from substyle.pipelines.transforms.registry import load_all, load_file, load_suite


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that the test may change."""
    load_all()
    known = dict(base.REGISTRY)
    monkeypatch.setattr(registry, "_loaded", [])
    yield
    base.REGISTRY.clear()
    base.REGISTRY.update(known)
    load_file.cache_clear()


def load(folder: Path, *rows: str) -> tuple[str, ...]:
    """The transformations of a suite file with these rows."""
    base.REGISTRY.clear()
    base.REGISTRY.update(load_all())
    load_file.cache_clear()
    path = folder / "own.toml"
    path.write_text(f"transformations = [{', '.join(rows)}]")
    return load_suite(path)


def row(picture: str, name: str = "monet", of: str = "style_arbitrary") -> str:
    return f'{{ name = "{name}", of = "{of}", picture = "{picture}" }}'


def definition(folder: Path, picture: str) -> tuple[str, object]:
    """Hash and digest of the style `monet` of a picture."""
    load(folder, row(picture))
    made = base.get("monet")
    return Definition(made.describe()).declared, made.describe()["picture"]


def test_the_definition_is_that_of_the_bytes_and_not_of_the_path(tmp_path: Path) -> None:
    first, other = jpeg(photograph(0)), jpeg(photograph(1))
    (tmp_path / "a.jpg").write_bytes(first)
    one, digest = definition(tmp_path, "a.jpg")
    assert digest == hashlib.sha256(first).hexdigest()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.png").write_bytes(first)
    assert definition(tmp_path, "below/b.png") == (one, digest)
    (tmp_path / "a.jpg").write_bytes(other)
    assert definition(tmp_path, "a.jpg")[0] != one
    assert "a.jpg" not in str(base.get("monet").describe())
    packaged = base.get("style_arbitrary").describe()
    assert not {"picture", "generator"} & set(packaged)


FOLDER = '{ pictures = "paintings/", of = "style_arbitrary" }'


def paintings(folder: Path, *names: str) -> Path:
    """A folder of pictures."""
    path = folder / "paintings"
    path.mkdir()
    for number, name in enumerate(names):
        (path / name).write_bytes(jpeg(photograph(number)))
    return path


def test_a_folder_without_pictures_or_with_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = paintings(tmp_path)
    (path / "notes.txt").write_text("no picture")
    refused(tmp_path, FOLDER, "pictures", "1 to 1000 pictures.*not 0")
    monkeypatch.setattr(registry, "MOST_PICTURES", 1)
    for name in "ab":
        (path / f"{name}.jpg").write_bytes(jpeg(photograph(0)))
    refused(tmp_path, FOLDER, "pictures", "1 to 1 pictures.*not 2")


@pytest.mark.parametrize("names", [("a b.jpg", "a_b.jpg"), ("wave.jpg",)])
def test_a_name_that_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    paintings(tmp_path, *names)
    refused(tmp_path, FOLDER, "pictures", f"got 'paintings/{re.escape(names[-1])}'.*another name than style_")


def refused(folder: Path, row: str, field: str, message: str = "") -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(folder, row)
    assert caught.value.field == f"suite own.toml: transformations[0]{f'.{field}' * bool(field)}"


@pytest.mark.parametrize("how", ["above", "absolute", "link", "folder link", "empty", "pipe", "folder", "missing"])
def test_what_is_no_file_below_the_folder_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    outside = paintings(tmp_path, "x.jpg")
    (folder / "link.jpg").symlink_to(outside / "x.jpg")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.jpg")
    named = {
        **{"above": "../paintings/x.jpg", "absolute": str(outside / "x.jpg"), "link": "link.jpg", "empty": ""},
        **{"folder link": "linked/x.jpg", "pipe": "pipe.jpg", "folder": "linked/..", "missing": "x.jpg"},
    }[how]
    opened: list[bytes] = []
    monkeypatch.setattr(style, "decode_picture", opened.append)
    refused(folder, row(named), "picture", f"got {re.escape(repr(named))}.*below the folder of the suite file")
    assert not opened
    for pictures in ("../paintings", str(outside), "linked", ".", "", "pipe.jpg"):
        refused(folder, f'{{ pictures = "{pictures}", of = "style_arbitrary" }}', "pictures", "a folder below")
    inside = folder / "inside"
    inside.mkdir()
    (inside / "x.jpg").symlink_to(outside / "x.jpg")
    refused(folder, '{ pictures = "inside", of = "style_arbitrary" }', "picture", "inside/x.jpg.*a symbolic link")
    assert not opened


@pytest.mark.parametrize(
    ("written", "field", "message"),
    [
        (row("a.jpg", of="style_wave"), "of", "got 'style_wave'; allowed: with a picture: style_arbitrary, style_tis"),
        ('{ name = "style_bricks", picture = "a.jpg" }', "of", "got None"),
        ('{ pictures = "paintings", of = "style_glyphs_stitches" }', "of", "got 'style_glyphs_stitches'"),
        ('{ name = "a", of = "style_arbitrary", picture = 3 }', "picture", "got 3"),
        ('{ pictures = 3, of = "style_arbitrary" }', "", "a name, or a table with"),
        ('{ pictures = "paintings", picture = "a.jpg", of = "style_arbitrary" }', "", "pictures without picture"),
    ],
)
def test_wrong_rows(tmp_path: Path, written: str, field: str, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(photograph(0)))
    paintings(tmp_path, "a.jpg")
    refused(tmp_path, written, field, message)
