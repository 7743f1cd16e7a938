"""Typed graphs and the engines built from them, without a GPU; what a GPU alone can show is left to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from tests.conftest import slow_after
from torch import nn

from substyle.engine.backbones.export import Preprocessed, Typed, export, typed_graph
from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.backbones.runtimes.tensorrt import EngineError, TensorRTGraph, build, engine_key
from substyle.engine.devices import Precision
from substyle.errors import ConfigError, SubstyleError

CANVAS, BATCH, DIM = 48, 3, 5
BUILDS = pytest.mark.skipif(tensorrt.installed() is None, reason="no TensorRT")


class Small(nn.Module):
    """A convolution, attention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.out(mixed.mean(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def module() -> Preprocessed:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    return Preprocessed(Small().eval(), canvas=CANVAS, side=32, mean=half, std=half).eval()


@pytest.fixture(scope="module")
def typed(module: Preprocessed) -> Callable[[Precision], onnx.ModelProto]:
    made: dict[Precision, onnx.ModelProto] = {}

    def graph(precision: Precision) -> onnx.ModelProto:
        if precision not in made:
            made[precision] = typed_graph(module, precision, canvas=CANVAS, batch=BATCH)
        return made[precision]

    return graph


def canvases() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (BATCH, CANVAS, CANVAS, 3), dtype=np.uint8)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_the_typed_module_computes_the_same(module: Preprocessed, precision: Precision, tolerance: float) -> None:
    canvas = torch.from_numpy(canvases())
    with torch.inference_mode():
        got, want = Typed(module, precision)(canvas), module(canvas)
    assert got.dtype == torch.float32
    assert (got - want).abs().max() <= tolerance * want.abs().max()
    assert next(module.network.parameters()).dtype == torch.float32, "the backbone itself must stay as it is"
    moved = Typed(module, precision).double()
    assert moved.front.get_buffer("scale").dtype == torch.float64
    assert module.get_buffer("scale").dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_weights_of_the_graph_have_the_type(
    typed: Callable[[Precision], onnx.ModelProto], precision: Precision, kind: int
) -> None:
    graph = typed(precision).graph
    weights = {t.data_type for t in graph.initializer if len(t.dims) >= 2 and max(t.dims) < CANVAS}
    assert kind in weights
    large = [t for t in graph.initializer if len(t.dims) == 4 and tuple(t.dims)[1:] == (3, 8, 8)]
    assert [t.data_type for t in large] == [kind], "the first convolution"
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_a_typed_graph_gives_the_module_s_embeddings(
    module: Preprocessed, typed: Callable[[Precision], onnx.ModelProto]
) -> None:
    graph = OpenVINOGraph(typed("fp32").SerializeToString(), precision="fp32", threads=1)
    (got,) = graph(canvases()).values()
    with torch.inference_mode():
        np.testing.assert_allclose(got, module(torch.from_numpy(canvases())).numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def normalised() -> Preprocessed:
    """Convolutions with batch normalisations, which the exporter folds into them."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, 2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, DIM, 3),
        nn.BatchNorm2d(DIM),
    ]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().requires_grad_(False)
    half = (0.5, 0.5, 0.5)
    return Preprocessed(network, canvas=CANVAS, side=32, mean=half, std=half).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_normalisations_are_folded_in_the_network_s_type(
    normalised: Preprocessed, precision: Precision, kind: int
) -> None:
    model = typed_graph(normalised, precision, canvas=CANVAS, batch=BATCH)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convolved = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolved) == 2
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert {weights[name].data_type for node in convolved for name in node.input[1:]} == {kind}
    assert {name for node in model.graph.node for name in node.input} >= weights.keys(), "nothing is left over"
    if tensorrt.installed():
        assert len(build(model.SerializeToString(), batch=BATCH, canvas=CANVAS)) > 1000


def test_other_modules_are_refused() -> None:
    with pytest.raises(SubstyleError, match="Linear"):
        typed_graph(nn.Linear(2, 2), "bf16", canvas=CANVAS, batch=BATCH)


@BUILDS
@pytest.mark.parametrize("precision", slow_after(1, ["fp32", "fp16", "bf16"]))
def test_engines_are_built(typed: Callable[[Precision], onnx.ModelProto], precision: Precision, tmp_path: Path) -> None:
    onnx_bytes = typed(precision).SerializeToString()
    timing = tmp_path / "cache" / "timing"
    engine = build(onnx_bytes, batch=BATCH, canvas=CANVAS, timing=timing)
    assert len(engine) > 1000
    assert timing.is_file() == (tensorrt.installed() == "tensorrt")
    assert len(build(onnx_bytes, batch=BATCH, canvas=CANVAS, timing=timing)) > 1000


@BUILDS
@pytest.mark.parametrize(("batch", "canvas"), [(BATCH + 1, CANVAS), (BATCH, CANVAS + 4)])
def test_another_batch_or_canvas_is_refused(
    typed: Callable[[Precision], onnx.ModelProto], batch: int, canvas: int
) -> None:
    with pytest.raises(EngineError, match=rf"canvas \({batch}, {canvas}, {canvas}, 3\) uint8"):
        build(typed("bf16").SerializeToString(), batch=batch, canvas=canvas)


@BUILDS
def test_a_graph_that_is_none_is_refused() -> None:
    with pytest.raises(EngineError, match=tensorrt.library().__name__):
        build(b"no graph", batch=BATCH, canvas=CANVAS)


@pytest.mark.slow
@BUILDS
def test_bytes_that_are_not_cast_first_are_refused_with_the_parser_s_words(module: Preprocessed) -> None:
    graph = export(
        module, canvas=CANVAS, batch=BATCH
    ).SerializeToString()  # as OpenVINO takes it: transposed, then cast
    with pytest.raises(EngineError, match="UInt8"):
        build(graph, batch=BATCH, canvas=CANVAS)


@BUILDS
def test_every_message_goes_to_the_first_logger(typed: Callable[[Precision], onnx.ModelProto]) -> None:
    """TensorRT ignores further loggers, so a second one would miss the reason of a failure."""
    trt = tensorrt.library()
    logger = tensorrt._logger(trt.__name__)
    assert tensorrt._logger(trt.__name__) is logger
    logger.lines.clear()
    logger.log(trt.ILogger.WARNING, "slow")
    logger.log(trt.ILogger.ERROR, " out of memory\n")
    assert logger.lines == ["out of memory"]
    build(typed("fp32").SerializeToString(), batch=BATCH, canvas=CANVAS)
    assert "out of memory" not in logger.lines


@pytest.mark.slow
@BUILDS
def test_another_output_is_refused(module: Preprocessed) -> None:
    class Unpooled(nn.Module):
        def forward(self, canvas: torch.Tensor) -> torch.Tensor:
            return canvas.float().mean(3)

    graph = export(Unpooled(), canvas=CANVAS, batch=BATCH).SerializeToString()
    with pytest.raises(EngineError, match=r"embedding .*\(3, D\) float32"):
        build(graph, batch=BATCH, canvas=CANVAS)


@BUILDS
def test_an_engine_s_key_depends_on_graph_and_gpu() -> None:
    keys = {engine_key(graph, gpu=gpu) for graph in ("a", "b") for gpu in ("H100", "A100")}
    assert len(keys) == 4
    assert engine_key("a", gpu="H100") in keys


def test_no_tensorrt_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "LIBRARIES", ("no_such_tensorrt",))
    with pytest.raises(ConfigError, match="extra gpu") as caught:
        build(b"", batch=BATCH, canvas=CANVAS)
    assert (caught.value.field, caught.value.given) == ("runtime", "tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_gpu_an_engine_is_refused(device: str) -> None:
    with pytest.raises(EngineError, match=device):
        TensorRTGraph(b"", torch.device(device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("count", [0, 1, BATCH])
def test_an_engine_runs(module: Preprocessed, typed: Callable[[Precision], onnx.ModelProto], count: int) -> None:
    graph = TensorRTGraph(build(typed("fp32").SerializeToString(), batch=BATCH, canvas=CANVAS), torch.device("cuda"))
    canvas = canvases()[:count]
    with torch.inference_mode():
        want = module(torch.from_numpy(canvas)).numpy()
    started = [graph.start(canvas), graph.start(torch.from_numpy(canvas).cuda())]
    for one in started:
        np.testing.assert_allclose(one(), want, rtol=1e-3, atol=1e-4)
