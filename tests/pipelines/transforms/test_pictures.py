"""Styles of one's own pictures in suite files: what is read, what it is named, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import jpeg, photograph

from substyle.engine.store.catalog import Definition
from substyle.errors import ConfigError
from substyle.pipelines import image_header
from substyle.pipelines.transforms import base, registry, style
from substyle.pipelines.transforms.registry import load_all, load_file, load_suite
from substyle.pipelines.transforms.style import SIDE, by_generator, decode_picture

ORIENTATION = 0x0112


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


def test_a_picture_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(photograph(0)))
    load(tmp_path, row("a.jpg"))
    picture = base.get("monet").picture
    path.unlink()
    assert picture is not None
    assert picture.pixels_SSC.shape == (SIDE, SIDE, 3)


def test_role_and_kind_class_are_those_of_the_style_or_given(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(photograph(0)))
    load(tmp_path, row("a.jpg"), row("a.jpg", "seen").replace("}", ', role = "train" }'))
    assert (base.get("monet").role, base.get("monet").kind) == ("held_out", "style")
    assert base.get("seen").role == "train"


def test_all_pictures_have_the_generator_of_the_network(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(photograph(0)))
    names = load(tmp_path, row("a.jpg"), row("a.jpg", "again", of="style_bricks"), '"style_wave"', '"style_retina"')
    expected = {style.ARBITRARY: [0, 1, 3], style.MULTISTYLE: [2]}
    assert by_generator(names) == expected
    recorded = [str(base.get(name).describe().get("generator", "")) for name in names]
    load(tmp_path, '"jpeg"')  # without the pictures
    assert by_generator(names) != expected
    assert by_generator(names, recorded) == expected


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_the_upright_central_square_is_taken(orientation: int) -> None:
    picture = photograph(0).resize((200, 120))
    stored = image_header.turn(np.asarray(picture), {6: 8}.get(orientation, orientation))  # the inverse
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(file, "PNG", exif=exif)
    square = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(40, 0, 160, 120))
    # a stored picture on its side is resampled along the other axis first, which rounds otherwise
    np.testing.assert_allclose(decode_picture(file.getvalue()).pixels_SSC, np.asarray(square), atol=2)


# --- folders ----------------------------------------------------------------------------------------------------------

FOLDER = '{ pictures = "paintings/", of = "style_arbitrary" }'


def paintings(folder: Path, *names: str) -> Path:
    """A folder of pictures."""
    path = folder / "paintings"
    path.mkdir()
    for number, name in enumerate(names):
        (path / name).write_bytes(jpeg(photograph(number)))
    return path


def test_a_folder_makes_a_style_of_each_picture(tmp_path: Path) -> None:
    path = paintings(tmp_path, "b.JPG", "a water lily, 1906.jpg", ".hidden.jpg")
    (path / "notes.txt").write_text("no picture")
    (path / "deeper").mkdir()
    names = load(tmp_path, '"jpeg"', FOLDER)
    assert names == ("jpeg", "style_a_water_lily__1906", "style_b")
    assert base.get("style_b").role == "held_out"
    load(tmp_path, row("paintings/b.JPG", "style_b"))
    alone = Definition(base.get("style_b").describe()).declared
    load(tmp_path, FOLDER.replace("paintings/", "paintings").replace("}", ', role = "train" }'))
    assert (Definition(base.get("style_b").describe()).declared, base.get("style_b").role) == (alone, "train")


def test_a_folder_without_pictures_or_with_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = paintings(tmp_path)
    (path / "notes.txt").write_text("no picture")
    refused(tmp_path, FOLDER, "pictures", "1 to 1000 pictures.*not 0")
    monkeypatch.setattr(registry, "MOST_PICTURES", 1)
    for name in "ab":
        (path / f"{name}.jpg").write_bytes(jpeg(photograph(0)))
    refused(tmp_path, FOLDER, "pictures", "1 to 1 pictures.*not 2")


@pytest.mark.parametrize("names", [("a b.jpg", "a_b.jpg"), ("a.jpg", "a.png"), ("wave.jpg",)])
def test_a_name_that_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    paintings(tmp_path, *names)
    refused(tmp_path, FOLDER, "pictures", f"got 'paintings/{re.escape(names[-1])}'.*another name than style_")


# --- what is refused --------------------------------------------------------------------------------------------------


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
    for pictures in ("../paintings", str(outside), "linked", ".", "", "/", "missing", "pipe.jpg"):
        refused(folder, f'{{ pictures = "{pictures}", of = "style_arbitrary" }}', "pictures", "a folder below")
    inside = folder / "inside"
    inside.mkdir()
    (inside / "x.jpg").symlink_to(outside / "x.jpg")
    refused(folder, '{ pictures = "inside", of = "style_arbitrary" }', "picture", "inside/x.jpg.*a symbolic link")
    assert not opened


def test_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jpeg(photograph(0))
    for name, content in {"text": b"no picture", "none": b"", "half": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        refused(tmp_path, row(f"{name}.jpg"), "picture", f"got '{name}.jpg'; allowed: a picture below")
    paintings(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "paintings" / "b.jpg").write_bytes(b"no picture")
    refused(tmp_path, FOLDER, "picture", r"got 'paintings/b\.jpg'")
    (tmp_path / "a.jpg").write_bytes(whole)
    monkeypatch.setattr(style.limits, "MAX_IMAGE_FILE", len(whole) - 1)
    refused(tmp_path, row("a.jpg"), "picture", f"claims {len(whole):,} bytes")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    monkeypatch.setattr(style, "decode", lambda *_: pytest.fail("decoded"))
    refused(tmp_path, row("a.png"), "picture", "20000 x 20000 pixels, more than")


@pytest.mark.parametrize(
    ("written", "field", "message"),
    [
        (row("a.jpg", of="style_wave"), "of", "got 'style_wave'; allowed: with a picture: style_arbitrary, style_tis"),
        (row("a.jpg", of="jpeg"), "of", "got 'jpeg'"),
        ('{ name = "style_bricks", picture = "a.jpg" }', "of", "got None"),
        ('{ pictures = "paintings" }', "of", "got None"),
        ('{ pictures = "paintings", of = "style_glyphs_stitches" }', "of", "got 'style_glyphs_stitches'"),
        ('{ name = "a", of = "style_arbitrary", picture = 3 }', "picture", "got 3"),
        ('{ pictures = 3, of = "style_arbitrary" }', "", "a name, or a table with"),
        ('{ pictures = "paintings", name = "a", of = "style_arbitrary" }', "", "pictures without name"),
        ('{ pictures = "paintings", picture = "a.jpg", of = "style_arbitrary" }', "", "pictures without picture"),
    ],
)
def test_wrong_rows(tmp_path: Path, written: str, field: str, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(photograph(0)))
    paintings(tmp_path, "a.jpg")
    refused(tmp_path, written, field, message)


def test_a_packaged_style_keeps_its_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(photograph(0)))
    with pytest.raises(ConfigError, match="taken by a suite file"):
        load(tmp_path, row("a.jpg", "style_bricks", "style_bricks"))
    assert base.get("style_bricks").picture is None


def test_a_mended_folder_can_be_read_again_and_by_another_suite(tmp_path: Path) -> None:
    folder = tmp_path / "paintings"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(photograph(0)))
    (folder / "b.jpg").write_bytes(b"no picture")
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    for path in (first, second):
        path.write_text('transformations = [{ pictures = "paintings", of = "style_arbitrary" }]')
    with pytest.raises(ConfigError, match=r"b\.jpg"):
        load_suite(first)
    assert not base.is_known("style_a")
    (folder / "b.jpg").unlink()
    assert load_suite(first) == load_suite(second) == ("style_a",)
    third = tmp_path / "third" / "own.toml"
    third.parent.mkdir()
    (third.parent / "a.jpg").write_bytes(jpeg(photograph(1)))
    third.write_text('transformations = [{ name = "style_a", of = "style_arbitrary", picture = "a.jpg" }]')
    with pytest.raises(ConfigError, match="taken by"):  # another picture of the same name
        load_suite(third)


def test_a_name_is_not_shared_by_what_makes_other_pixels(tmp_path: Path) -> None:
    for of in ("imagenet_c_fog", "imagenet_c_frost"):  # alike but for their functions
        row_of = f'{{ name = "mine", of = "{of}", kind = "tone", role = "train" }}'
        (tmp_path / f"{of}.toml").write_text(f"transformations = [{row_of}]")
    assert load_suite(tmp_path / "imagenet_c_fog.toml") == ("mine",)
    with pytest.raises(ConfigError, match="taken by"):
        load_suite(tmp_path / "imagenet_c_frost.toml")
    (tmp_path / "again.toml").write_text((tmp_path / "imagenet_c_fog.toml").read_text())
    assert load_suite(tmp_path / "again.toml") == ("mine",)
