"""Families of a plug-in: an edit of its code makes other backbones, though their weights are the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.engine.backbones.small_networks import GivenSamples

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import expand
from substyle.engine.store import catalog
from substyle.kernels.errors import ConfigError
from substyle.pipelines.transforms.registry import load_plugin

NAME, SIDE = "mine:first", 32
SAMPLES = GivenSamples([np.zeros((2, SIDE, SIDE, 3), np.uint8)], 2)

PLUGIN = """
import torch
from torch import nn
from substyle.engine.backbones.registry import Family, register_family
from substyle.engine.backbones.spec import Backbone, BackboneSpec, tensors_hash

GAIN = 2.0


def identify(name, rest, context):
    return {"weights": "the same"}


def load(name, rest, context):
    network = Network()
    rgb = (0.5, 0.5, 0.5)
    digest = tensors_hash(network.state_dict())
    spec = BackboneSpec(name, "mean", 3, context.canvas, rgb, rgb, "mean", "none", digest)
    return Backbone(spec, module=network, compiled=False)


register_family(Family("mine", "<name>", "my backbones", load, identify))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, canvas_BSSC):
        # a comment
        return canvas_BSSC.float().mean((1, 2)) * self.weight * GAIN
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


def found(folder: Path, text: str) -> tuple[dict[str, object] | None, CompiledBackbone, str]:
    """Identity, compiled backbone and the key of its artefacts for a plug-in of this text."""
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    registry.FAMILIES.pop("mine", None)
    load_plugin(folder / "mine.py")
    identity = registry.identity(NAME, CONTEXT)
    source = LazyBackbone(partial(registry.load, NAME, CONTEXT), identity)
    compiled = compile_source(source, SAMPLES, CompileOptions(batch=4, canvas=SIDE, threads=1))
    return identity, compiled, OpenVINOBuilder(source, SAMPLES, batch=4, canvas=SIDE, threads=1).key


@pytest.mark.parametrize(("old", "new"), [("self.weight * GAIN", "self.weight + GAIN"), ("GAIN = 2.0", "GAIN = 3.0")])
def test_an_edited_network_is_another_backbone(tmp_path: Path, old: str, new: str) -> None:
    identity, compiled, key = found(tmp_path / "a", PLUGIN)
    edited_identity, edited, edited_key = found(tmp_path / "b", PLUGIN.replace(old, new))
    canvas_BSSC = np.full((1, SIDE, SIDE, 3), 4, np.uint8)
    assert compiled.embed(canvas_BSSC).tolist() != edited.embed(canvas_BSSC).tolist()
    assert compiled.spec.weights_hash == edited.spec.weights_hash
    assert identity != edited_identity
    assert key != edited_key
    (difference,) = catalog.differences(compiled.describe()[0], edited.describe()[0])
    assert difference.split()[:2] == ["code", compiled.spec.code]
    assert edited.spec.code in difference


def test_an_edited_comment_changes_nothing(tmp_path: Path) -> None:
    identity, compiled, key = found(tmp_path / "a", PLUGIN)
    edited_identity, edited, edited_key = found(tmp_path / "b", PLUGIN.replace("# a comment", "# another\n"))
    assert (identity, compiled.describe()[0]["spec"], key) == (
        edited_identity,
        edited.describe()[0]["spec"],
        edited_key,
    )


def test_families_of_the_package_have_versions_instead() -> None:
    assert {family.code for family in registry.FAMILIES.values()} == {""}


def test_a_store_that_was_made_before_has_no_code() -> None:
    facts = {"name": "x", "dim": 3, "spec": {"weights_hash": "w"}, "runtime": {"name": "torch", "precision": "fp32"}}
    assert catalog.differences(facts, facts | {"spec": {"weights_hash": "w", "code": ""}}) == []


@pytest.mark.parametrize("name", ["mine:first@layer=0", "mine:first@layr=0", "mine:first@layer=0..1"])
def test_options_that_a_family_does_not_read_are_refused(name: str, tmp_path: Path) -> None:
    """They would be stored as another backbone with the same embeddings."""
    found(tmp_path / "a", PLUGIN)
    with pytest.raises(ConfigError) as caught:
        registry.check_name(expand(name)[0])
    assert caught.value.field == f"backbone {expand(name)[0]}"
    registry.check_name("mine:folder@layer=0/first")
