"""Read and convert local checkpoints without executing code in them, checking every key, and check access to hubs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from substyle import files
from substyle.errors import ConfigError, SubstyleError, abbreviated
from substyle.pipelines import limits

HUB = "hf-hub:"  # before a repository in the names of timm and open_clip
_CONNECT_S = 3.0


class WeightsError(SubstyleError):
    """A backbone's weights are unavailable or do not fit."""


@contextmanager
def cached_only() -> Iterator[None]:
    """Contact no hub or other host for weights within the block: only those in the local caches are used."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def require_url(backbone: str, url: str) -> None:
    """Raise WeightsError in offline mode unless weights at an address are in torch's cache of downloads."""
    from huggingface_hub import constants

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if constants.HF_HUB_OFFLINE and not (folder / PurePosixPath(urlparse(url).path).name).is_file():
        raise WeightsError(f"{backbone}: weights ({url}) are not in {folder}, and downloads are switched off")


def require_repository(backbone: str, repository: str) -> None:
    """Raise WeightsError within seconds unless a hub repository is cached or its hub can be reached.

    The hub's client would retry for most of a minute. If the hub cannot be reached and the repository is cached, the
    client is switched to offline mode.
    """
    from huggingface_hub import constants

    cached = (Path(constants.HF_HUB_CACHE) / ("models--" + repository.replace("/", "--")) / "snapshots").is_dir()
    if not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT):
        return
    if cached:
        constants.HF_HUB_OFFLINE = True
        return
    raise WeightsError(
        f"{backbone}: weights ({repository}) are not in the local hub cache ({constants.HF_HUB_CACHE}) and the hub "
        f"cannot be reached. Fill the cache on a machine with network access"
        f"{'' if HUB in backbone else ', or set checkpoint = path'}."
    )


def hub_repository(backbone: str, model: str) -> str:
    """Return the repository of a model named ``hf-hub:<owner>/<name>``; "" for other models.

    Raises:
        ConfigError: another form of name.
        WeightsError: the repository is neither cached nor can its hub be reached.
    """
    if not model.startswith(HUB):
        return ""
    repository = model.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"backbone {backbone}", model, f"{HUB}<owner>/<name>")
    require_repository(backbone, repository)
    return repository


