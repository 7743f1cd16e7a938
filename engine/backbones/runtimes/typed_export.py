"""ONNX graphs in which every tensor has the type it is computed in, as strongly typed runtimes take them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from substyle.engine.backbones.export import export
from substyle.engine.backbones.preprocess import Preprocessed
from substyle.engine.backbones.runtimes.onnx_weights import settle
from substyle.engine.precision import Precision
from substyle.kernels.errors import SubstyleError

if TYPE_CHECKING:
    import onnx

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Typed(nn.Module):
    """A backbone whose network computes in another type; preprocessing and the embedding stay float32.

    Args:
        module: the backbone, preprocessing included; it is copied.
        precision: of the network.
    """

    def __init__(self, module: Preprocessed, precision: Precision) -> None:
        super().__init__()
        self.front = copy.copy(module)
        self.front._modules = {"network": _Between(copy.deepcopy(module.network), TYPES[precision])}
        self.front._buffers = dict(module._buffers)  # where this copy is moved to, the backbone does not follow

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        embedding: torch.Tensor = self.front(canvas_BSSC.float())  # TensorRT takes bytes for a cast and nothing else
        return embedding


class _Between(nn.Module):
    """A network between two casts."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.to(self.dtype)).float()  # type: ignore[no-any-return]


def as_typed(module: nn.Module | None) -> Preprocessed:
    """A module that can be typed. Raises SubstyleError for one whose preprocessing cannot be told from its network."""
    if not isinstance(module, Preprocessed):
        raise SubstyleError(f"{type(module).__name__}: only backbones with the engine's own preprocessing can be typed")
    return module


def typed_graph(module: nn.Module, precision: Precision, *, canvas: int, batch: int) -> onnx.ModelProto:
    """The graph of a backbone at a fixed batch: ``canvas`` (B, S, S, 3) uint8 to ``embedding`` (B, D) float32.

    Raises:
        SubstyleError: a module whose preprocessing cannot be told from its network.
    """
    return settle(export(Typed(as_typed(module), precision).eval(), canvas=canvas, batch=batch))


def cast_first(graph: bytes) -> bytes:
    """A graph that moves its bytes about before it casts them, changed so that it casts them first, as TensorRT wants.

    Args:
        graph: a serialised model with one input, uint8.
    """
    import onnx

    model = onnx.load_from_string(graph)
    weights = {tensor.name for tensor in model.graph.initializer}
    (name,) = (value.name for value in model.graph.input if value.name not in weights)
    floats = f"{name}_float32"
    for node in model.graph.node:
        for i, source in enumerate(node.input):
            if source == name:
                node.input[i] = floats
    del model.graph.value_info[:]  # types of what was bytes; the parser infers them all
    model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], [floats], to=onnx.TensorProto.FLOAT))
    return bytes(model.SerializeToString())
