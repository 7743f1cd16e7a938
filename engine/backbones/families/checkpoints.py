"""Weights in local files: read without running code from them, and loaded with an account of every key."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from substyle.engine.backbones.hub import WeightsError

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


def read(name: str, path: Path, inside: Sequence[str] = ()) -> State:
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
