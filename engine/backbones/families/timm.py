"""`timm:<model>`: any timm model by its name there; and `control:random:<model>`, the same one untrained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine.backbones.hub import WeightsError, require_repository
from substyle.engine.backbones.preprocess import Preprocessed
from substyle.engine.backbones.spec import RGB, Backbone, BackboneSpec, tensors_hash
from substyle.kernels.errors import ConfigError


def load(name: str, model: str, *, canvas: int, checkpoint: Path | None = None) -> Backbone:
    """A timm model with its pretrained weights, or those of a local checkpoint.

    Raises:
        ConfigError: no such model in timm, or a checkpoint that is not there.
        WeightsError: the weights are neither local nor in reach, or do not fit.
    """
    import timm

    _require_model(name, model)
    if checkpoint is None:
        config = timm.get_pretrained_cfg(model)
        if config is None or not (config.hf_hub_id or config.url or config.file):
            raise WeightsError(f"{name}: timm has no pretrained weights for it; give checkpoint = path")
        repository = config.hf_hub_id or ""
        if repository.endswith("/"):
            repository += f"{config.architecture}.{config.tag}" if config.tag else config.architecture
        if repository and not config.file:
            require_repository(name, repository)
        network = timm.create_model(model, pretrained=True, num_classes=0)
        weights, licence = f"timm hub: {repository or config.url or config.file}", config.license or "unstated"
    else:
        if not checkpoint.is_file():
            raise ConfigError(f"{name}: checkpoint", str(checkpoint), "a file that exists")
        network = create(model)
        load_checkpoint(name, network, checkpoint)
        weights, licence = f"checkpoint {checkpoint.name}", "unstated"
    return wrap(name, model, network, canvas=canvas, weights=weights, licence=licence)


def load_random(name: str, model: str, *, canvas: int, calibration_BSSC: NDArray[np.uint8], seed: int) -> Backbone:
    """The architecture untrained: what its shape alone knows.

    Weights are timm's own initialisation under ``seed``. Normalisation layers that keep running statistics are
    recalibrated on the calibration canvases (B, S, S, 3): at their initial statistics, activations of a deep network
    fade or explode and the control would be weaker than the architecture is.
    """
    _require_model(name, model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create(model)
        config = data_config(network)
        front = Preprocessed(network, canvas=canvas, **config)
        recalibrate(front, calibration_BSSC)
    return wrap(name, model, network, canvas=canvas, weights=f"none: timm initialisation, seed {seed}", control=True)


def create(model: str) -> nn.Module:
    """The model without weights and without classifier. timm's notes on missing weights do not apply here."""
    import timm

    return timm.create_model(model, pretrained=False, num_classes=0)  # type: ignore[no-any-return]


def load_checkpoint(name: str, network: nn.Module, path: Path) -> None:
    """Load a checkpoint by timm's own reader; classifier weights it has beyond the network are left out, no others."""
    from timm.models import load_state_dict

    state: dict[str, torch.Tensor] = load_state_dict(str(path), use_ema=True, weights_only=True)
    adapt = getattr(__import__(network.__module__, fromlist=["_"]), "checkpoint_filter_fn", None)
    if adapt is not None:
        state = adapt(state, network)
    result = network.load_state_dict(state, strict=False)
    surplus = [key for key in result.unexpected_keys if key.split(".")[0] not in ("head", "fc", "classifier")]
    if result.missing_keys or surplus:
        raise WeightsError(
            f"{name}: {path.name} does not fit: {len(result.missing_keys)} keys missing {result.missing_keys[:3]}, "
            f"{len(surplus)} unexpected {surplus[:3]}"
        )


def data_config(network: nn.Module) -> dict[str, Any]:
    """Input side, mean and std as timm resolves them for the network: keyword arguments of `Preprocessed`."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    return {"side": int(config["input_size"][-1]), "mean": rgb(config["mean"]), "std": rgb(config["std"])}


def rgb(values: Sequence[float]) -> RGB:
    """Three floats as a tuple."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def wrap(
    name: str,
    model: str,
    network: nn.Module,
    *,
    canvas: int,
    weights: str,
    licence: str = "unstated",
    control: bool = False,
    config: dict[str, Any] | None = None,
) -> Backbone:
    """A float network with a timm data configuration as a Backbone."""
    network = network.eval().requires_grad_(False)
    config = config or data_config(network)
    module = Preprocessed(network, canvas=canvas, **config).eval()
    with torch.inference_mode():
        dim = int(module(torch.zeros(1, canvas, canvas, 3, dtype=torch.uint8)).shape[-1])
    pooling = getattr(network, "global_pool", None)
    spec = BackboneSpec(
        name=name,
        architecture=model,
        dim=dim,
        input_side=config["side"],
        mean=config["mean"],
        std=config["std"],
        pooling=pooling if isinstance(pooling, str) and pooling else "the network's own",
        weights=weights,
        weights_hash=tensors_hash(network.state_dict()),
        licence=licence,
        control=control,
    )
    return Backbone(spec, module)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recalibrate(module: nn.Module, canvas_BSSC: NDArray[np.uint8]) -> None:
    """Set running statistics of all normalisation layers to those of one batch, layer after layer, in place."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    module.eval()
    if not layers:
        return
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None  # cumulative: exactly the batch's statistics
    with torch.no_grad(), one_thread():  # more threads sum in another order: other weights, by a rounding
        module(torch.from_numpy(np.ascontiguousarray(canvas_BSSC)))
    module.eval()


def _require_model(name: str, model: str) -> None:
    import timm

    if not timm.is_model(model):
        near = get_close_matches(model, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(f"backbone {name}", model, f"a model of timm {timm.__version__}, such as {', '.join(near)}")
