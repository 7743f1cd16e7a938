"""Backbones in torch and TensorRT as `compile_source` makes them: precisions, gates, caches, and what stores are told.

Engines are built and run on a GPU; here a stand-in keeps the graph for an engine and OpenVINO runs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph
from tests.engine.backbones.small_networks import GivenSamples
from torch import nn

from substyle.engine.backbones import gate
from substyle.engine.backbones.compile import CompileOptions, compile_source
from substyle.engine.backbones.export import Preprocessed, Typed
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.runtimes.tensorrt import EngineError
from substyle.engine.backbones.spec import Backbone, BackboneSpec
from substyle.engine.devices import Target
from substyle.errors import ConfigError

SIDE, BATCH, DIM = 32, 4, 6
ON_CPU, ON_GPU = Target("cpu", "torch"), Target("cuda:0", "tensorrt")
pytestmark = pytest.mark.usefixtures("one_thread", "own_cache", "exported_once")


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))


def lazy(made: Backbone) -> LazyBackbone:
    return LazyBackbone.of(made, canvas=SIDE, batch=BATCH)


def backbone() -> Backbone:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(512, DIM)).eval()
    half = (0.5, 0.5, 0.5)
    module = Preprocessed(network.requires_grad_(False), canvas=SIDE, side=SIDE, mean=half, std=half).eval()
    spec = BackboneSpec("x:tiny", "tiny", DIM, SIDE, half, half, "flat", "none", "0123")
    return Backbone(spec, module)


def samples() -> GivenSamples:
    plain = np.stack([np.array(photograph(i, SIDE, SIDE)) for i in range(BATCH)])
    return GivenSamples([plain, 255 - plain, plain[:, ::-1].copy()], BATCH)


def options(target: Target, precision: str = "auto", batch: int = BATCH) -> CompileOptions:
    return CompileOptions(batch=batch, canvas=SIDE, threads=1, precision=precision, target=target)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """torch.compile gives back what it is given, which takes no time; the list holds what that was."""
    given: list[nn.Module] = []

    def compiled(module: nn.Module, **how: object) -> nn.Module:
        given.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    return given


# --- torch ------------------------------------------------------------------------------------------------------------


def test_a_precision_that_is_asked_for_and_fails_is_an_error_with_numbers(
    uncompiled: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, {"bf16"})
    with pytest.raises(gate.GateError, match=r"^x:tiny: bf16 .* cosine min \S+, mean \S+ \(.*≥ 0\.999\)"):
        compile_source(lazy(backbone()), samples(), options(ON_CPU, "bf16"))
    assert compile_source(lazy(backbone()), samples(), options(ON_CPU, "fp16")).runtime["precision"] == "fp16"


def _spoil(monkeypatch: pytest.MonkeyPatch, bad: set[str]) -> None:
    """Networks of these types mix up what they have computed."""
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    real = Typed.forward

    def forward(self: Typed, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        out = real(self, canvas_BSSC)
        spoilt = next(self.front.network.parameters()).dtype in {types[name] for name in bad}
        return out.roll(1, dims=0) if spoilt else out

    monkeypatch.setattr(Typed, "forward", forward)


def test_what_torch_cannot_compile_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: nn.Module, **how: object) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    assert compile_source(lazy(backbone()), samples(), options(ON_CPU)).runtime["name"] == "torch"


def test_torch_takes_no_graphs() -> None:
    made = Backbone(dataclasses.replace(backbone().spec, dim=3 * SIDE), graph=graph())
    with pytest.raises(ConfigError, match="openvino or tensorrt") as caught:
        compile_source(lazy(made), samples(), options(ON_CPU))
    assert (caught.value.field, caught.value.given) == ("x:tiny: runtime", "torch")


# --- TensorRT ---------------------------------------------------------------------------------------------------------


class Engines:
    """Builds engines that are their graphs, and runs them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built: list[bytes] = []
        self.unusable: set[bytes] = set()
        self.trt = SimpleNamespace(__name__="tensorrt", __version__="10.9")
        monkeypatch.setattr(tensorrt, "library", lambda: self.trt)
        monkeypatch.setattr(tensorrt, "library", lambda: self.trt)
        monkeypatch.setattr(tensorrt, "build", self.build)
        monkeypatch.setattr(tensorrt, "TensorRTGraph", self.load)
        card = SimpleNamespace(name="card", major=9, minor=0, multi_processor_count=132)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
        monkeypatch.setattr(Target, "torch_device", torch.device("cpu"))  # of the reference

    def build(self, graph: bytes, *, batch: int, canvas: int, timing: Path) -> bytes:
        assert timing.parent.name == "timings"
        self.built.append(graph)
        return graph + bytes([len(self.built)])  # no two builds are alike

    def load(self, engine: bytes, device: torch.device) -> Engine:
        if engine in self.unusable:
            raise EngineError("made for another card")
        return Engine(engine[:-1])


