"""`timm:<model>`: any timm model by its name there; and `control:random:<model>`, the same one untrained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.spec import RGB, WHOLE, Backbone, BackboneSpec, Readout, tensors_hash
from substyle.engine.backbones.weights import (
    HEADS,
    UNREADABLE,
    State,
    WeightsError,
    dinov2_to_timm,
    fit,
    flax_to_timm,
    is_one,
    read_checkpoint,
    require_repository,
)
from substyle.kernels.errors import ConfigError

# Reading a timm or OpenCLIP network elsewhere than at its usual end: a block's output, another pooling.

# as timm calls them
_POOLS = {"cls": "token", "avg": "avg", "max": "max", "map": "map", "none": ""}
_REFUSED = (
    AssertionError,
    NotImplementedError,
    TypeError,
    ValueError,
)  # raised by networks of timm that do not return intermediates


class PooledBlock(nn.Module):
    """The output of one block, pooled.

    Args:
        network: has `forward_intermediates`, as timm's and OpenCLIP's networks have.
        index: number of the block from 0.
        pool: ``cls``, ``avg`` or ``max``.
    """

    def __init__(self, network: nn.Module, index: int, pool: str) -> None:
        super().__init__()
        self.network, self.index, self.pool = network, index, pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, D)."""
        map_BDHW, prefix_BPD = intermediates(self.network, x, [self.index])[0]
        if self.pool == "cls":
            assert prefix_BPD is not None
            return prefix_BPD[:, 0]
        return map_BDHW.mean((2, 3)) if self.pool == "avg" else map_BDHW.amax((2, 3))


