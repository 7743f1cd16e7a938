from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph
from tests.engine.backbones.small_networks import GivenSamples
from torch import nn

from substyle.engine.backbones import gate
from substyle.engine.backbones.compile import CompileOptions, compile_source
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import IMAGENET_MEAN, IMAGENET_STD, Backbone, BackboneSpec

BATCH, SIDE = 4, 32
OPTIONS = CompileOptions(batch=BATCH, canvas=SIDE, threads=1, precision="int8")


def batch(first: int) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(first + i, SIDE, SIDE)) for i in range(BATCH)])


SAMPLES = GivenSamples([batch(0), 255 - batch(0)], BATCH, [batch(10), 255 - batch(20)])


pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def source() -> LazyBackbone:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 24, 3)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
    )
    module = Preprocessed(network, canvas=SIDE, side=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    spec = BackboneSpec("x:tiny", "tiny", 96, SIDE, IMAGENET_MEAN, IMAGENET_STD, "none", "seed 0", "tiny-0")
    return LazyBackbone.of(Backbone(spec, module), canvas=SIDE, batch=BATCH)


def test_int8_passes_the_gate_with_products_in_int8(source: LazyBackbone) -> None:
    compiled = compile_source(source, SAMPLES, OPTIONS)
    assert compiled.runtime["precision"] == "int8"
    assert compiled.gates is not None
    assert (compiled.gates[0]["threshold"], compiled.gates[0]["rows"]) == (0.99, 2 * BATCH)
    assert compiled.gates[0]["cosine_min"] >= 0.99
    running = compiled.embed.graph.compiled.get_runtime_model()  # type: ignore[attr-defined]
    info = [op.get_rt_info() for op in running.get_ordered_ops()]
    kinds = [i["runtimePrecision"].astype(str) for i in info if i["layerType"].astype(str) == "Convolution"]
    assert sum(kind in ("u8", "i8") for kind in kinds) >= 2 - int(compiled.runtime["unquantised_layers"] > 0)
    again = compile_source(source, SAMPLES, OPTIONS)
    assert (again.gates, again.runtime) == (compiled.gates, compiled.runtime)
    np.testing.assert_array_equal(again.embed(batch(30)), compiled.embed(batch(30)))


def test_int8_that_fails_keeps_first_layers_and_then_says_so(
    source: LazyBackbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    asked: list[int] = []
    real = OpenVINOBuilder.runtime

    def note(self: OpenVINOBuilder, policy: PrecisionPolicy) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        runtime = real(self, policy)
        if policy.precision != "int8":
            return runtime
        asked.append(policy.unquantised_layers)
        return lambda canvas: runtime(canvas)[:, ::-1]

    monkeypatch.setattr(OpenVINOBuilder, "runtime", note)
    with pytest.raises(gate.GateError, match=r"^x:tiny: int8 disagrees .*≥ 0\.99\)"):
        compile_source(source, SAMPLES, OPTIONS)
    assert asked == [0, 1]  # of 3 layers
