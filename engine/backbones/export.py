"""Export of torch modules to ONNX graphs, in float32 or with mixed precision."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from substyle.engine.backbones.spec import RGB
from substyle.engine.devices import Precision
from substyle.kernels.errors import SubstyleError

if TYPE_CHECKING:
    import onnx


def export(module: nn.Module, *, canvas: int, batch: int, output: str = "embedding") -> onnx.ModelProto:
    """A torch module with the canvas interface as an ONNX model of fixed shapes."""
    example = torch.zeros(batch, canvas, canvas, 3, dtype=torch.uint8)
    # the exporter prints its steps and repeats notes on operators that no graph here has
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (example,), dynamo=True, verbose=False, input_names=["canvas"], output_names=[output], optimize=True
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model_proto


# From a uint8 canvas to a network's input, as part of the network's own graph.


def cubic_matrix(side: int, target: int) -> torch.Tensor:
    """Antialiased bicubic resampling along one axis as a matrix. Shape: (target, side) float32.

    Its rows are what PyTorch's antialiased bicubic interpolation (Pillow's filter, a = -0.5) gives for unit impulses.
    """
    impulses = torch.eye(side).view(1, 1, side, side)
    return interpolate(impulses, size=(target, side), mode="bicubic", antialias=True, align_corners=False)[0, 0]


class Preprocessed(nn.Module):
    """A float network behind the uint8 interface: cast, layout, resize, normalisation, network, pooling.

    Args:
        network: takes (B, 3, side, side) float32, returns (B, D).
        canvas: canvas side S.
        side: the network's input side; resized to it by two constant matrices when it is not S.
        mean, std: normalisation of RGB in [0, 1].
    """

    def __init__(self, network: nn.Module, *, canvas: int, side: int, mean: RGB, std: RGB) -> None:
        super().__init__()
        self.network = network
        self.resizes = side != canvas
        # (x / 255 - mean) / std as one multiply and one add
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(1, 3, 1, 1), persistent=False)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1)
        self.register_buffer("shift", shift, persistent=False)
        if self.resizes:
            self.register_buffer("matrix", cubic_matrix(canvas, side), persistent=False)

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        x = canvas_BSSC.permute(0, 3, 1, 2).float()
        if self.resizes:
            matrix = self.get_buffer("matrix")
            # the libraries resize to uint8 images: clamp the cubic's overshoot as they do
            x = (matrix @ x @ matrix.T).clamp(0.0, 255.0)
        return self.network(x * self.get_buffer("scale") + self.get_buffer("shift"))  # type: ignore[no-any-return]


# Weights of ONNX graphs as arrays, and back in any type that an accelerator computes in.

# numbers of TensorProto.DataType, which are part of the format: importing onnx takes a fifth of a second
FLOAT, INT8, FLOAT16, BFLOAT16, FLOAT8 = 1, 3, 10, 16, 17
NARROW = frozenset({FLOAT16, BFLOAT16})
_TYPES = {
    FLOAT: torch.float32,
    INT8: torch.int8,
    FLOAT16: torch.float16,
    BFLOAT16: torch.bfloat16,
    FLOAT8: torch.float8_e4m3fn,
}
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def array(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """A weight in float32, whatever float type it has."""
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)


def rounded(values: NDArray[np.float32], kind: int) -> NDArray[np.float32]:
    """Values as a type can hold them, in float32."""
    return np.asarray(torch.from_numpy(np.ascontiguousarray(values)).to(_TYPES[kind]).float().numpy())


def weight(name: str, values: NDArray[np.float32], kind: int) -> onnx.TensorProto:
    """Values as a weight of a type; those beyond its range must have been clipped."""
    import onnx

    stored = torch.from_numpy(np.array(values, np.float32)).to(_TYPES[kind])
    # numpy knows neither bfloat16 nor float8: their bytes are what is stored
    raw = stored.reshape(-1).view(torch.uint8).numpy().tobytes()
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=raw)


def settle(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of products that are float32 where what they meet has 16 bits get its type; the model is changed.

    The exporter folds a batch normalisation into the convolution before it in float32 where the network is bfloat16.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    added: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        kind = known.get(node.input[0]) if node.op_type in _PRODUCTS else None
        if kind not in NARROW:
            continue
        for i, name in enumerate(node.input):
            if name in tensors and tensors[name].data_type == FLOAT:
                typed = f"{name}_{kind}"
                if typed not in added:
                    added[typed] = weight(typed, array(tensors[name]), kind)
                node.input[i] = typed
    model.graph.initializer.extend(added.values())
    drop_unused(model)
    return model


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove weights that no node takes."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


# ONNX graphs in which every tensor has the type it is computed in, as strongly typed runtimes take them.

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
    """A module that can be typed. Raises SubstyleError where preprocessing and network cannot be separated."""
    if not isinstance(module, Preprocessed):
        raise SubstyleError(f"{type(module).__name__}: only backbones with the engine's own preprocessing can be typed")
    return module


def typed_graph(module: nn.Module, precision: Precision, *, canvas: int, batch: int) -> onnx.ModelProto:
    """The graph of a backbone at a fixed batch: ``canvas`` (B, S, S, 3) uint8 to ``embedding`` (B, D) float32.

    Raises:
        SubstyleError: a module whose preprocessing cannot be separated from its network.
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
