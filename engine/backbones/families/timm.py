"""`timm:<model>`: pretrained timm models; `control:random:<model>`: the same models untrained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.families import blocks
from substyle.engine.backbones.family import Family, LoadContext, identify_checkpoint, register_family
from substyle.engine.backbones.spec import RGB, WHOLE, Backbone, BackboneSpec, Readout, split, tensors_hash
from substyle.engine.backbones.weights import (
    HEADS,
    UNREADABLE,
    State,
    WeightsError,
    dinov2_to_timm,
    fit,
    flax_to_timm,
    hub_repository,
    is_one,
    read_checkpoint,
    require_repository,
    require_url,
)
from substyle.errors import ConfigError, abbreviated
from substyle.kernels.dispatch import threads

# keys of OpenCLIP's image towers that timm renames, and may resample
_RENAMED = {
    "visual.positional_embedding": "pos_embed",
    "visual.trunk.pos_embed": "pos_embed",
    "visual.conv1.weight": "patch_embed.proj.weight",
    "visual.trunk.patch_embed.proj.weight": "patch_embed.proj.weight",
}
# timm's names
_POOLS = {"cls": "token", "avg": "avg", "max": "max", "map": "map", "none": ""}
_REFUSED = (
    AssertionError,
    NotImplementedError,
    TypeError,
    ValueError,
)  # raised by timm networks without this pooling


def pooled(name: str, network: nn.Module, pool: str) -> None:
    """Change the final pooling of a timm network in place, keeping weights and final normalisation.

    Raises:
        ConfigError: the network does not support the pooling.
    """
    fits = {
        "cls": getattr(network, "cls_token", None) is not None,
        "map": getattr(network, "attn_pool", None) is not None,
    }
    allowed = "a pooling of the network: avg, max" + "".join(f", {key}" for key, has in fits.items() if has)
    if not fits.get(pool, True) or not hasattr(network, "reset_classifier"):
        raise ConfigError(f"backbone {name}", f"pool={pool}", allowed)
    try:
        network.reset_classifier(0, _POOLS[pool])  # type: ignore[operator]
    except _REFUSED as error:
        raise ConfigError(f"backbone {name}", f"pool={pool}", f"{allowed} ({error})") from error


def require_vector(name: str, output: torch.Tensor) -> int:
    """Return the embedding width D. Raises ConfigError unless the output is one vector per image (B, D)."""
    if output.ndim != 2:
        shape = " × ".join(str(n) for n in output.shape[1:])
        raise ConfigError(f"backbone {name}", f"{shape} numbers per image", "one vector per image: cls, avg or max")
    return int(output.shape[1])


def such_as(name: str, known: Iterable[str], cutoff: float) -> str:
    """Return an error message's suffix with similar known names, or how to search for names.

    Args:
        cutoff: minimum similarity, from 0 to 1, as in `difflib.get_close_matches`.
    """
    near = get_close_matches(name, list(known), n=5, cutoff=cutoff)
    return f", such as {', '.join(near)}" if near else "; substyle backbones --search lists names with a given part"


def load(
    name: str,
    model: str,
    *,
    canvas: int,
    checkpoint: Path | None = None,
    readout: Readout = WHOLE,
    side: int | None = None,
    dropped: Sequence[str] = HEADS,
) -> Backbone:
    """Load a timm model with its pretrained weights or a local checkpoint.

    Args:
        model: timm's name of the model.
        canvas: canvas side S in pixels.
        checkpoint: local weights: a PyTorch or safetensors file, or big_vision's ``.npz`` of a ViT.
        side: input side in pixels if not timm's default; timm resamples position embeddings.
        dropped: patterns of checkpoint keys that do not affect the embedding.

    Raises:
        ConfigError: timm has no such model, or the model does not support the readout.
        WeightsError: the weights are not available or do not fit.
    """
    import timm

    hub = require_model(name, model)
    if checkpoint is None:
        source = hub or _source(name, model)
        try:
            with _missing() as missing:
                network = timm.create_model(model, pretrained=True, num_classes=0, **_sized(side))
        except UNREADABLE as error:  # gated repository, incomplete cache, broken download, not a model of timm
            what = f"{type(error).__name__}: {error}"
            raise WeightsError(f"{name}: cannot load the weights ({source}): {what}") from error
        if hub and missing:  # timm only logs them, and these parts of the network are random
            what = f"{len(missing)} of {len(network.state_dict())} tensors, such as {abbreviated(missing)}"
            raise WeightsError(f"{name}: {source} has no weights for {what}")
        weights, licence = f"timm hub: {source}", network.pretrained_cfg.get("license") or "unstated"
        model = network.pretrained_cfg["architecture"] if hub else model
    else:
        network = create(model, side)
        load_checkpoint(name, network, checkpoint, dropped, resized=side is not None)
        weights, licence = f"checkpoint {checkpoint.name}", "unstated"
    seen = data_config(network) | ({"side": side} if side else {})
    return wrap(name, model, network, canvas=canvas, weights=weights, licence=licence, config=seen, readout=readout)


@contextmanager
def _missing() -> Iterator[list[str]]:
    """Collect the keys that weights lack while a library loads them."""
    missing: list[str] = []
    load = nn.Module.load_state_dict

    def loading(self: nn.Module, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        found = load(self, *arguments, **options)
        # older weights do not count batches, which only training reads
        missing.extend(key for key in found.missing_keys if not key.endswith("num_batches_tracked"))
        return found

    nn.Module.load_state_dict = loading  # type: ignore[method-assign]
    try:
        yield missing
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _source(name: str, model: str) -> str:
    """Where timm's weights are: a repository that is cached or in reach, a URL or a file. Raises WeightsError."""
    import timm

    config = timm.get_pretrained_cfg(model)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise WeightsError(f"{name}: timm has no pretrained weights for this model; set checkpoint = path")
    repository = config.hf_hub_id or ""
    if repository.endswith("/"):
        repository += f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    if repository and not config.file:
        require_repository(name, repository)
    elif config.url and not config.file:
        require_url(name, config.url)
    return str(repository or config.url or config.file)


