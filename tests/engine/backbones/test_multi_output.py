"""Several layers of one network in one pass: the embeddings of each layer alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph, slow_after
from tests.engine.backbones.small_networks import GivenSamples

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.gate import GateError, check_members
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import expand, fused
from substyle.errors import ConfigError

BATCH, CANVAS = 4, 96
CONTEXT = registry.LoadContext(CANVAS, BATCH, 0, None)
VIT, RESNET = "control:random:test_vit", "control:random:test_resnet"
PASS = f"{VIT}@layer=0,module=block:ffn"


def batch(number: int, count: int = BATCH) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(number * BATCH + i, CANVAS, CANVAS)) for i in range(count)])


SAMPLES = GivenSamples([batch(0), 255 - batch(0), batch(1)], BATCH)


def source(name: str) -> LazyBackbone:
    backbone = registry.load_all(name, CONTEXT)
    return LazyBackbone.of(backbone, canvas=CANVAS, batch=BATCH)


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
        (
            "timm:m@layer=0:2,module=block:ffn",
            [f"timm:m@layer={i},module={module}" for i in (0, 2) for module in ("block", "ffn")],
        ),
        ("timm:m@module=attention:ffn,layer=3", ["timm:m@module=attention,layer=3", "timm:m@module=ffn,layer=3"]),
        ("onnx:folder@layer=0..2/model.onnx", ["onnx:folder@layer=0..2/model.onnx"]),
    ],
)
def test_names_of_several_layers(name: str, names: list[str]) -> None:
    assert expand(name) == names


@pytest.mark.parametrize("layers", ["2..1", "1..1", "3:3", "-1..1", "1,module=ffn:ffn"])
def test_fewer_than_two_layers_and_ranges_across_the_end_are_refused(layers: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(f"timm:m@layer={layers}")
    assert f"layer={layers}" in str(caught.value) or "module=ffn:ffn" in str(caught.value)


@pytest.mark.parametrize("layers", ["1..", "..2", "1..x", "1:", "1;2"])
def test_other_layers_are_options_that_no_family_has(layers: str) -> None:
    name = f"timm:test_vit@layer={layers}"
    assert expand(name) == [name]
    with pytest.raises(ConfigError):
        registry.load(name, CONTEXT)


@pytest.mark.parametrize(
    "name",
    slow_after(
        1,
        [
            f"{VIT}@layer=0:2:-1,pool=avg",
            f"{VIT}@layer=0..3",
            f"{VIT}@layer=1:3,module=ffn:attention:block",
            f"{RESNET}@layer=0..4",
        ],
    ),
)
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
    with pytest.raises(ConfigError) as caught:
        registry.load_all(f"{VIT}@layer=1:-1:5", CONTEXT)  # the last block, twice
    assert "different layers" in str(caught.value)


@pytest.mark.slow
def test_facts_of_a_pass_are_those_of_each_layer() -> None:
    layers = compiled(PASS)
    assert layers.names == expand(PASS) == [facts["name"] for facts in layers.describe()]
    assert {facts["runtime"]["computed_with"] for facts in layers.describe()} == {PASS}
    assert {facts["rate"] for facts in layers.describe()} == {round(layers.rate, 2)}
    assert layers.gates is not None
    assert [facts["gate"] for facts in layers.describe()] == list(layers.gates)
    embedded = layers.embed(batch(2))
    for one, columns in zip(expand(PASS), layers.columns, strict=True):
        np.testing.assert_allclose(embedded[:, columns], compiled(one).embed(batch(2)), rtol=1e-4, atol=1e-5)
    assert layers.columns[-1].stop == embedded.shape[1]


@pytest.mark.slow
def test_a_single_backbone_has_no_pass() -> None:
    (facts,) = compiled(f"{VIT}@layer=0,module=ffn").describe()
    assert "computed_with" not in facts["runtime"]
    assert facts["name"] == f"{VIT}@layer=0,module=ffn"


@pytest.mark.slow
def test_every_member_must_pass_the_gate() -> None:
    reference = np.random.default_rng(0).normal(size=(4, source(PASS).spec.dim)).astype(np.float32)
    mean = reference.mean(axis=0)
    same = check_members(source(PASS), PrecisionPolicy("bf16"), None, reference, reference, mean)
    assert [result.cosine_min > 0.99999 for result in same] == [True] * 2
    wrong, width = reference.copy(), reference.shape[1] // 2
    wrong[0, width:] = wrong[1, width:]
    with pytest.raises(GateError) as caught:
        check_members(source(PASS), PrecisionPolicy("bf16"), None, wrong, reference, mean)
    assert f"{VIT}@layer=0,module=ffn:" in str(caught.value)
    assert f'name = "{PASS}"' in str(caught.value)  # what a study can configure


def test_graphs_of_other_layers_have_other_keys() -> None:
    def key(name: str) -> str:
        return OpenVINOBuilder(source(name), SAMPLES, batch=BATCH, canvas=CANVAS, threads=1).key

    assert len({key(f"{VIT}@layer={layers}") for layers in ("0..1", "0..2", "0:2", "2:0")}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{VIT}@layer=1+3", f"{VIT}@layer=1+-1,pool=avg,module=ffn", f"{RESNET}@layer=0+2+3"])
def test_a_concatenation_of_layers_is_one_backbone(name: str) -> None:
    whole = registry.load_all(name, CONTEXT)
    parts = [registry.load(each, CONTEXT) for each in fused(name)]
    assert whole.members == ()
    assert whole.spec.dim == sum(part.spec.dim for part in parts)
    assert whole.spec.pooling == " + ".join(part.spec.pooling for part in parts)
    canvas = torch.from_numpy(batch(0))
    with torch.inference_mode():
        expected = torch.cat([part.module(canvas) for part in parts if part.module], 1)
        assert whole.module is not None
        torch.testing.assert_close(whole.module(canvas), expected)


@pytest.mark.parametrize("options", ["layer=1+1", "layer=1+9", "layer=1+3,pool=what", "layer=+1"])
def test_concatenations_that_are_refused(options: str) -> None:
    with pytest.raises(ConfigError):
        registry.load_all(f"{VIT}@{options}", CONTEXT)
