"""Suites of the package, names and files of suites, and styles of pictures that files name."""

from __future__ import annotations

import hashlib
import os
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import jpeg, photograph, slow_after
from torch.utils._python_dispatch import TorchDispatchMode

from substyle.engine.store.catalog import Definition
from substyle.errors import ConfigError
from substyle.kernels import philox
from substyle.pipelines.transforms import base, registry, style
from substyle.pipelines.transforms.base import Choice, Uniform
from substyle.pipelines.transforms.registry import load_all, load_file, load_suite, suite, suites


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that the test may change, without those of suite files of other tests."""
    monkeypatch.setattr(base, "REGISTRY", dict(load_all()))
    monkeypatch.setattr(registry, "_loaded", [])
    yield
    load_file.cache_clear()


def test_substance31() -> None:
    names = suite("substance31")
    assert len(names) == len(set(names)) == 31
    assert names[0] == "identity"
    transformations = [base.get(name) for name in names]
    order = [base.KINDS.index(t.kind) for t in transformations]
    assert order == sorted(order)
    assert len(set(order)) == 10
    assert Counter(t.role for t in transformations[1:]) == {"train": 19, "held_out": 11}
    assert sum(t.made_by == "dali" for t in transformations) >= 16
    for kind in {t.kind for t in transformations[1:]}:  # a test of generalisation needs both roles in each class
        assert {t.role for t in transformations if t.kind == kind} == {"train", "held_out"}


def test_a_union_has_each_transformation_once() -> None:
    names = suite("substance31,styles48,jpeg")
    assert names[:31] == suite("substance31")
    assert set(names) == {*suite("substance31"), *suite("styles48")}
    assert len(set(names)) == len(names) == 31 + 48 - 4  # four of the multi-style network are in both
    assert len(suite(",".join(suites()))) > 150


class Uploads(TorchDispatchMode):
    """Numbers reach the device by `upload` alone: all other copies from the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        copies = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        packet = func._overloadpacket
        if packet in copies and out.is_meta and args[packet is copies[1]].device.type == "cpu":
            assert "upload" in {frame.name for frame in traceback.extract_stack()}
        return out


@pytest.mark.parametrize("name", slow_after(2, sorted(suites())))
def test_kernels_keep_to_the_device_of_the_canvas(name: str) -> None:
    pytest.importorskip("triton")
    keys_B = philox.image_keys(0, ["a", "b"])
    elsewhere = torch.empty(2, 64, 64, 3, dtype=torch.uint8, device="meta")
    made = [t for t in map(base.get, suite(name)) if t.made_by in ("dali", "kernel") and not t.by_dali(gpu=True)]
    for transformation in made:
        work = partial(transformation.implementation(gpu=True), elsewhere, transformation.draw(keys_B, 64), keys_B)
        work()  # tables that later batches share
        with Uploads():
            out = work()
        assert (out.device, out.dtype, out.shape) == (elsewhere.device, torch.uint8, elsewhere.shape)
    assert made or name == "mini5"


def test_names_separated_by_commas() -> None:
    for text in ("jpeg,elastic", " jpeg , identity, elastic ", "identity,jpeg,elastic,"):
        assert suite(text) == ("identity", "jpeg", "elastic")


