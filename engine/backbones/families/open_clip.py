"""`open_clip:<arch>/<pretrained>`: image towers of OpenCLIP; pretrained is a tag or a path to a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.families import timm
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.families.timm import such_as
from substyle.engine.backbones.spec import WHOLE, Backbone, BackboneSpec, Readout, tensors_hash
from substyle.engine.backbones.weights import UNREADABLE, WeightsError, require_repository
from substyle.kernels.errors import ConfigError

# of files of weights; a tag of open_clip ends in none of them
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def load(name: str, model: str, *, canvas: int, checkpoint: Path | None = None, readout: Readout = WHOLE) -> Backbone:
    """The image tower with its projection: what `encode_image` returns, not normalised.

    Args:
        name: as the user writes it; model: architecture and tag or path.
        canvas: canvas side S in pixels.
        checkpoint: local weights of the whole model, both towers.
        readout: elsewhere; ``head=none`` is the pooled tower before its projection.

    Raises:
        ConfigError: unknown architecture or tag, or a readout that the tower does not have.
        WeightsError: the weights are neither local nor in reach, or do not fit.
    """
    import open_clip

    architecture, tag = require_model(name, model)
    path = checkpoint or path_in(tag)
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"{name}: checkpoint", str(path), "a file that exists")
        pretrained, weights = str(path), f"checkpoint {path.name}"
    else:
        _require_tag(name, architecture, tag)
        config = open_clip.get_pretrained_cfg(architecture, tag)
        repository = str(config.get("hf_hub") or "").strip("/")
        if repository:
            require_repository(name, repository)
        elif not config.get("url"):
            raise WeightsError(f"{name}: open_clip knows no source for these weights")
        pretrained, weights = tag, f"open_clip: {repository or config['url']}"
    trained = _trained(architecture, tag)
    try:
        whole = open_clip.create_model(
            architecture,
            pretrained=pretrained,
            load_weights=True,
            force_quick_gelu=bool(trained.get("quick_gelu")),  # open_clip itself only warns: other features come out
        )
    except UNREADABLE as error:
        if path is None:  # a gated repository, one that is cached in part, a broken download
            raise WeightsError(f"{name}: its weights ({weights}) cannot be loaded: {error}") from error
        # the library's own message names every key that is missing, unexpected or of another shape
        raise WeightsError(f"{name}: {path.name} does not fit: {error}") from error
    tower = whole.visual.eval().requires_grad_(False)
    config = open_clip.get_model_preprocess_cfg(whole)
    size = config.get("size", 224)
    side = int(size if isinstance(size, int) else size[0])
    levels = {**config, **trained, **readout.levels}
    mean, std = (timm_family.rgb(levels[key]) for key in ("mean", "std"))
    weights_hash = tensors_hash(tower.state_dict())
    read, pooling = read_at(name, tower, readout, side)
    module = Preprocessed(read, canvas=canvas, side=side, mean=mean, std=std).eval()
    with torch.inference_mode():
        dim = timm.require_vector(name, module(torch.zeros(1, canvas, canvas, 3, dtype=torch.uint8)))
    spec = BackboneSpec(
        name=name,
        architecture=architecture,
        dim=dim,
        input_side=side,
        mean=mean,
        std=std,
        pooling=pooling,
        weights=weights,
        weights_hash=weights_hash,
        licence="see the source of the weights",
    )
    return Backbone(spec, module)


def require_model(name: str, model: str) -> tuple[str, str]:
    """The architecture and, after a slash, its tag or path. Raises ConfigError for one unknown to open_clip."""
    import open_clip

    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        such = such_as(architecture, open_clip.list_models(), cutoff=0.4)
        raise ConfigError(f"backbone {name}", architecture, f"an architecture of open_clip{such}")
    if tag and path_in(tag) is None:
        _require_tag(name, architecture, tag)
    return architecture, tag


def path_in(tag: str) -> Path | None:
    """The local file that is named in the place of a tag: by a path, by a suffix of weights, or because it is there."""
    path = Path(tag).expanduser()
    return path if "/" in tag or path.suffix in SUFFIXES or path.is_file() else None


def _require_tag(name: str, architecture: str, tag: str) -> None:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        allowed = f"{', '.join(tags)}; or a path to a local file" if tags else "a path to a local file"
        raise ConfigError(f"backbone {name}", tag, allowed)


def _trained(architecture: str, tag: str) -> dict[str, Any]:
    """How weights were trained: what their tag says; of a local file without one, what all tags agree on.

    A local file's own activation is in its architecture's name (``-quickgelu``), as in open_clip.
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
    """An architecture's image tower without weights, on torch's default device.

    Alone: the text towers of some architectures ask a hub for their configuration.
    """
    import open_clip
    from open_clip.model import _build_vision_tower

    config: dict[str, Any] = open_clip.get_model_config(architecture)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    made: nn.Module = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    return made


def read_at(name: str, tower: nn.Module, readout: Readout, side: int) -> tuple[nn.Module, str]:
    """The tower read there, and its pooling in words. Raises ConfigError for what it does not have."""
    if getattr(tower, "output_tokens", False):  # CoCa's gives those that its captions are made of as well
        tower.output_tokens = False  # type: ignore[assignment]
    trunk = getattr(tower, "trunk", None)  # of the towers that are timm's networks
    own = getattr(tower, "pool_type", None) or getattr(trunk, "global_pool", None)
    if readout.layer is not None:
        return timm.block(name, tower if trunk is None else trunk, readout, side=side, own=own)
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
        raise ConfigError(f"backbone {name}", f"pool={pool}", "a layer: this tower pools by attention at its end")
    if pool not in known or not hasattr(tower, "pool_type"):
        raise ConfigError(f"backbone {name}", f"pool={pool}", ", ".join(known))
    tower.pool_type = known[pool]  # type: ignore[assignment]


def _unprojected(name: str, tower: nn.Module) -> None:
    if hasattr(tower, "attnpool"):
        raise ConfigError(f"backbone {name}", "head=none", "layer=-1,pool=avg: its pooling and projection are one")
    if hasattr(tower, "trunk"):
        tower.head = nn.Identity()
    else:
        tower.proj = None  # type: ignore[assignment]
