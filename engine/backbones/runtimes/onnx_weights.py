"""Weights of ONNX graphs as arrays, and back in any type that an accelerator computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

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
