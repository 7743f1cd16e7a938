"""DINOv2 weights by the names of the library `transformers` (``Dinov2Model``), for timm."""

from __future__ import annotations

import re

import torch

from substyle.engine.backbones.families.flax_vit import joined

State = dict[str, torch.Tensor]

_MARK = "embeddings.patch_embeddings.projection.weight"
# in order; a key may be changed by several
_RENAMES = (
    (r"^(?:dinov2|backbone|model)\.(?=embeddings|encoder|layernorm)", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^encoder\.layer\.(\d+)", r"blocks.\1"),
    (r"attention\.attention\.(query|key|value)", r"attn.\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
# the embedding of masked patches is of training only
_DROPPED = "embeddings.mask_token"


def is_one(state: State) -> bool:
    """Whether these are such names."""
    return any(key.endswith(_MARK) for key in state)


def to_timm(state: State) -> State:
    """The same tensors by timm's names; keys that are none of these keep their name."""
    out: State = {}
    parts: State = {}
    for key, value in state.items():
        if key.endswith(_DROPPED):
            continue
        for pattern, name in _RENAMES:
            key = re.sub(pattern, name, key)  # noqa: PLW2901 - renamed step by step
        is_part = re.search(r"\.attn\.(query|key|value)\.", key)
        (parts if is_part else out)[key] = value
    return out | joined(parts)
