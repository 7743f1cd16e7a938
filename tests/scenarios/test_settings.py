"""Study settings and plug-in code change between two commands."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper, save
from tests.conftest import jpeg, photograph, slow_after
from tests.scenarios.scene import SUITE, Scene, numbers, other_bytes, rows, write

from substyle.engine.backbones import onnx_graph


def _pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


TRANSFORMATION = """
import torch
from substyle.pipelines.transforms.base import Choice, kernel

try:
    from .helper import read
    LEVEL = int(read())
except ImportError:
    LEVEL = 255


@kernel('mine_negative', kind='tone', role='train', parameters=[Choice('threshold', (64, 128))])
def negative(canvas_BSSC, args, keys_B):
    # a comment
    threshold = torch.from_numpy(args['threshold']).view(-1, 1, 1, 1)
    return torch.where(canvas_BSSC < threshold, canvas_BSSC, LEVEL - canvas_BSSC)
"""
FAMILY = """
import torch
from torch import nn
from substyle.engine.backbones.registry import Family, register_family
from substyle.engine.backbones.spec import Backbone, BackboneSpec, tensors_hash

from pathlib import Path

GAIN = 2.0
FILE = Path(__file__).with_name("gain.txt")
GAIN = float(FILE.read_text()) if FILE.exists() and FILE.read_text() else GAIN


def load(name, rest, context):
    network, rgb = Network(), (0.5, 0.5, 0.5)
    digest = tensors_hash(network.state_dict())
    spec = BackboneSpec(name, "mean", 3, context.canvas, rgb, rgb, "mean", "none", digest)
    return Backbone(spec, module=network, compiled=False)


register_family(Family("mine", "<name>", "my backbones", load))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, canvas_BSSC):
        # a comment
        return canvas_BSSC.float().mean((1, 2)) * self.weight * GAIN