def intermediates(
    network: nn.Module, x: torch.Tensor, indices: list[int] | None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Outputs of blocks, all for None: maps (B, D, H, W), and the tokens before the patches (B, P, D) where there are.

    Blocks after the last one asked for are not computed.
    """
    call: Any = network.forward_intermediates
    options: dict[str, Any] = {"indices": indices, "stop_early": True, "intermediates_only": True}
    known = inspect.signature(call).parameters
    for tokens in ("return_prefix_tokens", "output_extra_tokens"):
        # timm's relative-position ViTs give an error instead of no tokens
        if tokens in known and getattr(network, "num_prefix_tokens", None) != 0:
            options[tokens] = True
    found = call(x, **options)
    if isinstance(found, dict):  # OpenCLIP
        maps = found["image_intermediates"]
        return list(zip(maps, found.get("image_intermediates_prefix", [None] * len(maps)), strict=True))
    return [each if isinstance(each, tuple) else (each, None) for each in found]


def block(name: str, network: nn.Module, readout: Readout, *, side: int, own: str | None) -> tuple[nn.Module, str]:
    """The network read at a block, and its pooling in words.

    Args:
        name: of the backbone, for errors.
        network: on any device, the meta device too.
        readout: its layer is not None.
        side: input side.
        own: the network's own pooling in timm's words.

    Raises:
        ConfigError: no such block, or a pooling that its output does not have.
    """
    assert readout.layer is not None
    if readout.head == "projection":
        raise ConfigError(f"backbone {name}", f"head=projection of block {readout.layer}", "a head at the end only")
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(f"backbone {name}", f"layer={readout.layer}", "a network whose library gives its blocks")
    with torch.no_grad():
        found = intermediates(network, _blank(network, side), None)
    count = len(found)
    index = readout.layer + count if readout.layer < 0 else readout.layer
    if not 0 <= index < count:
        raise ConfigError(f"backbone {name}", f"layer={readout.layer}", f"{-count} to {count - 1}")
    prefix = found[index][1]
    # of timm's networks; open_clip's towers, which have no such attribute, always have one before the patches
    has_class = prefix is not None and getattr(network, "cls_token", prefix) is not None
    pool = readout.pool or ("cls" if has_class and own in ("token", "tok") else "avg")
    allowed = ("cls", "avg", "max") if has_class else ("avg", "max")
    if pool not in allowed:
        raise ConfigError(f"backbone {name}", f"pool={pool} of block {index}", ", ".join(allowed))
    return PooledBlock(network, index, pool), f"{pool}, block {index} of 0 to {count - 1}"


def pooled(name: str, network: nn.Module, pool: str) -> None:
    """Give a timm network another pooling at its end, in place: the same weights, the final normalisation as it is.

    Raises:
        ConfigError: the network has no such pooling.
    """
    fits = {
        "cls": getattr(network, "cls_token", None) is not None,
        "map": getattr(network, "attn_pool", None) is not None,
    }
    allowed = "a pooling that the network has: avg, max" + "".join(f", {key}" for key, has in fits.items() if has)
    if not fits.get(pool, True) or not hasattr(network, "reset_classifier"):
        raise ConfigError(f"backbone {name}", f"pool={pool}", allowed)
    try:
        network.reset_classifier(0, _POOLS[pool])  # type: ignore[operator]
    except _REFUSED as error:
        raise ConfigError(f"backbone {name}", f"pool={pool}", f"{allowed} ({error})") from error


def require_vector(name: str, output: torch.Tensor) -> int:
    """The embedding's width D. Raises ConfigError where a network does not give one vector (B, D) an image."""
    if output.ndim != 2:
        shape = " × ".join(str(n) for n in output.shape[1:])
        raise ConfigError(f"backbone {name}", f"{shape} numbers an image", "one vector an image: cls, avg or max")
    return int(output.shape[1])


def _blank(network: nn.Module, side: int) -> torch.Tensor:
    return torch.zeros(1, 3, side, side, device=next(network.parameters()).device)


# Names that were perhaps meant.


def such_as(name: str, known: Iterable[str], cutoff: float) -> str:
    """The end of a sentence on what is allowed: known names that are like this one, else how to find them.

    Args:
        cutoff: how like, from 0 to 1, as in `difflib.get_close_matches`.
    """
    near = get_close_matches(name, list(known), n=5, cutoff=cutoff)
    return f", such as {', '.join(near)}" if near else "; substyle backbones --search finds them by a part of a name"


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
    """A timm model with its pretrained weights, or those of a local checkpoint.

    Args:
        name: as the user writes it; model: timm's name.
        canvas: canvas side S in pixels.
        checkpoint: local weights: a PyTorch or safetensors file, or big_vision's ``.npz`` of a ViT.
        readout: where the embedding is read.
        side: input side in pixels, where it is not timm's own; position embeddings are resampled by timm.
        dropped: patterns of a checkpoint's keys that are no part of the embedding.

    Raises:
        ConfigError: no such model in timm, a checkpoint that is not there, or a readout that the model does not have.
        WeightsError: the weights are neither local nor in reach, or do not fit.
    """
    import timm

    require_model(name, model)
    if checkpoint is None:
        config = timm.get_pretrained_cfg(model)
        if config is None or not (config.hf_hub_id or config.url or config.file):
            raise WeightsError(f"{name}: timm has no pretrained weights for it; give checkpoint = path")
        repository = config.hf_hub_id or ""
        if repository.endswith("/"):
            repository += f"{config.architecture}.{config.tag}" if config.tag else config.architecture
        if repository and not config.file:
            require_repository(name, repository)
        try:
            network = timm.create_model(model, pretrained=True, num_classes=0, **_sized(side))
        except UNREADABLE as error:  # a gated repository, one that is cached in part, a broken download
            source = repository or config.url or config.file
            raise WeightsError(f"{name}: its weights ({source}) cannot be loaded: {error}") from error
        weights, licence = f"timm hub: {repository or config.url or config.file}", config.license or "unstated"
    else:
        if not checkpoint.is_file():
            raise ConfigError(f"{name}: checkpoint", str(checkpoint), "a file that exists")
        network = create(model, side)
        load_checkpoint(name, network, checkpoint, dropped, resized=side is not None)
        weights, licence = f"checkpoint {checkpoint.name}", "unstated"
    seen = data_config(network) | ({"side": side} if side else {})
    return wrap(name, model, network, canvas=canvas, weights=weights, licence=licence, config=seen, readout=readout)


def load_random(
    name: str,
    model: str,
    *,
    canvas: int,
    calibration_BSSC: NDArray[np.uint8],
    seed: int,
    readout: Readout = WHOLE,
) -> Backbone:
    """The architecture untrained: what its shape alone knows.

    Weights are timm's own initialisation under ``seed``. Normalisation layers that keep running statistics are
    recalibrated on the calibration canvases (B, S, S, 3): at their initial statistics, activations of a deep network
    fade or explode and the control would be weaker than the architecture is.
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
    """The model without weights and without classifier, or with a projection of a width in its place.

    timm's notes on missing weights do not apply here.
    """
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
    """Load a checkpoint's tensors, every one of them accounted for, except those of the dropped heads.

    Args:
        resized: the network was made for another side than its weights, and timm resamples its position embeddings.

    Raises WeightsError naming keys that are missing, unexpected or of another shape.
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
    """Raise WeightsError for tensors that timm has fitted to a network of another patch or side, without a word."""
    found = []
    for key, shape in before.items():
        if key not in state or math.prod(shape) == state[key].numel():
            continue
        # a class token may have come or gone before the same grid of patches
        if key == "pos_embed" and (resized or _grid(shape) == _grid(state[key].shape)):
            continue
        found.append(f"{key} {list(shape)}, not {list(state[key].shape)}")
    if found:
        raise WeightsError(f"{name}: {source} is of a network of another patch or input side: {', '.join(found)}")


def _grid(shape: Sequence[int]) -> int:
    """Side of the grid of patches that position embeddings (1, …, D) are for, with or without some tokens before."""
    return math.isqrt(math.prod(shape[1:-1]))


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
    readout: Readout = WHOLE,
) -> Backbone:
    """A float network with a timm data configuration as a Backbone. Raises ConfigError for a readout it lacks."""
    network = network.eval().requires_grad_(False)
    config = (config or data_config(network)) | readout.levels
    weights_hash = tensors_hash(network.state_dict())
    read, pooling = read_at(name, network, readout, config["side"])
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


