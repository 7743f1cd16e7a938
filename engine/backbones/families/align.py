"""ALIGN: the image tower, an EfficientNet-B7, of `transformers` (extra `align`)."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones.families.blocks import maps_of
from substyle.engine.backbones.spec import TOKENS, Readout
from substyle.engine.backbones.weights import WeightsError, fit, read_checkpoint, require_repository
from substyle.kernels.errors import ConfigError

# keys of a checkpoint of both towers outside the image tower
DROPPED = (r"(text_model|text_projection)\..*", r"temperature")
_TOWER = "vision_model."
_FILES = ("model.safetensors", "pytorch_model.bin")


class Tower(nn.Module):
    """The image tower with timm's interface.

    Args:
        model: an ``AlignVisionModel``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, D): the mean over the last map, as in the model."""
        return self.forward_intermediates(x, indices=[-1])[0].mean((2, 3))

    def forward_intermediates(
        self, x: torch.Tensor, indices: list[int] | None = None, **options: bool
    ) -> list[torch.Tensor]:
        """Maps (B, D, H, W) of these blocks, or all for None."""
        blocks = self.model.get_submodule("encoder.blocks")
        assert isinstance(blocks, nn.ModuleList)
        return maps_of(blocks, self.model.get_submodule("embeddings")(x), indices)


def load(name: str, repository: str, checkpoint: Path | None = None) -> Tower:
    """Load ALIGN's image tower; 640 features in the joint space, which needs no projection.

    Args:
        repository: weights of both towers on a hub.
        checkpoint: instead of these a folder written by `save_pretrained`, or a file of weights of the published size.

    Raises:
        ConfigError: transformers is not installed, or the checkpoint does not exist.
        WeightsError: the weights are not available or do not fit.
    """
    library = require_transformers(name)
    if checkpoint is None:
        require_repository(name, repository)
        # AlignVisionModel.from_pretrained does not find its keys in these files of both towers
        checkpoint = _from_hub(name, repository)
    return Tower(_local(name, library, checkpoint))


def readable(name: str, readout: Readout) -> Readout:
    """Adapt a readout to the tower, which outputs the mean of its last map; ``max`` and ``tokens`` read that map.

    Raises:
        ConfigError: the tower does not support the pooling.
    """
    if readout.layer is not None:
        return readout
    if readout.pool not in (None, "avg", "max", TOKENS):
        raise ConfigError(f"backbone {name}", f"pool={readout.pool}", "avg, max, tokens")
    if readout.pool in ("max", TOKENS):
        return dataclasses.replace(readout, layer=-1)
    return dataclasses.replace(readout, pool=None)


def require_transformers(name: str) -> Any:  # noqa: ANN401 - a module
    """Import transformers. Raises ConfigError, naming the extra, if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        allowed = "another backbone, or install transformers: pip install 'substyle[align]'"
        raise ConfigError("backbone", name, allowed) from error


def make(library: Any, folder: Path | None = None) -> nn.Module:  # noqa: ANN401 - a module
    """Create the tower with random weights, of the published size or the configuration in a folder."""
    kind = library.AlignVisionConfig
    model: nn.Module = library.AlignVisionModel(kind() if folder is None else kind.from_pretrained(str(folder)))
    return model


def _from_hub(name: str, repository: str) -> Path:
    """Fetch a repository's configuration and weights unless cached; returns their folder.

    Raises:
        WeightsError: the repository cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    trouble = None
    for file in _FILES:
        try:
            hf_hub_download(repository, file)
            return Path(hf_hub_download(repository, "config.json")).parent
        except OSError as error:  # either file of weights suffices
            trouble = error
    raise WeightsError(f"{name}: cannot load the weights ({repository}): {trouble}") from trouble


def _local(name: str, library: Any, path: Path) -> nn.Module:  # noqa: ANN401 - a module
    folder = path if path.is_dir() else None
    files = [path] if folder is None else [path / each for each in _FILES]
    weights_file = next((file for file in files if file.is_file()), None)
    if weights_file is None:
        allowed = f"a file of weights, or a folder with config.json and {' or '.join(_FILES)}"
        raise ConfigError(f"{name}: checkpoint", str(path), allowed)
    model = make(library, folder)
    state = {key.removeprefix(_TOWER): value for key, value in read_checkpoint(name, weights_file).items()}
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):  # unused in inference and not always saved
            state.setdefault(key, value)
    fit(name, model, state, weights_file.name, DROPPED)
    return model
