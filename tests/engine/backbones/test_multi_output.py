"""Several layers of one network in one pass: the embeddings of each layer alone, each canvas computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import (
    CompiledBackbone,
    CompileOptions,
    OutputMember,
    compile_source,
    members,
)
from substyle.engine.backbones.gate import GateError, PrecisionSearch
from substyle.engine.backbones.registry import LazyBackbone
from substyle.engine.backbones.runtimes.base import GivenSamples, PrecisionPolicy
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import expand
from substyle.kernels.errors import ConfigError

BATCH, CANVAS = 4, 96
CONTEXT = registry.LoadContext(CANVAS, BATCH, 0, None)
VIT, RESNET = "control:random:test_vit", "control:random:test_resnet"


def batch(number: int, count: int = BATCH) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(number * BATCH + i, CANVAS, CANVAS)) for i in range(count)])


SAMPLES = GivenSamples([batch(0), 255 - batch(0), batch(1)], BATCH)


def source(name: str) -> LazyBackbone:
    backbone = registry.load_all(name, CONTEXT)
    return LazyBackbone(lambda: backbone, None)


def compiled(name: str) -> CompiledBackbone:
    options = CompileOptions(batch=BATCH, canvas=CANVAS, threads=1, precision="fp32")
    return compile_source(source(name), SAMPLES, options)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("timm:m", ["timm:m"]),
        ("timm:m@layer=3", ["timm:m@layer=3"]),
        ("timm:m.tag@layer=0..2,pool=avg", [f"timm:m.tag@layer={i},pool=avg" for i in range(3)]),
        ("timm:m@pool=max,layer=-2..-1", ["timm:m@pool=max,layer=-2", "timm:m@pool=max,layer=-1"]),
        ("mae:base@layer=2:5:-1", ["mae:base@layer=2", "mae:base@layer=5", "mae:base@layer=-1"]),
        ("onnx:folder@layer=0..2/model.onnx", ["onnx:folder@layer=0..2/model.onnx"]),
    ],
)
def test_names_of_several_layers(name: str, names: list[str]) -> None:
    assert expand(name) == names


@pytest.mark.parametrize("layers", ["2..1", "3:3"])
def test_no_or_repeated_layers_are_refused(layers: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(f"timm:m@layer={layers}")
    assert f"layer={layers}" in str(caught.value)


@pytest.mark.parametrize("layers", ["1..", "..2", "1..x", "1:", "1;2"])
def test_other_layers_are_options_that_no_family_has(layers: str) -> None:
    name = f"timm:test_vit@layer={layers}"
    assert expand(name) == [name]
    with pytest.raises(ConfigError):
        registry.load(name, CONTEXT)


@pytest.mark.parametrize("name", [f"{VIT}@layer=0:2:-1,pool=avg", f"{VIT}@layer=0..3", f"{RESNET}@layer=0..4"])
def test_a_pass_gives_what_each_layer_gives_alone(name: str) -> None:
    whole = registry.load_all(name, CONTEXT)
    apart = [registry.load(each, CONTEXT) for each in expand(name)]
    assert whole.members == tuple(each.spec for each in apart)
    assert (whole.spec.name, whole.spec.dim) == (name, sum(each.spec.dim for each in apart))
    canvas = torch.from_numpy(batch(2))
    assert whole.module is not None
    with torch.inference_mode():
        alone = [each.module(canvas) for each in apart if each.module is not None]
        torch.testing.assert_close(whole.module(canvas), torch.cat(alone, dim=1), rtol=0, atol=0)


def test_layers_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load_all(f"{VIT}@layer=0:99", CONTEXT)
    assert f"{VIT}@layer=99" in str(caught.value)
    with pytest.raises(ConfigError):
        registry.load_all("control:pixels@layer=0..1", CONTEXT)


class Counted:
    """Counts the pieces that graphs compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces = 0
        start = OpenVINOGraph.start

        def counting(graph: OpenVINOGraph, inputs: Sequence[NDArray[np.uint8]]) -> object:
            self.pieces += 1
            return start(graph, inputs)

        monkeypatch.setattr(OpenVINOGraph, "start", counting)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[CompiledBackbone]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBSTYLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return members(compiled(f"{VIT}@layer=0..2"))


def test_members_share_a_pass(layers: list[CompiledBackbone], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.spec.name for one in layers] == expand(f"{VIT}@layer=0..2")
    assert {one.runtime["computed_with"] for one in layers} == {f"{VIT}@layer=0..2"}
    first = layers[0].embed
    assert isinstance(first, OutputMember)
    counted = Counted(monkeypatch)
    for count in (1, BATCH, 2 * BATCH + 1):
        canvas = torch.from_numpy(batch(2, count))
        expected = np.split(first.shared.compiled.embed(canvas.numpy()), 3, axis=1)
        before = counted.pieces
        started = [one.start(canvas) for one in layers]
        assert counted.pieces - before == -(-count // BATCH), "computed once for all"
        for one, alone in zip(reversed(started), reversed(expected), strict=True):
            np.testing.assert_array_equal(one.result(), alone)
        for member, alone in zip(layers, expected, strict=True):
            np.testing.assert_array_equal(member.embed(canvas.numpy()), alone)


def test_a_canvas_that_is_given_again_is_computed_again(layers: list[CompiledBackbone]) -> None:
    first, _, last = layers
    canvas = torch.from_numpy(batch(2))
    np.testing.assert_array_equal(first.start(canvas).result(), first.embed(batch(2)))
    canvas.copy_(torch.from_numpy(batch(3)))
    np.testing.assert_array_equal(first.start(canvas).result(), first.embed(batch(3)))
    np.testing.assert_array_equal(last.start(canvas).result(), last.embed(batch(3)))


def test_pending_results_end_with_their_canvas(layers: list[CompiledBackbone]) -> None:
    first = layers[0]
    assert isinstance(first.embed, OutputMember)
    for number in range(3):
        first.start(torch.from_numpy(batch(number))).result()
    assert len(first.embed.shared._begun) == 0


def test_a_single_backbone_is_its_own_member() -> None:
    one = compiled(f"{VIT}@layer=1")
    assert members(one) == [one]


def test_every_member_must_pass_the_gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    built = OpenVINOBuilder(source(f"{VIT}@layer=0..2"), SAMPLES, batch=BATCH, canvas=CANVAS, threads=1)
    search = PrecisionSearch(built, SAMPLES, "bf16", "float16")
    reference = search._reference
    assert search._compare(PrecisionPolicy("bf16"), reference, reference).cosine_min > 0.99999
    wrong, width = reference.copy(), reference.shape[1] // 3
    wrong[0, width : 2 * width] = wrong[1, width : 2 * width]
    with pytest.raises(GateError) as caught:
        search._compare(PrecisionPolicy("bf16"), wrong, reference)
    assert f"{VIT}@layer=1:" in str(caught.value)


def test_graphs_of_other_layers_have_other_keys() -> None:
    def key(name: str) -> str:
        return OpenVINOBuilder(source(name), SAMPLES, batch=BATCH, canvas=CANVAS, threads=1).key

    assert len({key(f"{VIT}@layer={layers}") for layers in ("0..1", "0..2", "0:2", "2:0")}) == 4
