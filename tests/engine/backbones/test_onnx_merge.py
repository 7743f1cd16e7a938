"""Merged graphs: what is common is there once, and every output is what its own graph gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from substyle.engine.backbones.export import export
from substyle.engine.backbones.multi_output import merge

SIDE, BATCH = 8, 2


class Layers(nn.Module):
    """Some layers on a canvas, the last of which is pooled."""

    def __init__(self, layers: list[nn.Module], factor: float = 1.0) -> None:
        super().__init__()
        self.layers, self.factor = nn.Sequential(*layers), factor

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        return self.layers(canvas_BSSC.permute(0, 3, 1, 2).float() * self.factor).mean((2, 3))


def layers(count: int, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3), nn.ReLU()) for i in range(count)]


def graph(module: nn.Module) -> onnx.ModelProto:
    return export(module.eval(), canvas=SIDE, batch=BATCH)


def run(model: onnx.ModelProto, canvas: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"canvas": canvas}))


def canvas() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)


def count(model: onnx.ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


def test_what_is_common_is_computed_once() -> None:
    whole = layers(3)
    models = [graph(Layers(whole[:1])), graph(Layers(whole)), graph(Layers(whole[:2]))]
    merged = merge(models)
    assert [count(model, "Conv") for model in (*models, merged)] == [1, 3, 2, 3]
    assert len(merged.graph.initializer) == len(models[1].graph.initializer)
    found = run(merged, canvas())
    assert len(found) == 3
    for model, output in zip(models, found, strict=True):
        np.testing.assert_array_equal(output, run(model, canvas())[0])


@pytest.mark.parametrize("other", [Layers(layers(2, seed=1)), Layers(layers(2), factor=0.5)], ids=["weights", "levels"])
def test_what_differs_stays_apart(other: Layers) -> None:
    models = [graph(Layers(layers(2))), graph(other)]
    merged = merge(models)
    assert count(merged, "Conv") == 4
    for model, output in zip(models, run(merged, canvas()), strict=True):
        np.testing.assert_array_equal(output, run(model, canvas())[0])


def test_the_same_graph_twice_has_two_outputs() -> None:
    model = graph(Layers(layers(2)))
    merged = merge([model, model])
    assert count(merged, "Conv") == 2
    assert [output.name for output in merged.graph.output] == ["embedding_0", "embedding_1"]
    np.testing.assert_array_equal(*run(merged, canvas()))


def test_graphs_that_do_not_go_together_are_refused() -> None:
    model = graph(Layers(layers(1)))
    other = export(Layers(layers(1)).eval(), canvas=SIDE, batch=BATCH + 1)
    with pytest.raises(ValueError, match="different inputs"):
        merge([model, other])
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.opset_import[0].version += 1
    with pytest.raises(ValueError, match="operator sets"):
        merge([model, newer])
