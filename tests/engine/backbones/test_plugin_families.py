"""Families of plug-ins: a network that computes something else is another backbone, whatever decides it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.engine.backbones.small_networks import GivenSamples

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.lazy import LazyBackbone, sketch
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import SAME_SKETCH, distance, expand
from substyle.engine.store import catalog
from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.transforms.registry import load_plugin

NAME, SIDE = "mine:first", 32
PIXELS = np.random.default_rng(0).integers(0, [[[[256]]], [[[99]]]], (2, SIDE, SIDE, 3)).astype(np.uint8)
SAMPLES = GivenSamples([PIXELS], 2)

PLUGIN = """
from pathlib import Path

import torch
from torch import nn
from substyle.engine.backbones.registry import Family, register_family
from substyle.engine.backbones.families.timm import wrap

GAIN = 2.0


def load(name, rest, context):
    config = {"side": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return wrap(name, "mean", Network(), canvas=context.canvas, weights="none", config=config)


def identify(name, rest, context):
    return {"weights": "the same"}


register_family(Family("mine", "<name>", "my backbones", load, identify))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        file = Path(__file__).with_name("settings.txt")
        self.power = float(file.read_text()) if file.exists() else 1.0
        self.register_buffer("shift", torch.zeros(3), persistent=False)

    def forward(self, x):
        # a comment
        return x.abs().pow(self.power).mean((2, 3)) * self.weight * GAIN + self.shift
"""


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "substyle.pipelines.transforms.registry._loaded", []
    )  # workers of later tests load what is there
    yield
    registry.FAMILIES.pop("mine", None)


CONTEXT = LoadContext(SIDE, 4, 0, None)


def found(folder: Path, text: str, settings: str = "") -> tuple[LazyBackbone, CompiledBackbone, str]:
    """Source, compiled backbone and the key of its artefacts for a plug-in of this text."""
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    if settings:
        (folder / "settings.txt").write_text(settings)
    registry.FAMILIES.pop("mine", None)
    load_plugin(folder / "mine.py")
    source = registry.lazy(NAME, CONTEXT)
    compiled = compile_source(source, SAMPLES, CompileOptions(batch=4, canvas=SIDE, threads=1, precision="fp32"))
    return source, compiled, OpenVINOBuilder(source, SAMPLES, batch=4, canvas=SIDE, threads=1).key


def test_an_edited_comment_in_another_folder_changes_nothing(tmp_path: Path) -> None:
    _, compiled, key = found(tmp_path / "a", PLUGIN)
    _, edited, edited_key = found(tmp_path / "b", PLUGIN.replace("# a comment", "# another\n"))
    assert (compiled.describe()[0]["spec"], key) == (edited.describe()[0]["spec"], edited_key)


@pytest.mark.usefixtures("tmp_path")
def test_a_network_with_other_weights_each_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed the generators of its weights"):
        found(tmp_path / "a", PLUGIN.replace("torch.ones(3)", "torch.rand(3)"))


def test_a_sketch_tells_small_edits_from_rounding() -> None:
    x_BD = np.random.default_rng(0).normal(size=(4, 5_000)).astype(np.float32)
    rounded = x_BD + np.float32(1e-6) * np.abs(x_BD)
    assert distance(sketch(x_BD), sketch(rounded)) < SAME_SKETCH < distance(sketch(x_BD), sketch(1.001 * x_BD)) < 2e-3
    one_BD = x_BD.copy()
    one_BD[3, 17] += 1  # relative to 70, the norm
    assert distance(sketch(x_BD), sketch(one_BD)) == pytest.approx(1 / np.linalg.norm(x_BD[3]), rel=0.3)


def test_a_network_that_cannot_be_exported_has_a_sketch_alone(tmp_path: Path) -> None:
    looks = PLUGIN.replace("return x.abs()", "x = 2 * x if float(x.max()) > 0.5 else x\n        return x.abs()")
    (tmp_path / "mine.py").write_text(looks)
    load_plugin(tmp_path / "mine.py")
    source = registry.lazy(NAME, CONTEXT)
    assert source.spec.graph == ""
    assert np.shape(source.spec.sketch) == (4, 64)
    with pytest.raises(SubstyleError, match="cannot export the network"):
        _ = source.graph


@pytest.mark.slow
def test_layers_apart_and_together_have_gates_of_their_own() -> None:
    context = LoadContext(64, 2, 0, None)
    names = [f"control:random:test_vit@layer={layers}" for layers in ("0:2", "0+2")]
    sources = [registry.lazy(name, context) for name in names]
    assert sources[0].spec.graph == sources[1].spec.graph
    keys = {OpenVINOBuilder(source, SAMPLES, batch=2, canvas=64, threads=1).key for source in sources}
    assert len(keys) == 2


def test_a_network_that_changes_while_it_is_used_is_refused(tmp_path: Path) -> None:
    source, *_ = found(tmp_path / "a", PLUGIN)
    source.unload()
    (tmp_path / "a" / "settings.txt").write_text("2")
    with pytest.raises(Exception, match="has changed since the run began"):
        _ = source.graph


@pytest.mark.parametrize("name", ["mine:first@layer=0", "mine:first@layr=0", "mine:first@layer=0..1"])
def test_options_that_a_family_does_not_read_are_refused(name: str, tmp_path: Path) -> None:
    """They would be stored as another backbone with the same embeddings."""
    found(tmp_path / "a", PLUGIN)
    with pytest.raises(ConfigError) as caught:
        registry.check_name(expand(name)[0])
    assert caught.value.field == f"backbone {expand(name)[0]}"
    registry.check_name("mine:folder@layer=0/first")


@pytest.mark.parametrize(
    ("old", "new", "settings"),
    [
        ("self.weight * GAIN", "self.weight + GAIN", ""),
        ("torch.zeros(3)", "torch.ones(3)", ""),
        ("", "", "2"),  # a file that the code reads
    ],
)
def test_an_edited_network_is_another_backbone(tmp_path: Path, old: str, new: str, settings: str) -> None:
    source, compiled, key = found(tmp_path / "a", PLUGIN)
    _, edited, edited_key = found(tmp_path / "b", PLUGIN.replace(old, new), settings)
    assert source.identity is None  # a plug-in may read anything
    canvas_BSSC = np.full((1, SIDE, SIDE, 3), 4, np.uint8)
    assert compiled.embed(canvas_BSSC).tolist() != edited.embed(canvas_BSSC).tolist()
    assert compiled.spec.weights_hash == edited.spec.weights_hash
    assert key != edited_key
    (difference,) = catalog.differences(compiled.describe()[0], edited.describe()[0])
    assert difference.startswith("embeddings of fixed pictures differ by ")
