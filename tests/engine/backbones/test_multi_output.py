"""Several layers of one network in one pass: the embeddings of each layer alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph, slow_after

from substyle.engine.backbones import registry
from substyle.engine.backbones.gate import GateError, check_members
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.spec import expand
from substyle.errors import ConfigError

BATCH, CANVAS = 4, 96
CONTEXT = registry.LoadContext(CANVAS, BATCH, 0, None)
VIT, RESNET = "control:random:test_vit", "control:random:test_resnet"
PASS = f"{VIT}@layer=0,module=block:ffn"


def batch(number: int, count: int = BATCH) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(number * BATCH + i, CANVAS, CANVAS)) for i in range(count)])


def source(name: str) -> LazyBackbone:
    backbone = registry.load_all(name, CONTEXT)
    return LazyBackbone.of(backbone, canvas=CANVAS, batch=BATCH)


@pytest.mark.parametrize("layers", ["2..1", "1..1", "3:3", "-1..1", "1,module=ffn:ffn"])
def test_fewer_than_two_layers_and_ranges_across_the_end_are_refused(layers: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(f"timm:m@layer={layers}")
    assert f"layer={layers}" in str(caught.value) or "module=ffn:ffn" in str(caught.value)


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


@pytest.mark.parametrize("options", ["layer=1+1", "layer=1+9", "layer=1+3,pool=what", "layer=+1"])
def test_concatenations_that_are_refused(options: str) -> None:
    with pytest.raises(ConfigError):
        registry.load_all(f"{VIT}@{options}", CONTEXT)