def load_random(
    name: str,
    model: str,
    *,
    canvas: int,
    calibration_BSSC: NDArray[np.uint8],
    seed: int,
    readout: Readout = WHOLE,
) -> Backbone:
    """Create a timm model with random weights, as a control for its architecture.

    Weights are timm's initialisation with ``seed``. Normalisation layers with running statistics are recalibrated on
    the calibration canvases (B, S, S, 3): with initial statistics, activations of a deep network vanish or explode and
    the control would be weaker than its architecture.
    """
    require_model(name, model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create(model)
        config = data_config(network) | readout.levels
        front = Preprocessed(network, canvas=canvas, **config)
        recalibrate(front, calibration_BSSC)
    weights = f"none: timm initialisation, seed {seed}"
    return wrap(name, model, network, canvas=canvas, weights=weights, control=True, readout=readout)


def create(model: str, side: int | None = None, *, width: int = 0) -> nn.Module:
    """Create a model with random weights and no classifier, or a projection to ``width`` in its place."""
    import timm

    return timm.create_model(model, pretrained=False, num_classes=width, **_sized(side))  # type: ignore[no-any-return]


def _sized(side: int | None) -> dict[str, Any]:
    return {"img_size": side} if side else {}


def load_checkpoint(
    name: str,
    network: nn.Module,
    path: Path,
    dropped: Sequence[str] = HEADS,
    *,
    resized: bool = False,
) -> None:
    """Load all tensors of a checkpoint except dropped heads.

    Args:
        resized: the network has another input side than its weights, and timm resamples its position embeddings.

    Raises WeightsError, naming the keys, if any are missing, unexpected or of another shape.
    """
    state = read_checkpoint(name, path)
    if path.suffix == ".npz":
        state = flax_to_timm(state, network)
    elif is_one(state):
        state = dinov2_to_timm(state)
    adapt = getattr(__import__(network.__module__, fromlist=["_"]), "checkpoint_filter_fn", None)
    if adapt is not None:
        before = {key: tuple(value.shape) for key, value in state.items()}
        state = adapt(state, network)
        _refuse_resampled(name, path.name, before, state, resized=resized)
    fit(name, network, state, path.name, dropped)


def _refuse_resampled(
    name: str, source: str, before: Mapping[str, tuple[int, ...]], state: State, *, resized: bool
) -> None:
    """Raise WeightsError for tensors that timm has silently resampled to another patch size or input side."""
    found = []
    for key, shape in before.items():
        if (renamed := _RENAMED.get(key)) in state and key not in state:
            # OpenCLIP's position embeddings have no first axis
            was, now = (shape if len(shape) > 2 else (1, *shape)), tuple(state[renamed].shape)
            same = _grid(was) == _grid(now) if renamed == "pos_embed" else was == now
            if not same and not (renamed == "pos_embed" and resized):
                found.append(f"{key} {list(shape)}, not {list(now)}")
            continue
        if key not in state or math.prod(shape) == state[key].numel():
            continue
        # a class token may have been added or removed before the same grid of patches
        if key == "pos_embed" and (resized or _grid(shape) == _grid(state[key].shape)):
            continue
        found.append(f"{key} {list(shape)}, not {list(state[key].shape)}")
    if found:
        raise WeightsError(f"{name}: {source} has another patch size or input side: {', '.join(found)}")


def _grid(shape: Sequence[int]) -> int:
    """Side of the patch grid of position embeddings (1, …, D), with or without prefix tokens."""
    return math.isqrt(math.prod(shape[1:-1]))


def data_config(network: nn.Module) -> dict[str, Any]:
    """Return timm's input side, mean and std for the network, as keyword arguments of `Preprocessed`."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    return {"side": int(config["input_size"][-1]), "mean": rgb(config["mean"]), "std": rgb(config["std"])}


def rgb(values: Sequence[float]) -> RGB:
    """Convert three numbers to a tuple of floats."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def read_at(name: str, network: nn.Module, readout: Readout, side: int) -> tuple[nn.Module, str]:
    """Apply a readout; return the network and its pooling. Raises ConfigError if the network does not support it."""
    own = getattr(network, "global_pool", None)
    own = own if isinstance(own, str) and own else None
    projection = _projection(network)
    if readout.head == "projection" and projection is None:
        allowed = "an open_clip:, clip: or package:clip_vit_b16 backbone; timm networks are read before their heads"
        raise ConfigError(f"backbone {name}", "head=projection", allowed)
    if readout.layer is not None:
        return blocks.block(name, network, readout, side=side, own=own)
    pooling = readout.pool or own or "the network's own"
    if readout.pool is not None:
        pooled(name, network, readout.pool)
    if projection is not None:
        network.head = nn.Identity() if readout.head == "none" else projection
    return network, pooling if projection is None or readout.head == "none" else f"{pooling}, projected"


def _projection(network: nn.Module) -> nn.Module | None:
    """The projection of a network created with a width."""
    head = getattr(network, "head", None)
    return head if isinstance(head, nn.Linear) and getattr(network, "num_classes", None) else None


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
    readout: Readout = WHOLE,
    apply: Callable[[str, nn.Module, Readout, int], tuple[nn.Module, str]] = read_at,
) -> Backbone:
    """Wrap a float network as a Backbone; ``apply`` is `read_at` of its family.

    Raises ConfigError if the network does not support the readout.
    """
    network = network.eval()
    for parameter in network.parameters():  # `Module.requires_grad_` is not for TorchScript
        parameter.requires_grad_(False)
    config = (config or data_config(network)) | readout.levels
    weights_hash = tensors_hash(network.state_dict())
    read, pooling = apply(name, network, readout, config["side"])
    module = Preprocessed(read, canvas=canvas, **config).eval()
    with torch.inference_mode():
        dim = require_vector(name, module(torch.zeros(1, canvas, canvas, 3, dtype=torch.uint8)))
    spec = BackboneSpec(
        name=name,
        architecture=model,
        dim=dim,
        input_side=config["side"],
        mean=config["mean"],
        std=config["std"],
        pooling=pooling,
        weights=weights,
        weights_hash=weights_hash,
        licence=licence,
        control=control,
    )
    return Backbone(spec, module)


