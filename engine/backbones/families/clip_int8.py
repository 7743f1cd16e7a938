"""`package:clip_vit_b16`: the image tower of OpenAI's CLIP ViT-B/16 from a graph whose matrices are in 8 bits.

The graph also rounds what flows through it to 8 bits, with a range that is that of the whole batch, so that an image's
embedding would depend on its neighbours. It is therefore never run: its matrices are taken back to float32, each
channel by its scale, and the network is timm's. What rounding took from the weights stays taken.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from substyle.engine.backbones.families import checkpoints
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.families.checkpoints import State
from substyle.engine.backbones.families.flax_vit import joined
from substyle.engine.backbones.hub import WeightsError
from substyle.engine.backbones.packages import CLIP_VIT_B16
from substyle.engine.backbones.readout import WHOLE, Readout
from substyle.engine.backbones.spec import Backbone

_PRODUCT = re.compile(r"/(?P<module>.+)/MatMul_quant")
_PARTS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
# of transformers' CLIPVisionModelWithProjection, in order; a key may be changed by several
_RENAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "cls_token"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^vision_model\.pre_layrnorm\.", "norm_pre."),  # their spelling
    (r"^vision_model\.post_layernorm\.", "norm."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.([qkv]_proj)\.", lambda found: f".attn.{_PARTS[found[1]]}."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"^visual_projection\.", "head."),
)


def load(name: str, *, canvas: int, readout: Readout = WHOLE) -> Backbone:
    """The tower with its projection, 512 features; ``head=none`` is the 768 before it.

    Raises:
        WeightsError: the package is not installed, or its graph is another.
        ConfigError: a readout that the tower does not have.
    """
    row = CLIP_VIT_B16
    path = row.path(name)
    network = timm_family.create(row.architecture, width=row.dim)
    try:
        state = to_timm(tensors(onnx.load(str(path))))
    except GraphError as error:
        raise WeightsError(f"{name}: {path.name}: {error}") from error
    checkpoints.fit(name, network, state, path.name, dropped=())
    return timm_family.wrap(
        *(name, row.architecture, network),
        canvas=canvas,
        weights=row.weights,
        licence=row.licence,
        config={"side": row.side, "mean": row.mean, "std": row.std},
        readout=readout,
    )


class GraphError(ValueError):
    """A graph that is not made as ONNX Runtime's dynamic quantisation makes one."""


def tensors(model: onnx.ModelProto) -> State:
    """The graph's tensors by the names of their modules, matrices as float32 (out, in).

    A product in 8 bits is ``MatMulInteger``, ``Cast``, ``Mul`` by the product of two scales: that of what flows in, and
    the constant one of the weight, of all channels or one for each. Weight, zero point and scale are found along these.
    Tensors that no product uses keep their names.

    Raises:
        GraphError: a product of another form.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for each in node.input:
            users.setdefault(each, []).append(node)
    makers = {each: node for node in model.graph.node for each in node.output}
    used: set[str] = set()
    out: State = {}
    for node in model.graph.node:
        if node.op_type != "MatMulInteger":
            continue
        found = _PRODUCT.fullmatch(node.name)
        weight, scale = node.input[1], _scale(node, users, makers, constants)
        if found is None or weight not in constants or scale is None:
            raise GraphError(f"{node.name} is no product with a weight in 8 bits and a constant scale")
        zero = node.input[3] if len(node.input) > 3 else ""
        used |= {weight, scale, zero}
        matrix_IO = dequantised(*(_array(constants.get(each)) for each in (weight, scale, zero)))
        out[found["module"].replace("/", ".") + ".weight"] = torch.from_numpy(np.ascontiguousarray(matrix_IO.T))
    for key, tensor in constants.items():
        if key not in used:
            out[key] = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    return out


def dequantised(
    weight_IO: NDArray[np.generic] | None, scale: NDArray[np.generic] | None, zero: NDArray[np.generic] | None
) -> NDArray[np.float32]:
    """(weight − zero point) × scale in float32; scale and zero point are one number or one for each output.

    Differences of 8-bit integers are exact, so that each number is rounded once. Raises GraphError for other types.
    """
    if weight_IO is None or weight_IO.dtype not in (np.int8, np.uint8) or weight_IO.ndim != 2:
        raise GraphError("a weight that is no matrix in 8 bits")
    if scale is None or scale.dtype != np.float32 or scale.size not in (1, weight_IO.shape[1]):
        raise GraphError("a scale that is neither one number in float32 nor one for each output")
    if zero is None:
        zero = np.zeros(1, weight_IO.dtype)
    if zero.dtype != weight_IO.dtype or zero.size not in (1, weight_IO.shape[1]):
        raise GraphError("a zero point that is neither one number of the weight's type nor one for each output")
    steps_IO = weight_IO.astype(np.int32) - zero.astype(np.int32).reshape(1, -1)
    return steps_IO.astype(np.float32) * scale.astype(np.float32).reshape(1, -1)


def to_timm(state: State) -> State:
    """The same tensors by timm's names; keys that are none of a CLIP tower's keep theirs.

    timm's head has a bias, and CLIP's projection none: it is zero.
    """
    out: State = {}
    parts: State = {}
    for theirs, value in state.items():
        key = theirs
        for pattern, name in _RENAMES:
            key = re.sub(pattern, name, key)
        is_part = re.search(r"\.attn\.(query|key|value)\.", key)
        (parts if is_part else out)[key] = value
    if "cls_token" in out:
        out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in out:
        out["pos_embed"] = out["pos_embed"][None]
    if "head.weight" in out:
        out["head.bias"] = torch.zeros(len(out["head.weight"]))
    return out | joined(parts)


def _scale(
    product: onnx.NodeProto,
    users: dict[str, list[onnx.NodeProto]],
    makers: dict[str, onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
) -> str | None:
    """The constant scale of a product's weight."""
    cast = _only(users.get(product.output[0]), "Cast")
    scaled = _only(users.get(cast.output[0]), "Mul") if cast is not None else None
    if cast is None or scaled is None:
        return None
    scales = [makers[each] for each in scaled.input if each != cast.output[0] and each in makers]
    both = _only(scales, "Mul")
    held = [each for each in both.input if each in constants] if both is not None else []
    return held[0] if len(held) == 1 else None


def _only(nodes: list[onnx.NodeProto] | None, kind: str) -> onnx.NodeProto | None:
    return nodes[0] if nodes is not None and len(nodes) == 1 and nodes[0].op_type == kind else None


def _array(tensor: onnx.TensorProto | None) -> NDArray[np.generic] | None:
    return None if tensor is None else numpy_helper.to_array(tensor)
