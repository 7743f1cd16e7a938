"""int8 and fp8 in TensorRT from a backbone to its engine, without a GPU: gate, keys, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tests.engine.backbones.small_networks import (
    BATCH,
    CANVAS,
    NETWORKS,
    ON_GPU,
    SAMPLES,
    backbone,
    batch,
    cosine,
    options,
    reference,
)
from tests.engine.backbones.typed_on_cpu import OnCPU

from substyle.engine import devices
from substyle.engine.backbones.compile import compile_source
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.runtimes.tensorrt import TensorRTBuilder
from substyle.engine.devices import Target
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread", "exported_once")


class Engines:
    """Engines that are their graphs, run by onnxruntime on the CPU; the cards they are built for have fp8."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built: list[bytes] = []
        self.card = SimpleNamespace(name="card", major=9, minor=0, multi_processor_count=132)
        trt = SimpleNamespace(__name__="tensorrt", __version__="10.9")
        monkeypatch.setattr(tensorrt, "library", lambda: trt)
        monkeypatch.setattr(tensorrt, "library", lambda: trt)
        monkeypatch.setattr(tensorrt, "build", self.build)
        monkeypatch.setattr(tensorrt, "TensorRTGraph", lambda engine, device: OnCPU(engine))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: self.card)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
        monkeypatch.setattr(Target, "torch_device", torch.device("cpu"))

    def build(self, graph: bytes, *, batch: int, canvas: int, timing: Path) -> bytes:
        self.built.append(graph)
        return graph


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engines:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    return Engines(monkeypatch)


@NETWORKS
def test_int8_passes_the_gate(engines: Engines, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = LazyBackbone.of(backbone(name), canvas=CANVAS, batch=BATCH)
    compiled = compile_source(source, SAMPLES, options("int8"))
    assert compiled.gates is not None
    assert compiled.gates[0]["threshold"] == 0.99
    assert compiled.gates[0]["cosine_min"] >= 0.99
    runtime = compiled.runtime
    assert (runtime["name"], runtime["precision"], runtime["float32_layers"]) == ("tensorrt", "int8", 0)
    assert runtime["between"] in ("bf16", "fp16")
    used = {node.op_type for node in onnx.load_from_string(engines.built[-1]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= used
    built = len(engines.built)
    again = compile_source(source, SAMPLES, options("int8"))
    assert len(engines.built) == built, "the second time all is at hand"
    assert (again.runtime, again.gates, again.rate) == (compiled.runtime, compiled.gates, compiled.rate)
    np.testing.assert_array_equal(again.embed(batch(50)[:3]), compiled.embed(batch(50))[:3])
    calibrated = [line for line in capsys.readouterr().err.splitlines() if "calibrating" in line]
    assert [line.split(":")[:2] for line in calibrated] == [["x", "tiny"]]


@pytest.mark.slow
def test_a_large_batch_is_quantised_by_what_a_small_one_shows(engines: Engines) -> None:
    how = {"batch": 12, "canvas": CANVAS, "threads": 1, "target": ON_GPU}
    source = LazyBackbone.of(backbone("transformer"), canvas=CANVAS, batch=12)
    artefact = TensorRTBuilder(source, SAMPLES, **how)  # type: ignore[arg-type]
    graph = artefact.graph(PrecisionPolicy("int8"))
    canvas = np.concatenate([batch(40), batch(50), batch(60)])
    assert cosine(OnCPU(graph)(canvas), reference("transformer", canvas)) >= 0.99


def test_missing_openvino_is_said(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    real = devices.importlib.util.find_spec  # type: ignore[attr-defined]
    found: Callable[[str], Any] = lambda name: None if name == "openvino" else real(name)  # noqa: E731
    monkeypatch.setattr(devices.importlib.util, "find_spec", found)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="openvino") as caught:
        compile_source(LazyBackbone.of(backbone(), canvas=CANVAS, batch=BATCH), SAMPLES, options("int8"))
    assert (caught.value.field, caught.value.given) == ("x:tiny: precision", "int8")
    assert not engines.built


@pytest.mark.parametrize(("major", "minor"), [(8, 0), (8, 6), (7, 5)])
def test_fp8_is_refused_by_cards_without_it(engines: Engines, major: int, minor: int) -> None:
    engines.card.major, engines.card.minor = major, minor
    with pytest.raises(ConfigError, match=rf"{major}\.{minor}") as caught:
        options("fp8")
    assert (caught.value.field, caught.value.given) == ("precision", "fp8")
    assert options("int8").precision == "int8"
