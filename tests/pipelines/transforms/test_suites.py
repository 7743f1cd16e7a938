"""Suites agree with the registry; names are validated."""

from __future__ import annotations

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
from tests.conftest import slow_after
from torch.utils._python_dispatch import TorchDispatchMode

from substyle.engine.store.catalog import Definition
from substyle.errors import ConfigError
from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.base import Choice, Uniform
from substyle.pipelines.transforms.registry import load_file, suite, suites
from substyle.pipelines.variants import load_all


def test_substance31() -> None:
    load_all()
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


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that the test may change."""
    load_all()
    monkeypatch.setattr(base, "REGISTRY", dict(load_all()))  # without those of suite files of other tests
    yield
    load_file.cache_clear()


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


def test_a_suite_file(own: None, tmp_path: Path) -> None:
    names = suite(f"saturate,{_file(tmp_path)}")
    assert names == ("identity", "saturate", "grayscale", "brightness", "jpeg_web", "jpeg_sweep", "blurred")
    assert base.get("brightness").role == "held_out"
    assert base.get("jpeg_web").kind == "sensor"
    keys = philox.image_keys(0, [str(i) for i in range(50)])
    assert set(base.get("jpeg_web").draw(keys, 224)["quality"].tolist()) == {60, 80}
    sigma = Uniform("sigma", 1.0, 2.0, "px")
    assert [parameter.describe() for parameter in base.get("blurred").parameters] == [sigma.describe()]
    assert len({Definition(base.get(name).describe()).declared for name in names}) == 7


def test_coarse_is_read_as_kind_with_a_line(own: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite(str(_file(tmp_path, FILE.replace("kind =", "coarse ="))))
    assert base.get("jpeg_web").kind == "sensor"
    assert "coarse is called kind now" in capsys.readouterr().err


def test_severities_are_paired_and_the_whole_draws_among_them(own: None, tmp_path: Path) -> None:
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


def test_an_unknown_role_is_refused(own: None) -> None:
    with pytest.raises(ConfigError) as caught:
        base.register(replace(base.get("jpeg"), name="mine", role="heldout"))  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.given) == ("mine.role", "heldout")


@pytest.mark.parametrize("text", ["", "transformations = 3"])
def test_a_file_without_transformations(own: None, tmp_path: Path, text: str) -> None:
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
def test_wrong_suite_files(own: None, tmp_path: Path, row: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(str(_file(tmp_path, f"transformations = [{row}]")))
    expected = f"suite own.toml: transformations[0]{field}" if field != "transformation" else field
    assert caught.value.field == expected
