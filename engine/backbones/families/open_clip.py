"""`open_clip:<arch>/<tag or path>`, `open_clip:hf-hub:<owner>/<name>`: image towers of OpenCLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from substyle.engine.backbones.families import blocks, timm
from substyle.engine.backbones.families.timm import such_as
from substyle.engine.backbones.family import Family, LoadContext, checkpoint_identity, register_family
from substyle.engine.backbones.spec import WHOLE, Backbone, Readout, split
from substyle.engine.backbones.weights import (
    HUB,
    UNREADABLE,
    WeightsError,
    hub_repository,
    read_checkpoint,
    require_repository,
    require_url,
)
from substyle.errors import ConfigError

# suffixes of weights; no tag of open_clip ends in one
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def load(name: str, model: str, *, canvas: int, checkpoint: Path | None = None, readout: Readout = WHOLE) -> Backbone:
    """Load an image tower with its projection, which outputs `encode_image` without normalisation.

    Args:
        model: architecture and tag or path, or ``hf-hub:`` and a repository.
        canvas: canvas side S in pixels.
        checkpoint: local weights of both towers.
        readout: where to read the embedding; ``head=none`` is the pooled tower before its projection.

    Raises:
        ConfigError: architecture or tag is unknown, or the tower does not support the readout.
        WeightsError: the weights are not available or do not fit.
    """
    import open_clip

    architecture, tag = require_model(name, model)
    path = checkpoint or path_in(tag)
    pretrained: str | None = None
    if architecture.startswith(HUB):
        weights = f"open_clip: {architecture.removeprefix(HUB)}"
    elif path is not None:
        if not path.is_file():
            raise ConfigError(f"{name}: checkpoint", str(path), "an existing file")
        pretrained, weights = str(path), f"checkpoint {path.name}"
    else:
        _require_tag(name, architecture, tag)
        config = open_clip.get_pretrained_cfg(architecture, tag)
        repository = str(config.get("hf_hub") or "").strip("/")
        if repository:
            require_repository(name, repository)
        elif not config.get("url"):
            raise WeightsError(f"{name}: open_clip has no source for these weights")
        else:
            require_url(name, config["url"])
        pretrained, weights = tag, f"open_clip: {repository or config['url']}"
    trained = _trained(architecture, tag)
    try:
        whole = open_clip.create_model(
            architecture,
            pretrained=pretrained,
            load_weights=True,
            require_pretrained=True,  # open_clip only warns if a repository has no weights
            force_quick_gelu=bool(trained.get("quick_gelu")),  # open_clip only warns, and features would differ
        )
    except UNREADABLE as error:
        if path is None:  # gated repository, incomplete cache, broken download
            raise WeightsError(f"{name}: cannot load the weights ({weights}): {error}") from error
        # the library's message names all keys that are missing, unexpected or of another shape
        raise WeightsError(f"{name}: {path.name} does not fit: {error}") from error
    tower = whole.visual
    if path is not None:
        _refuse_resampled(name, path, tower)
    config = open_clip.get_model_preprocess_cfg(whole)
    size = config.get("size", 224)
    side = int(size if isinstance(size, int) else size[0])
    levels = {**config, **trained}
    mean, std = (timm.rgb(levels[key]) for key in ("mean", "std"))
    return timm.wrap(
        *(name, architecture.removeprefix(HUB), tower),
        canvas=canvas,
        weights=weights,
        licence="see the source of the weights",
        config={"side": side, "mean": mean, "std": std},
        readout=readout,
        apply=read_at,
    )


def _refuse_resampled(name: str, path: Path, tower: nn.Module) -> None:
    """Raise WeightsError if open_clip has resampled position embeddings of another input side, which it only logs."""
    try:
        state = read_checkpoint(name, path)
    except WeightsError:  # a TorchScript archive, of which open_clip takes the input side
        return
    loaded = tower.state_dict()
    for key, value in state.items():
        _, found, own = key.rpartition("visual.")
        if found and own in ("positional_embedding", "trunk.pos_embed") and value.shape != loaded[own].shape:
            shapes = f"{own} {list(value.shape)}, not {list(loaded[own].shape)}"
            raise WeightsError(f"{name}: {path.name} has another input side: {shapes}")


def require_model(name: str, model: str) -> tuple[str, str]:
    """Split a model into architecture and tag or path; ``hf-hub:<owner>/<name>`` has no tag.

    Raises:
        ConfigError: open_clip does not have it.
        WeightsError: the repository is neither cached nor can its hub be reached.
    """
    import open_clip

    if hub_repository(name, model):
        return model, ""
    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        such = such_as(architecture, open_clip.list_models(), cutoff=0.4)
        raise ConfigError(f"backbone {name}", architecture, f"an architecture of open_clip{such}")
    if tag and path_in(tag) is None:
        _require_tag(name, architecture, tag)
    return architecture, tag


def path_in(tag: str) -> Path | None:
    """Return the local file given instead of a tag: a path, a name with a suffix of weights, or an existing file."""
    path = Path(tag).expanduser()
    return path if "/" in tag or path.suffix in SUFFIXES or path.is_file() else None


def _require_tag(name: str, architecture: str, tag: str) -> None:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        allowed = f"{', '.join(tags)}; or a path to a local file" if tags else "a path to a local file"
        raise ConfigError(f"backbone {name}", tag, allowed)


def _trained(architecture: str, tag: str) -> dict[str, Any]:
    """Training configuration of a tag; for a local file, the normalisation shared by all tags.

    The activation of a local file is part of its architecture's name (``-quickgelu``), as in open_clip.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag in tags:
        return dict(open_clip.get_pretrained_cfg(architecture, tag))
    levels = {
        (tuple(c["mean"]), tuple(c["std"])) for c in (open_clip.get_pretrained_cfg(architecture, t) for t in tags)
    }
    return dict(zip(("mean", "std"), *levels, strict=True)) if len(levels) == 1 else {}


