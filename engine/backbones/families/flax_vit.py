"""ViT weights as big_vision, Scenic and the AugReg release write them (Flax parameters in an ``.npz``), for timm.

The three name the same layers a little differently: parts of a block carry a running number
(``MultiHeadDotProductAttention_0`` or ``_1``, ``MlpBlock_0`` or ``_3``), the position embedding lies at the top or in
``Transformer/posembed_input``, and all may lie under the names of an optimiser or a tower (``params/img/...``).
"""

from __future__ import annotations

import re

import torch
from torch import nn

State = dict[str, torch.Tensor]

_WRAPPERS = re.compile(r"^(?:(?:params|opt|target|optimizer|model|img|encoder|ViT|backbone)/)+(?=\S)")
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_ATTENTION = re.compile(r"MultiHeadDotProductAttention_\d+/(query|key|value|out)/(kernel|bias)")
_MLP = re.compile(r"MlpBlock_\d+/Dense_([01])/(kernel|bias)")
_NORM = re.compile(r"LayerNorm_(\d+)/(scale|bias)")
_TOP = {
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "pos_embedding": "pos_embed",
    "posembed_encoder/pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
_SMALL = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def to_timm(state: State, network: nn.Module) -> State:
    """The same weights by timm's names and layouts; keys that are no ViT's keep their name.

    Args:
        state: arrays by their path, joined by ``/`` or ``.``.
        network: the timm ViT they are for; says whether position embeddings are in want of the class token's, which
            big_vision adds none of.
    """
    flat = {_unwrapped(key.replace(".", "/")): value for key, value in state.items()}
    out: State = {}
    parts: dict[str, torch.Tensor] = {}
    for key, value in flat.items():
        block = _BLOCK.fullmatch(key)
        if block is None:
            out[_TOP.get(key, key)] = _laid_out(key, value)
            continue
        prefix, part = f"blocks.{block[1]}.", block[2]
        if attention := _ATTENTION.fullmatch(part):
            which, kind = attention[1], attention[2]
            if which == "out":
                weight = value.flatten(0, 1).T if kind == "kernel" else value
                out[f"{prefix}attn.proj.{_SMALL[kind]}"] = weight
            else:
                parts[f"{prefix}attn.{which}.{_SMALL[kind]}"] = (
                    value.flatten(1).T if kind == "kernel" else value.flatten()
                )
        elif mlp := _MLP.fullmatch(part):
            number = int(mlp[1]) + 1
            out[f"{prefix}mlp.fc{number}.{_SMALL[mlp[2]]}"] = value.T if mlp[2] == "kernel" else value
        elif norm := _NORM.fullmatch(part):
            out[f"{prefix}norm{1 if norm[1] == '0' else 2}.{_SMALL[norm[2]]}"] = value
        else:
            out[key] = value
    out |= joined(parts)
    position, grown = out.get("pos_embed"), getattr(network, "pos_embed", None)
    if position is not None and "cls_token" in out and grown is not None:
        side = int(position.shape[1] ** 0.5)
        if side * side == position.shape[1]:
            out["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return out


def joined(parts: State) -> State:
    """timm's ``attn.qkv`` from ``attn.query``, ``attn.key``, ``attn.value``; what lacks one of them keeps its name."""
    out = dict(parts)
    for key in parts:
        if ".query." not in key:
            continue
        three = [key.replace(".query.", f".{which}.") for which in ("query", "key", "value")]
        if all(each in parts for each in three):
            out[key.replace(".query.", ".qkv.")] = torch.cat([out.pop(each) for each in three])
    return out


def _unwrapped(key: str) -> str:
    return _WRAPPERS.sub("", key)


def _laid_out(key: str, value: torch.Tensor) -> torch.Tensor:
    if key == "embedding/kernel":
        return value.permute(3, 2, 0, 1)
    return value.T if key == "head/kernel" and value.ndim == 2 else value
