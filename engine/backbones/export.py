"""Export of torch modules to ONNX graphs, in float32 or with mixed precision."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from substyle.engine.backbones.spec import RGB
from substyle.engine.devices import Precision
from substyle.errors import SubstyleError

if TYPE_CHECKING:
    import onnx


def export(module: nn.Module, *, canvas: int, batch: int, output: str = "embedding") -> onnx.ModelProto:
    """Export a torch module with the canvas interface to an ONNX model with fixed shapes."""
    example = torch.zeros(batch, canvas, canvas, 3, dtype=torch.uint8)
    # silence the exporter's progress and irrelevant notes on operators
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names: dict[str, Any] = {"verbose": False, "input_names": ["canvas"], "output_names": [output]}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):  # which dynamo cannot read
            import onnx

            file: Any = io.BytesIO()
            traced = torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
            torch.onnx.export(traced, (example,), file, dynamo=False, **names)
            return onnx.load_model_from_string(file.getvalue())
        program = torch.onnx.export(module, (example,), dynamo=True, optimize=True, **names)
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model_proto


def cubic_matrix(side: int, target: int) -> torch.Tensor:
    """Return the matrix (target, side) float32 of antialiased bicubic resampling along one axis.

    Its columns are the responses of PyTorch's antialiased bicubic interpolation (Pillow's filter, a = -0.5) to unit
    impulses.
    """
    impulses = torch.eye(side).view(1, 1, side, side)
    return interpolate(impulses, size=(target, side), mode="bicubic", antialias=True, align_corners=False)[0, 0]


class Preprocessed(nn.Module):
    """A float network with the uint8 canvas interface: cast, layout, resize, normalisation, network.

    Args:
        network: maps (B, 3, side, side) float32 to (B, D).
        canvas: canvas side S in pixels.
        side: the network's input side; canvases are resized by two constant matrices if it is not S.
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
        """Embed (B, S, S, 3) uint8 to (B, D) float32."""
        x = canvas_BSSC.permute(0, 3, 1, 2).float()
        if self.resizes:
            matrix = self.get_buffer("matrix")
            # clamp the overshoot, as libraries that resize uint8 images do
            x = (matrix @ x @ matrix.T).clamp(0.0, 255.0)
        return self.network(x * self.get_buffer("scale") + self.get_buffer("shift"))  # type: ignore[no-any-return]


# values of TensorProto.DataType, fixed by the format; importing onnx takes a fifth of a second
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
    """Convert a weight of any float type to float32."""
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)


def rounded(values: NDArray[np.float32], kind: int) -> NDArray[np.float32]:
    """Round values to a type and return them in float32."""
    return np.asarray(torch.from_numpy(np.ascontiguousarray(values)).to(_TYPES[kind]).float().numpy())


def weight(name: str, values: NDArray[np.float32], kind: int) -> onnx.TensorProto:
    """Convert values within the range of a type to a weight of that type."""
    import onnx

    stored = torch.from_numpy(np.array(values, np.float32)).to(_TYPES[kind])
    # numpy has neither bfloat16 nor float8
    raw = stored.reshape(-1).view(torch.uint8).numpy().tobytes()
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=raw)


def settle(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert float32 weights of 16-bit products to the type of their input, in place.

    The exporter folds batch normalisations into convolutions in float32, also in a bfloat16 network.
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
    """Remove weights that no node uses."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Typed(nn.Module):
    """A backbone whose network computes in another type; preprocessing and embedding stay float32.

    Args:
        module: the backbone with preprocessing; it is copied.
        precision: precision of the network.
    """

    def __init__(self, module: Preprocessed, precision: Precision) -> None:
        super().__init__()
        self.front = copy.copy(module)
        self.front._modules = {"network": _Between(copy.deepcopy(module.network), TYPES[precision])}
        self.front._buffers = dict(module._buffers)  # moving this copy must not move the original

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """Embed (B, S, S, 3) uint8 to (B, D) float32."""
        embedding: torch.Tensor = self.front(canvas_BSSC.float())  # TensorRT supports bytes in casts only
        return embedding


class _Between(nn.Module):
    """A network between two casts."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.to(self.dtype)).float()  # type: ignore[no-any-return]


def as_typed(module: nn.Module | None) -> Preprocessed:
    """Check that a module can be typed. Raises SubstyleError unless it is a `Preprocessed`."""
    if not isinstance(module, Preprocessed):
        raise SubstyleError(f"{type(module).__name__}: cannot set the precision of a network without `Preprocessed`")
    return module


def typed_graph(module: nn.Module, precision: Precision, *, canvas: int, batch: int) -> onnx.ModelProto:
    """Export a backbone with a fixed batch: ``canvas`` (B, S, S, 3) uint8 to ``embedding`` (B, D) float32.

    Every tensor has the type it is computed in, as required by strongly typed runtimes.

    Raises:
        SubstyleError: the module is not a `Preprocessed`.
    """
    return settle(export(Typed(as_typed(module), precision).eval(), canvas=canvas, batch=batch))


def cast_first(graph: bytes) -> bytes:
    """Insert a cast to float32 directly after a graph's uint8 input, as required by TensorRT.

    Args:
        graph: a serialised model with one uint8 input.
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
    del model.graph.value_info[:]  # contains the old types; the parser infers all of them
    model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], [floats], to=onnx.TensorProto.FLOAT))
    return bytes(model.SerializeToString())