def _answers(endpoint: str) -> bool:
    url = urlparse(endpoint)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # a proxy's access is known to the client only
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        with socket.create_connection((url.hostname or "", port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def read_genuine(package: str, path: Path, sha256: str) -> bytes:
    """Read a file of weights of an installed package.

    Raises WeightsError unless its bytes are those of the release that this version knows.
    """
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"package {package}: {path}: SHA-256 is {found}, expected {sha256}; install the package again"
        )
    return data


State = dict[str, torch.Tensor]
# keys of weights in the dictionaries of training loops that timm does not look for
_NESTED = ("model_state_dict", "model_state", "teacher", "network", "net", "encoder", "backbone", "module")
# patterns of whole keys of heads that do not affect embeddings
HEADS = (r"(head|fc|classifier)\..*",)
# errors of readers for invalid files
UNREADABLE = (
    OSError,
    EOFError,
    UnpicklingError,
    RuntimeError,
    ValueError,
    KeyError,
    SafetensorError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_checkpoint(name: str, path: Path) -> State:
    """Read the tensors of a PyTorch, safetensors or ``.npz`` file by name.

    Weights are found in the dictionaries of training loops as in timm: ``state_dict_ema``, ``model_ema``,
    ``state_dict``, ``model``, or else in those of `_NESTED`. A prefix ``module.`` is removed.

    Raises:
        WeightsError: the file cannot be read, or contains objects other than tensors.
    """
    from timm.models import load_state_dict

    try:
        if zipfile.is_zipfile(path):  # .npz, or as torch.save writes
            limits.require_archive(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(f"{name}: cannot read tensors from {path.name}: {error}") from error
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = {name.removeprefix("module."): value for name, value in state[key].items()}
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{name}: {path.name} is not a dictionary of tensors: {_kinds(state)}")
    return dict(state)


def fit(name: str, network: nn.Module, state: State, source: str, dropped: Sequence[str] = HEADS) -> None:
    """Load a state into a network with the same keys and shapes.

    Args:
        state: tensors by the network's names.
        dropped: patterns of whole keys that may be ignored.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape; the message names them.
    """
    ours = network.state_dict()
    kept = {key: value for key, value in state.items() if key in ours}
    missing = [key for key in ours if key not in kept]
    surplus = [key for key in state if key not in ours and not any(re.fullmatch(one, key) for one in dropped)]
    other = [
        f"{key} {list(kept[key].shape)}, not {list(value.shape)}"
        for key, value in ours.items()
        if key in kept and kept[key].shape != value.shape
    ]
    if missing or surplus or other:
        raise WeightsError(
            f"{name}: {source} does not fit: {len(missing)} keys missing [{abbreviated(missing)}], {len(surplus)} "
            f"unexpected [{abbreviated(surplus)}], {len(other)} of another shape [{abbreviated(other)}]"
        )
    network.load_state_dict(kept)


def _kinds(state: object) -> str:
    if not isinstance(state, dict):
        return type(state).__name__
    other = [f"{key} ({type(value).__name__})" for key, value in state.items() if not isinstance(value, torch.Tensor)]
    return f"contains [{abbreviated(other)}]"


# Flax ViT parameters (``.npz``) of big_vision, Scenic and the AugReg release, whose names differ: parts of a block have
# running numbers (``MultiHeadDotProductAttention_0`` or ``_1``, ``MlpBlock_0`` or ``_3``), the position embedding is at
# the top or in ``Transformer/posembed_input``, and all may have prefixes of optimiser or tower (``params/img/...``).

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
    """Convert Flax ViT weights to timm's names and layouts; other keys are kept.

    Args:
        state: arrays by path, joined by ``/`` or ``.``.
        network: the timm ViT to load. If it needs a position embedding of the class token, which big_vision does not
            have, zeros are added.
    """
    flat = {_WRAPPERS.sub("", key.replace(".", "/")): value for key, value in state.items()}
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
    """Concatenate ``attn.query``, ``attn.key`` and ``attn.value`` to timm's ``attn.qkv``; incomplete ones are kept."""
    out = dict(parts)
    for key in parts:
        if ".query." not in key:
            continue
        three = [key.replace(".query.", f".{which}.") for which in ("query", "key", "value")]
        if all(each in parts for each in three):
            out[key.replace(".query.", ".qkv.")] = torch.cat([out.pop(each) for each in three])
    return out


def _laid_out(key: str, value: torch.Tensor) -> torch.Tensor:
    if key == "embedding/kernel":
        return value.permute(3, 2, 0, 1)
    return value.T if key == "head/kernel" and value.ndim == 2 else value


# DINOv2 weights of `transformers` (``Dinov2Model``)

_MARK = "embeddings.patch_embeddings.projection.weight"
# applied in order
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
# used in training only
_DROPPED = "embeddings.mask_token"


def is_one(state: State) -> bool:
    """Return whether a state has the names of transformers' ``Dinov2Model``."""
    return any(key.endswith(_MARK) for key in state)


def dinov2_to_timm(state: State) -> State:
    """Rename the tensors of transformers' ``Dinov2Model`` to timm's names; other keys are kept."""
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


def write_described(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], form: str) -> None:
    """Write tensors and JSON metadata to a safetensors file, under a temporary name until it is complete.

    Args:
        form: name and version of the format, checked by `read_described`.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # written here, since errors of safetensors' own files are no OSError
    files.write(path, save(held, {"substyle": json.dumps({**metadata, "format": form})}))


def read_described(
    path: Path, form: str, required: Mapping[str, type], *, title: str, tensors: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `write_described`: its tensors (none unless asked for) and metadata.

    Args:
        form: the expected format.
        required: type of each required entry of the metadata.
        title: what the file should be, for errors.

    Raises:
        WeightsError: the file does not exist, has another format, or lacks an entry.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("substyle", "null"))
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (OSError, ValueError, RecursionError, MemoryError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot read {title}: {error}") from error
    if not isinstance(metadata, dict) or metadata.pop("format", None) != form:
        raise WeightsError(f"{path}: not {title}")
    if not all(isinstance(metadata.get(name), kind) for name, kind in required.items()):
        raise WeightsError(f"{path}: missing or invalid entries in the header; required: {', '.join(required)}")
    return state, metadata


def require_canvas(name: str, metadata: Mapping[str, Any], canvas: int) -> None:
    """Raise WeightsError if weights with this metadata were trained on a canvas of another side than S."""
    if (trained := metadata.get("canvas", canvas)) != canvas:
        raise WeightsError(f"{name}: trained on a canvas of {trained} pixels, got {canvas}")