def recalibrate(module: nn.Module, canvas_BSSC: NDArray[np.uint8]) -> None:
    """Set the running statistics of all normalisation layers to those of one batch, in place."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    module.eval()
    if not layers:
        return
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None  # cumulative: exactly the batch's statistics
    with torch.no_grad(), threads(1):  # more threads sum in another order, which changes the rounding
        module(torch.from_numpy(np.ascontiguousarray(canvas_BSSC)))
    module.eval()


def require_model(name: str, model: str) -> str:
    """Return the repository of ``hf-hub:<owner>/<name>``; "" for the models of timm.

    Raises:
        ConfigError: timm does not have the model or the weights of its tag; alternatives are listed.
        WeightsError: the repository is neither cached nor can its hub be reached.
    """
    import timm
    from timm.models import get_arch_pretrained_cfgs

    if repository := hub_repository(name, model):
        return repository
    architecture, dot, _ = model.partition(".")
    if not timm.is_model(model):
        such = such_as(architecture, timm.list_models(), cutoff=0.5)
        raise ConfigError(f"backbone {name}", model, f"a model of timm {timm.__version__}{such}")
    tagged = get_arch_pretrained_cfgs(architecture)
    if dot and model not in tagged:
        raise ConfigError(f"backbone {name}", model, ", ".join((architecture, *tagged)))
    return ""


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    model, readout = split(name, rest)
    return load(name, model, canvas=context.canvas, checkpoint=context.checkpoint, readout=readout)


register_family(
    Family(
        *("timm", "<model>|hf-hub:<owner>/<name>", "any timm model, pretrained or with checkpoint = path"),
        *(_load, identify_checkpoint),
        checkpoint=True,
        check=split,
        position=0,
    )
)