@pytest.mark.parametrize(
    ("text", "field", "given", "named"),
    [
        ("jpeg,gausian_blur", "suite", "gausian_blur", "gaussian_blur"),
        ("jpeg@3", "severity", "jpeg@3", ""),
        ("jpeg@x", "suite", "jpeg@x", "@1..5"),
        ("missing.toml", "suite missing.toml", str(Path("missing.toml").absolute()), ""),
        ("jpeg,jpeg", "suite", "jpeg", ""),
        ("", "suite", "", "substance31"),
    ],
)
def test_wrong_names(text: str, field: str, given: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(text)
    assert (caught.value.field, caught.value.given) == (field, given)
    assert named in caught.value.allowed


FILE = """
transformations = [
    "grayscale",
    { name = "brightness", role = "held_out" },
    { name = "jpeg_web", of = "jpeg", kind = "sensor", parameters = { quality = [60, 80] } },
    { name = "jpeg_sweep", of = "jpeg", severities = { quality = [90, 60, 30] } },
    { name = "blurred", of = "gaussian_blur", parameters = { sigma = { uniform = [1.0, 2.0] } } },
]
"""


def _file(folder: Path, text: str = FILE) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


def test_a_suite_file(tmp_path: Path) -> None:
    names = suite(f"saturate,{_file(tmp_path)}")
    assert names == ("identity", "saturate", "grayscale", "brightness", "jpeg_web", "jpeg_sweep", "blurred")
    assert base.get("brightness").role == "held_out"
    assert base.get("jpeg_web").kind == "sensor"
    keys = philox.image_keys(0, [str(i) for i in range(50)])
    assert set(base.get("jpeg_web").draw(keys, 224)["quality"].tolist()) == {60, 80}
    sigma = Uniform("sigma", 1.0, 2.0, "px")
    assert [parameter.describe() for parameter in base.get("blurred").parameters] == [sigma.describe()]
    assert len({Definition(base.get(name).describe()).declared for name in names}) == 7


def test_coarse_is_read_as_kind_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite(str(_file(tmp_path, FILE.replace("kind =", "coarse ="))))
    assert base.get("jpeg_web").kind == "sensor"
    assert "coarse is called kind now" in capsys.readouterr().err


def test_severities_are_paired_and_the_whole_draws_among_them(tmp_path: Path) -> None:
    suite(str(_file(tmp_path)))
    assert suite("jpeg_sweep@1..3+mini5") == (
        *("identity", "jpeg_sweep@1", "jpeg_sweep@2", "jpeg_sweep@3"),
        *("grayscale", "channel_permute", "jpeg", "low_resolution"),
    )
    keys = philox.image_keys(0, [str(i) for i in range(200)])
    assert set(base.get("jpeg_sweep").draw(keys, 224)["quality"].tolist()) == {30, 60, 90}
    for severity, quality in ((1, 90), (2, 60), (3, 30)):
        made = base.get(f"jpeg_sweep@{severity}")
        assert (made.name, made.stream, made.severities) == (f"jpeg_sweep@{severity}", "jpeg_sweep", 1)
        assert set(made.draw(keys, 224)["quality"].tolist()) == {quality}
    line = (Choice("line", ((1, 2), (3, 4)), severity=True), Uniform("angle", 0, 90))
    whole = base.Transformation("t", "blur", "train", "kernel", line)
    first, second = whole.at(1).draw(keys, 224), whole.at(2).draw(keys, 224)
    np.testing.assert_array_equal(first["angle"], second["angle"])
    assert first["line"].tolist() == [[1, 2]] * 200
    assert (
        Definition(whole.at(1).describe()).declared
        != Definition(whole.at(2).describe()).declared
        != Definition(whole.describe()).declared
    )
    with pytest.raises(ConfigError):
        whole.at(3)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        base.register(replace(base.get("jpeg"), name="mine", role="heldout"))  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.given) == ("mine.role", "heldout")


@pytest.mark.parametrize("text", ["", "transformations = 3"])
def test_a_file_without_transformations(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(str(_file(tmp_path, text)))
    assert caught.value.field == "suite own.toml: transformations"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("3", ""),
        ("{}", ""),
        ('{ name = "jpeg", colour = 1 }', ""),
        ('{ name = "jpeg", role = "test" }', ".role"),
        ('{ name = "jpeg", kind = "x" }', ".kind"),
        ('{ name = "jpeg", parameters = { quality = [5] } }', ""),
        ('{ name = "a", of = "jpeg", parameters = { q = [5] } }', ".parameters"),
        ('{ name = "a", of = "jpeg", parameters = { quality = ["x"] } }', ".parameters.quality"),
        ('{ name = "a", of = "jpeg", severities = { quality = { uniform = [1, 2] } } }', ".severities.quality"),
        ('{ name = "a", of = "motion_blur", parameters = { line = [3] } }', ".parameters.line"),
        ('{ name = "a", of = "motion_blur", parameters = { line = [[40, 30]] } }', ".parameters.line"),
        ('{ name = "a", of = "motion_blur", parameters = { angle = [90] } }', ".parameters.angle"),
        ('{ name = "a", of = "gaussian_blur", parameters = { sigma = { uniform = [1, 7] } } }', ".parameters.sigma"),
        ('{ name = "a", of = "imagenet_c_gaussian_blur", parameters = { sigma = [0] } }', ".parameters.sigma"),
        ('{ name = "a", of = "imagenet_c_motion_blur", parameters = { line = [[25, 5]] } }', ".parameters.line"),
        ('{ name = "a", of = "defocus_blur", parameters = { radius = [15] } }', ".parameters.radius"),
        ('{ name = "a", of = "elastic", parameters = { smoothing = [0.05] } }', ".parameters.smoothing"),
        ('{ name = "a", of = "shot_noise", parameters = { rate = [1000] } }', ".parameters.rate"),
        ('{ name = "a", of = "imagenet_c_fog", parameters = { severity = [9] } }', ".parameters.severity"),
        ('{ name = "a", of = "imagenet_c_fog", parameters = { severity = [1.5] } }', ".parameters.severity"),
        ('"none"', "transformation"),
        ('{ name = "a/b", of = "jpeg" }', "transformation"),
        ('{ name = "gaussian_noise", of = "jpeg" }', "transformation"),
    ],
)
def test_wrong_suite_files(tmp_path: Path, row: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(str(_file(tmp_path, f"transformations = [{row}]")))
    expected = f"suite own.toml: transformations[0]{field}" if field != "transformation" else field
    assert caught.value.field == expected


# --- pictures ---------------------------------------------------------------------------------------------------------


def load(folder: Path, *rows: str) -> tuple[str, ...]:
    """The transformations of a suite file with these rows."""
    base.REGISTRY.clear()
    base.REGISTRY.update(load_all())
    load_file.cache_clear()
    return load_suite(_file(folder, f"transformations = [{', '.join(rows)}]"))


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