def tower(architecture: str) -> nn.Module:
    """Create an architecture's image tower with random weights, on torch's default device.

    The text tower is not created, because some load their configuration from a hub.
    """
    import open_clip
    from open_clip.model import _build_vision_tower

    config: dict[str, Any] = open_clip.get_model_config(architecture)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    made: nn.Module = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    return made


def read_at(name: str, tower: nn.Module, readout: Readout, side: int) -> tuple[nn.Module, str]:
    """Apply a readout; return the tower and its pooling. Raises ConfigError if the tower does not support it."""
    if getattr(tower, "output_tokens", False):  # CoCa also returns the tokens for captions
        tower.output_tokens = False  # type: ignore[assignment]
    trunk = getattr(tower, "trunk", None)  # of towers that are timm networks
    own = getattr(tower, "pool_type", None) or getattr(trunk, "global_pool", None)
    if readout.layer is not None:
        return blocks.block(name, tower if trunk is None else trunk, readout, side=side, own=own)
    if readout.pool is not None:
        own = readout.pool
        if trunk is not None:
            timm.pooled(name, trunk, own)
        else:
            _pooled(name, tower, own)
    if readout.head == "none":
        _unprojected(name, tower)
        return tower, str(own or "the tower's own")
    return tower, f"{readout.pool or getattr(tower, 'pool_type', 'the tower')}, projected"


def _pooled(name: str, tower: nn.Module, pool: str) -> None:
    known = {"cls": "tok", "avg": "avg"}
    if getattr(tower, "attn_pool", None) is not None or hasattr(tower, "attnpool"):
        raise ConfigError(f"backbone {name}", f"pool={pool}", "pool with layer; this tower ends in attention pooling")
    if pool not in known or not hasattr(tower, "pool_type"):
        raise ConfigError(f"backbone {name}", f"pool={pool}", ", ".join(known))
    tower.pool_type = known[pool]  # type: ignore[assignment]


def _unprojected(name: str, tower: nn.Module) -> None:
    if hasattr(tower, "attnpool"):
        raise ConfigError(
            f"backbone {name}", "head=none", "layer=-1,pool=avg; this tower pools and projects in one step"
        )
    if hasattr(tower, "trunk"):
        tower.head = nn.Identity()
    else:
        tower.proj = None  # type: ignore[assignment]


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    model, readout = split(name, rest)
    return load(name, model, canvas=context.canvas, checkpoint=context.checkpoint, readout=readout)


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    model = split(name, rest)[0]
    if model.startswith(HUB):
        return None
    return checkpoint_identity(context.checkpoint or path_in(model.partition("/")[2]))


register_family(
    Family(
        *("open_clip", "<arch>/<pretrained tag or path>|hf-hub:<owner>/<name>"),
        "image towers of OpenCLIP, projected",
        *(_load, _identify),
        checkpoint=True,
        check=split,
        position=1,
    )
)
