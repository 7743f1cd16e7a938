"""int8 and fp8 in TensorRT from a backbone to its engine, without a GPU: gate, keys, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from tests.engine.backbones.small_networks import (
    BATCH,
    CANVAS,
    EACH,
    NETWORKS,
    ON_GPU,
    SAMPLES,
    GivenSamples,
    backbone,
    batch,
    cosine,
    options,
    reference,
)
from tests.engine.backbones.typed_on_cpu import OnCPU

from substyle.engine import cache, devices
from substyle.engine.backbones import gate, lazy
from substyle.engine.backbones.compile import builder_of, compile_source
from substyle.engine.backbones.gate import PrecisionGate
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.runtimes.tensorrt import TensorRTBuilder
from substyle.engine.backbones.spec import Backbone
from substyle.engine.devices import EightBits, Target
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
def test_what_stays_between_products_passes_the_gate_alone(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = PrecisionGate.compare

    def check(self: PrecisionGate, policy: PrecisionPolicy) -> list[gate.GateResult]:
        if policy.precision == "bf16":
            raise gate.RejectedError("not in bf16")
        return real(self, policy)

    monkeypatch.setattr(PrecisionGate, "compare", check)
    runtime = compile_source(LazyBackbone.of(backbone(), canvas=CANVAS, batch=BATCH), SAMPLES, options("int8")).runtime
    assert runtime["between"] == "fp16"
    kinds = {tensor.data_type for tensor in onnx.load_from_string(engines.built[-1]).graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.BFLOAT16 not in kinds
    said = capsys.readouterr().err
    assert "x:tiny: bf16 failed: not in bf16\n" in said
    assert "x:tiny: using fp16\n" in said


def test_what_fails_keeps_first_layers_and_then_says_so(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = PrecisionGate.compare

    def check(self: PrecisionGate, policy: PrecisionPolicy) -> list[gate.GateResult]:
        if policy.precision != "fp8":
            return real(self, policy)
        asked.append(policy.unquantised_layers)
        raise gate.RejectedError("fp8 does not agree")

    monkeypatch.setattr(PrecisionGate, "compare", check)
    with pytest.raises(gate.GateError, match=r"^fp8 does not agree$"):
        compile_source(LazyBackbone.of(backbone(), canvas=CANVAS, batch=BATCH), SAMPLES, options("fp8"))
    assert asked == [0, 1]  # of 3 layers


@pytest.mark.slow
def test_a_large_batch_is_quantised_by_what_a_small_one_shows(engines: Engines) -> None:
    how = {"batch": 12, "canvas": CANVAS, "threads": 1, "target": ON_GPU}
    source = LazyBackbone.of(backbone("transformer"), canvas=CANVAS, batch=12)
    artefact = TensorRTBuilder(source, SAMPLES, **how)  # type: ignore[arg-type]
    graph = artefact.graph(PrecisionPolicy("int8"))
    canvas = np.concatenate([batch(40), batch(50), batch(60)])
    assert cosine(OnCPU(graph)(canvas), reference("transformer", canvas)) >= 0.99


def test_the_calibration_is_in_the_key_of_an_engine(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    source = LazyBackbone.of(backbone(), canvas=CANVAS, batch=BATCH)

    def key(policy: PrecisionPolicy, samples: GivenSamples = SAMPLES) -> str:
        artefact = builder_of(source, samples, options("auto"))
        assert isinstance(artefact, TensorRTBuilder)
        return artefact.graph_key(policy)

    first = key(PrecisionPolicy("int8"))
    assert first == key(PrecisionPolicy("int8"))
    others = [
        key(PrecisionPolicy("bf16")),
        key(PrecisionPolicy("fp8")),
        key(PrecisionPolicy("int8", unquantised_layers=1)),
        key(PrecisionPolicy("int8", between="fp16")),
        key(PrecisionPolicy("int8"), dataclasses.replace(SAMPLES, extra_GSSC=[batch(11)])),
    ]
    assert len({first, *others}) == 6
    monkeypatch.setattr(cache, "code_hash", lambda: "other")
    assert key(PrecisionPolicy("int8")) != first


@EACH
def test_no_further_photographs_is_said(engines: Engines, precision: EightBits) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_source(
            LazyBackbone.of(backbone(), canvas=CANVAS, batch=BATCH), GivenSamples([batch(0)], BATCH), options(precision)
        )
    assert (caught.value.field, caught.value.given) == ("precision", "8 bits")
    assert not engines.built


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


@pytest.mark.parametrize(("major", "minor"), [(8, 9), (9, 0), (12, 0)])
def test_fp8_is_there_from_8_9_on(engines: Engines, major: int, minor: int) -> None:
    engines.card.major, engines.card.minor = major, minor
    assert options("fp8").precision == "fp8"


def test_backbones_that_come_as_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "embed_fixed", lambda backbone, canvas, batch: np.zeros((0, 1), np.float32))
    artefact = LazyBackbone.of(Backbone(backbone().spec, graph=b"a graph"), canvas=CANVAS, batch=BATCH)
    with pytest.raises(ConfigError, match=r"^x:tiny: precision: got 'int8'; allowed: auto, fp32 "):
        TensorRTBuilder(artefact, SAMPLES, batch=BATCH, canvas=CANVAS, threads=1).require_precision("int8")


def test_neither_nncf_nor_onnxruntime_is_needed(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nncf", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    artefact = builder_of(LazyBackbone.of(backbone(), canvas=CANVAS, batch=BATCH), SAMPLES, options("int8"))
    assert isinstance(artefact, TensorRTBuilder)
    assert artefact.graph(PrecisionPolicy("int8"))