def read_at(name: str, network: nn.Module, readout: Readout, side: int) -> tuple[nn.Module, str]:
    """The network read there, and its pooling in words. Raises ConfigError for what it does not have."""
    own = getattr(network, "global_pool", None)
    own = own if isinstance(own, str) and own else None
    projection = _projection(network)
    if readout.head == "projection" and projection is None:
        allowed = "an open_clip:, clip: or package:clip_vit_b16 backbone; timm's networks are read before their heads"
        raise ConfigError(f"backbone {name}", "head=projection", allowed)
    if readout.layer is not None:
        return block(name, network, readout, side=side, own=own)
    pooling = readout.pool or own or "the network's own"
    if readout.pool is not None:
        pooled(name, network, readout.pool)
    if projection is not None:
        network.head = nn.Identity() if readout.head == "none" else projection
    return network, pooling if projection is None or readout.head == "none" else f"{pooling}, projected"


def _projection(network: nn.Module) -> nn.Module | None:
    """What a network that was created with a width has after its pooling."""
    head = getattr(network, "head", None)
    return head if isinstance(head, nn.Linear) and getattr(network, "num_classes", None) else None


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


def require_model(name: str, model: str) -> None:
    """Return where timm has the model and the weights that its tag names; raise ConfigError naming others otherwise."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    architecture, dot, _ = model.partition(".")
    if not timm.is_model(model):
        such = such_as(architecture, timm.list_models(), cutoff=0.5)
        raise ConfigError(f"backbone {name}", model, f"a model of timm {timm.__version__}{such}")
    tagged = get_arch_pretrained_cfgs(architecture)
    if dot and model not in tagged:
        raise ConfigError(f"backbone {name}", model, ", ".join((architecture, *tagged)))
