"""Typed graphs and the engines built from them, without a GPU; what a GPU alone can show is left to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from substyle.engine.backbones.export import Preprocessed, Typed, typed_graph
from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.backbones.runtimes.tensorrt import EngineError, TensorRTGraph, build
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


def test_other_modules_are_refused() -> None:
    with pytest.raises(SubstyleError, match="Linear"):
        typed_graph(nn.Linear(2, 2), "bf16", canvas=CANVAS, batch=BATCH)


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