"""

# --- the suite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    slow_after(
        1,
        [
            ("backbones", ["control:pixels", "control:pixels,control:statistics", "control:statistics"]),
            ("suite", [SUITE, "identity,jpeg", f"{SUITE},channel_permute", "identity,jpeg,grayscale"]),
        ],
    ),
)
def test_suites_and_backbones_come_and_go(scene: Scene, field: str, values: list[str]) -> None:
    for value in values:
        scene.study[field] = value if field == "suite" else value.split(",")
        results = scene.run()
        shown = [each["name"] for each in results["transformations"]] if field == "suite" else results["backbones"]
        assert ",".join(shown) == value
        assert value == values[0] or numbers(results) == numbers(scene.fresh())


def test_a_plug_in_transformation_is_edited(scene: Scene) -> None:
    """Edited code, values and files that it reads, and parameters are rejected; comments are not."""
    package, level = scene.root / "mine", scene.root / "mine" / "level.txt"
    package.mkdir()
    plugin = package / "__init__.py"
    plugin.write_text(TRANSFORMATION)
    (package / "helper.py").write_text(
        "from pathlib import Path\nread = Path(__file__).with_name('level.txt').read_text\n"
    )
    level.write_text("255")
    scene.study |= {"suite": "identity,mine_negative", "plugins": [str(package)]}
    before = numbers(scene.run())
    scene.new_process()
    assert numbers(scene.run()) == before
    plugin.write_text(TRANSFORMATION.replace("# a comment", "# another"))
    scene.new_process()
    assert numbers(scene.run()) == before
    for old, new in (("LEVEL - canvas", "canvas"), ("", ""), ("(64, 128)", "(64, 96)")):
        plugin.write_text(TRANSFORMATION.replace(old, new))
        level.write_text("255" if old else "254")
        scene.new_process()
        scene.run_refused(None, "DifferentError")
    assert numbers(scene.run("out", None, "--fresh")) == numbers(scene.fresh())


# --- backbones --------------------------------------------------------------------------------------------------------


def _weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return path


def test_weights_change(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **how: module)  # generating code takes seconds
    # as does an export, without which weights must be told apart, too
    monkeypatch.setattr("substyle.engine.backbones.lazy.export", None)
    scene.study["embed"]["runtime"] = "torch"
    name, path = "timm:test_vit", _weights(scene.root / "w.pth", 0)
    scene.study |= {
        "backbones": [{"name": name, "checkpoint": str(path), "precision": "fp32"}],
        "suite": "identity,jpeg",
    }
    before = numbers(scene.run())
    assert numbers(scene.run()) == before
    (probe,) = (scene.root / "out" / "probes").glob("*/class-linear.safetensors")
    assert scene.ok("predict", probe, scene.one(), "--checkpoint", path)["predictions"]
    _weights(path, 1)
    scene.refused("predict", probe, scene.one(), "--checkpoint", path, kind="SubstyleError")
    scene.run_refused(None, "DifferentError")
    scene.add(50)
    scene.run_refused(None, "DifferentError")
    assert numbers(scene.run("out", None, "--fresh"))["backbones"] != before["backbones"]


@pytest.mark.parametrize("part", slow_after(1, ["preprocessing", "output", "external data"]))
@pytest.mark.slow
def test_preprocessing_of_a_graph_changes(scene: Scene, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "_front", cache(onnx_graph._front))  # its export takes seconds
    path, beside, data = (scene.root / f"m.{suffix}" for suffix in ("onnx", "json", "data"))
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Mul", ["pooled", "w"], ["weighted"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 3, 1, 1]) for each in ("pooled", "weighted")],
        [numpy_helper.from_array(np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save(model, path, save_as_external_data=True, location=data.name, size_threshold=0)
    facts = {"mean": [0.5] * 3, "std": [0.5] * 3, "output": "weighted"}
    beside.write_text(json.dumps(facts))
    scene.study |= {"backbones": [f"onnx:{path}"], "suite": "identity,jpeg"}
    scene.study["embed"]["precision"] = "fp32"
    before = scene.run()
    assert numbers(scene.run()) == numbers(before)
    (probe,) = (scene.root / "out" / "probes").glob("*/class-linear.safetensors")
    if part == "external data":
        data.write_bytes(np.array([3, 2, 1], np.float32).tobytes())
    else:
        change: dict[str, Any] = {"output": "pooled"} if part == "output" else {"mean": [0.25] * 3}
        beside.write_text(json.dumps(facts | change))
    scene.refused("predict", probe, scene.one(), kind="SubstyleError")
    scene.run_refused(None, "DifferentError")
    scene.add(50)
    scene.run_refused(None, "DifferentError")
    scene.run("other")
    found = scene.ok("compare", scene.root / "out", scene.root / "other", "--out", scene.root / "both")
    assert f"onnx:{path}" in found["setup"]


@pytest.mark.parametrize("change", slow_after(1, [{"precision": "bf16"}, {"runtime": "torch", "precision": "fp32"}]))
@pytest.mark.slow
def test_precision_or_runtime_change(scene: Scene, change: dict[str, str]) -> None:
    name, path = "timm:test_vit", _weights(scene.root / "w.pth", 0)
    scene.study |= {"backbones": [{"name": name, "checkpoint": str(path)}], "suite": "identity,jpeg"}
    scene.study["embed"] |= {"runtime": "openvino", "precision": "fp32"}
    scene.run()
    asked = dict(scene.study["embed"])
    scene.study["embed"] |= change
    scene.run_refused(None, "DifferentError")
    scene.study["embed"] = asked
    scene.run()


# --- what is fixed when a store is made -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    slow_after(
        1,
        [
            ("seed", 1),
            ("canvas", 96),
            ("orientation", "apply"),
            ("style_precision", "fp32"),
            ("crop_pct", 1.0),
            ("dtype", "float32"),
            ("codec", "zstd"),
        ],
    ),
)
def test_what_a_store_is_made_with(scene: Scene, field: str, value: Any) -> None:  # noqa: ANN401
    scene.run()
    scene.embed(scene.photos)
    table = scene.study["embed"] if field in ("dtype", "codec") else scene.study
    table[field] = value
    scene.run_refused(field)
    name = f"embed.{field}" if field in ("dtype", "codec") else field
    for backbone in ("control:pixels", "control:statistics"):
        words = scene.embedding(scene.photos, "--set", f"{name}={value}", backbone=backbone)
        scene.refused(*words, kind="PhotographsError", field=field)
    if field == "seed":
        scene.refused_stages(scene.root / "s.zarr", kind="PhotographsError", field=field)
    scene.run("out", None, "--fresh")
    scene.run()


# --- configuration of stages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "change"),
    slow_after(
        1,
        [
            ("probes", {"tasks": ["transformation"]}),
            ("probes", {"expert": {"passes": 195, "tolerance": 1e-2, "equal_width": 0}}),
            ("analysis", {"ks": [2]}),
            ("study", {"bootstrap": 200}),
        ],
    ),
)
def test_configuration_of_probes_and_analysis(scene: Scene, part: str, change: dict[str, Any]) -> None:
    first = scene.run()
    (scene.study if part == "study" else scene.study[part]).update(change)
    store, study, out = scene.store, scene.study_file(), scene.root / "out"
    report = ("report", store, "--study", study, "--out", out)
    scene.refused(*report, kind="StaleError")  # it would show what another study said
    again = numbers(scene.run())
    assert again == numbers(scene.fresh())
    if "ks" in change or "tasks" in change:
        assert again != numbers(first)
    scene.ok(*report)


# --- refused before anything is made ----------------------------------------------------------------------------------


def _spoil(scene: Scene, what: str) -> None:
    """Make a study fail at one of its stages."""
    third = jpeg(photograph(70))
    match what:
        case "few":
            for path in sorted((scene.photos / "test").rglob("*.jpg"))[1:]:
                path.unlink()
        case "unlearned":
            write(scene.photos / "test" / "third" / "0.jpg", third)
        case "strange":
            write(scene.root / "shifted" / "third" / "0.jpg", third)
            scene.study["shift"] = {"other": str(scene.root / "shifted")}
        case "unwritable":
            (scene.root / "out").write_text("a file")
        case "unknown":
            scene.study["backbones"] = ["nothing:here"]
        case "unattackable":
            pytest.importorskip("torchattack")
            scene.study["attack"] = {"attacks": ["fgsm"], "backbones": ["control:pixels"]}
        case _:
            scene.study |= {"suite": "identity,saturate", "adapt": {"methods": ["pisco"]}}
            scene.study["probes"]["tasks"] = ["class"]


WRONG = {
    "few": "images",
    "unlearned": "images",
    "strange": "shift.other",
    "unwritable": "--out",
    "unknown": "backbone",
    "unattackable": "attack.attacks",
    "unadaptable": "adapt.methods",
}


@pytest.mark.parametrize(("what", "field"), WRONG.items())
def test_what_would_fail_late_fails_first(scene: Scene, what: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("substyle.engine.embedding.run.prepare_backbones", None)  # nothing is prepared
    _spoil(scene, what)
    scene.refused(*scene.asked(), kind="ConfigError", field=field)
    assert not (scene.root / "out").is_dir()


def test_the_same_study_twice_changes_no_byte_of_the_store(scene: Scene) -> None:
    scene.run()
    store = scene.store
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    scene.run()
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert rows(store)


def test_a_plug_in_backbone_is_edited(scene: Scene) -> None:
    plugin = scene.root / "mine.py"
    plugin.write_text(FAMILY)
    scene.study |= {"backbones": ["mine:one"], "plugins": [str(plugin)]}
    before = numbers(scene.run())
    scene.new_process()
    assert numbers(scene.run()) == before
    (probe,) = (scene.root / "out" / "probes").glob("*/class-linear.safetensors")
    words = ("predict", probe, scene.one(), "--plugin", plugin)
    assert scene.ok(*words)["predictions"]
    edits = (("self.weight * GAIN", "self.weight + GAIN", ""), ("GAIN = 2.0", "GAIN = 3.0", ""), ("", "", "4.0"))
    for old, new, setting in edits:
        plugin.write_text(FAMILY.replace(old, new))
        (scene.root / "gain.txt").write_text(setting)
        scene.new_process()
        scene.run_refused(None, "DifferentError")
        scene.refused(*words, kind="SubstyleError")
        more = scene.add(50)  # with something to embed, too
        scene.run_refused(None, "DifferentError")
        more.unlink()
    assert numbers(scene.run("out", None, "--fresh"))["backbones"] != before["backbones"]
    scene.new_process()
    scene.refused(*words[:-2], kind="ConfigError", field="backbone")


def test_the_gallery_is_that_of_the_photographs(scene: Scene, pages: None) -> None:
    """A photograph in the gallery is edited: `report` omits the old picture, `run` draws the new one."""
    scene.study["gallery"] = 4
    scene.run()
    old = _pictures(scene.root / "out" / "gallery")
    for path in scene.photos.rglob("*.jpg"):
        path.write_bytes(other_bytes(path, int(path.stem) + 300))
    store = scene.store
    scene.embed(scene.photos, "--replace", store="out/store.zarr")
    scene.stages(store)
    assert "<img" not in (scene.root / "out" / "report.html").read_text()
    scene.run()
    scene.run("fresh")
    new = _pictures(scene.root / "out" / "gallery")
    assert new == _pictures(scene.root / "fresh" / "gallery")
    assert new != old
    assert "<img" in (scene.root / "out" / "report.html").read_text()
