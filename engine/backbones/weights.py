"""Local checkpoint files: read without running their code, converted, and loaded with an account of every key."""

from __future__ import annotations

import os
import re
import socket
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from substyle.kernels.errors import SubstyleError

# Weights from a model hub: fail fast and clearly where the hub is out of reach.

_CONNECT_S = 3.0


class WeightsError(SubstyleError):
    """A backbone's weights cannot be had."""


def require_repository(backbone: str, repository: str) -> None:
    """Return when a hub repository is cached or its hub answers; raise WeightsError within seconds otherwise.

    A client that retries a hub it cannot reach takes most of a minute to say so. When the hub is out of reach but the
    repository is cached, the client is switched to offline mode.
    """
    from huggingface_hub import constants

    cached = (Path(constants.HF_HUB_CACHE) / ("models--" + repository.replace("/", "--")) / "snapshots").is_dir()
    if not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT):
        return
    if cached:
        constants.HF_HUB_OFFLINE = True
        return
    raise WeightsError(
        f"{backbone}: its weights ({repository}) are not in the local hub cache ({constants.HF_HUB_CACHE}) and the hub "
        f"cannot be reached. Give a local file (checkpoint = path), or fill the cache on a machine with network."
    )


def _answers(endpoint: str) -> bool:
    url = urlparse(endpoint)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the client knows what its proxy reaches
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        with socket.create_connection((url.hostname or "", port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


State = dict[str, torch.Tensor]
# heads that no embedding goes through, as patterns of whole keys
HEADS = (r"(head|fc|classifier)\..*",)
_SHOWN = 8
# what readers of files raise where a file is not what they read
UNREADABLE = (
    OSError,
    EOFError,
    UnpicklingError,
    RuntimeError,
    ValueError,
    KeyError,
    SafetensorError,
    zipfile.BadZipFile,
)


def read_checkpoint(name: str, path: Path, inside: Sequence[str] = ()) -> State:
    """Tensors of a PyTorch, safetensors or ``.npz`` file by their names there.

    Of the dictionaries that training loops save, the one with the weights is taken as timm takes it:
    ``state_dict_ema``, ``model_ema``, ``state_dict``, ``model``; ``module.`` before names goes.

    Args:
        name: of the backbone, for errors.
        path: the file.
        inside: further keys under which the dictionary may lie.

    Raises:
        WeightsError: no such file, or more in it than tensors.
    """
    from timm.models import load_state_dict

    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(f"{name}: {path.name} cannot be read as tensors alone: {error}") from error
    for key in inside:
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{name}: {path.name} is no dictionary of tensors: {_kinds(state)}")
    return dict(state)


def fit(name: str, network: nn.Module, state: State, source: str, dropped: Sequence[str] = HEADS) -> None:
    """Load a state into a network of the same keys and shapes.

    Args:
        name: of the backbone; source: of the weights, both for errors.
        network: is given the weights.
        state: by the network's names.
        dropped: patterns of whole keys that are no part of the embedding; they may be there or not.

    Raises:
        WeightsError: keys that are missing, unexpected or of another shape, by name.
    """
    ours = network.state_dict()
    kept = {key: value for key, value in state.items() if key in ours}
    missing = [key for key in ours if key not in kept]
    surplus = [key for key in state if key not in ours and not is_dropped(key, dropped)]
    other = [
        f"{key} {list(kept[key].shape)}, not {list(value.shape)}"
        for key, value in ours.items()
        if key in kept and kept[key].shape != value.shape
    ]
    if missing or surplus or other:
        raise WeightsError(
            f"{name}: {source} does not fit: {len(missing)} keys missing {_some(missing)}, {len(surplus)} unexpected "
            f"{_some(surplus)}, {len(other)} of another shape {_some(other)}"
        )
    network.load_state_dict(kept)


def is_dropped(key: str, patterns: Sequence[str]) -> bool:
    """Whether a key is that of a head which is left out."""
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"[{', '.join(keys[:_SHOWN])}{more}]"


def _kinds(state: object) -> str:
    if not isinstance(state, dict):
        return type(state).__name__
    other = [f"{key} ({type(value).__name__})" for key, value in state.items() if not isinstance(value, torch.Tensor)]
    return f"it has {_some(other)}"


# ViT weights as big_vision, Scenic and the AugReg release write them (Flax parameters in an ``.npz``), for timm.
#
# The three name the same layers a little differently: parts of a block carry a running number
# (``MultiHeadDotProductAttention_0`` or ``_1``, ``MlpBlock_0`` or ``_3``), the position embedding lies at the top or in
# ``Transformer/posembed_input``, and all may lie under the names of an optimiser or a tower (``params/img/...``).

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


def flax_to_timm(state: State, network: nn.Module) -> State:
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


# DINOv2 weights by the names of the library `transformers` (``Dinov2Model``), for timm.

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


def dinov2_to_timm(state: State) -> State:
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