class Engine:
    """An engine: at most B images, padded by itself."""

    def __init__(self, graph: bytes) -> None:
        self.graph = FixedBatch(OpenVINOGraph(graph, precision="fp32", threads=1), BATCH)

    def start(self, canvas_BSSC: torch.Tensor | NDArray[np.uint8]) -> object:
        assert len(canvas_BSSC) <= BATCH
        return self.graph.start(canvas_BSSC)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def test_an_engine_is_built_once_and_loaded_by_all(engines: Engines, tmp_path: Path) -> None:
    source = lazy(backbone())
    first = compile_source(source, samples(), options(ON_GPU))
    assert first.runtime == {
        **{"name": "tensorrt", "precision": "bf16", "float32_layers": 0, "version": "10.9"},
        **{"device": "cuda", "gpu": "card"},
    }
    assert len(engines.built) == 1
    assert onnx.TensorProto.BFLOAT16 in {t.data_type for t in onnx.load_from_string(engines.built[0]).graph.initializer}
    kinds = sorted({path.relative_to(tmp_path / "cache").parts[0] for path in (tmp_path / "cache").rglob("*.*")})
    assert kinds == ["engines", "gates", "graphs", "policies", "rates"]
    second = compile_source(source, samples(), options(ON_GPU))
    assert len(engines.built) == 1
    assert (second.runtime, second.gates, second.rate) == (first.runtime, first.gates, first.rate)
    canvas = samples().batches_GSSC[1]
    np.testing.assert_array_equal(second.embed(canvas[:3]), first.embed(canvas)[:3])


@pytest.mark.parametrize("how", ["cut", "of another card"])
def test_an_engine_that_cannot_be_used_is_built_anew(
    engines: Engines, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = compile_source(lazy(backbone()), samples(), options(ON_GPU, "fp32"))
    (path,) = (tmp_path / "cache" / "engines").glob("*.engine")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        engines.unusable.add(engines.built[0] + bytes([1]))
    second = compile_source(lazy(backbone()), samples(), options(ON_GPU, "fp32"))
    assert len(engines.built) == 2
    said = capsys.readouterr().err
    assert (f"{path}: " in said and "made for another card" in said) == (how != "cut")
    np.testing.assert_array_equal(second.embed(samples().first()), first.embed(samples().first()))
    compile_source(lazy(backbone()), samples(), options(ON_GPU, "fp32"))
    assert len(engines.built) == 2


def graph(side: int = SIDE) -> bytes:
    """A backbone that comes as a graph and, as OpenVINO may, transposes bytes before it casts them."""
    nodes = [
        onnx.helper.make_node("Transpose", ["canvas"], ["channels"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Cast", ["channels"], ["x"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        onnx.helper.make_node("Flatten", ["mean"], ["embedding"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info("canvas", onnx.TensorProto.UINT8, [BATCH, side, side, 3])]
    outputs = [onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, [BATCH, 3 * side])]
    axes = onnx.numpy_helper.from_array(np.array([3], np.int64), "axes")
    made = onnx.helper.make_graph(nodes, "g", inputs, outputs, [axes])
    opset = [onnx.helper.make_opsetid("", 18)]
    return bytes(onnx.helper.make_model(made, opset_imports=opset, ir_version=10).SerializeToString())


def test_a_backbone_that_comes_as_a_graph(engines: Engines) -> None:
    spec = dataclasses.replace(backbone().spec, dim=3 * SIDE)
    source = lazy(Backbone(spec, graph=graph()))
    compiled = compile_source(source, samples(), options(ON_GPU))
    assert compiled.runtime["precision"] == "fp32"
    assert compiled.gates is not None
    assert onnx.load_from_string(engines.built[0]).graph.node[0].op_type == "Cast", "as TensorRT takes bytes"
    canvas = samples().first()
    expected = canvas.transpose(0, 3, 1, 2).astype(np.float32).mean(3).reshape(BATCH, -1)
    np.testing.assert_allclose(compiled.embed(canvas), expected, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"^x:tiny: precision: got 'bf16'; allowed: auto, fp32 "):
        compile_source(source, samples(), options(ON_GPU, "bf16"))


# --- all --------------------------------------------------------------------------------------------------------------
