"""`open_clip:<arch>/<pretrained>`: image towers of OpenCLIP; pretrained is a tag or a path to a local file."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import torch

from substyle.engine.backbones.families.timm import rgb
from substyle.engine.backbones.hub import WeightsError, require_repository
from substyle.engine.backbones.preprocess import Preprocessed
from substyle.engine.backbones.spec import Backbone, BackboneSpec, tensors_hash
from substyle.kernels.errors import ConfigError


def load(name: str, model: str, *, canvas: int, checkpoint: Path | None = None) -> Backbone:
    """The image tower with its projection: what `encode_image` returns, not normalised.

    Raises:
        ConfigError: unknown architecture or tag.
        WeightsError: the weights are neither local nor in reach.
    """
    import open_clip

    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        near = get_close_matches(architecture, open_clip.list_models(), n=5, cutoff=0.4)
        raise ConfigError(f"backbone {name}", architecture, f"an architecture of open_clip, such as {', '.join(near)}")
    path = checkpoint or (Path(tag) if "/" in tag or tag.endswith((".pt", ".bin", ".safetensors")) else None)
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"{name}: checkpoint", str(path), "a file that exists")
        pretrained, weights = str(path), f"checkpoint {path.name}"
    else:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag not in tags:
            raise ConfigError(f"backbone {name}", tag, f"{', '.join(tags)}; or a path to a local file")
        config = open_clip.get_pretrained_cfg(architecture, tag)
        repository = str(config.get("hf_hub") or "").strip("/")
        if repository:
            require_repository(name, repository)
        elif not config.get("url"):
            raise WeightsError(f"{name}: open_clip knows no source for these weights")
        pretrained, weights = tag, f"open_clip: {repository or config['url']}"
    whole = open_clip.create_model(architecture, pretrained=pretrained, load_weights=True)
    tower = whole.visual.eval().requires_grad_(False)
    config = open_clip.get_model_preprocess_cfg(whole)
    size = config.get("size", 224)
    side = int(size if isinstance(size, int) else size[0])
    mean, std = rgb(config["mean"]), rgb(config["std"])
    module = Preprocessed(tower, canvas=canvas, side=side, mean=mean, std=std).eval()
    with torch.inference_mode():
        dim = int(module(torch.zeros(1, canvas, canvas, 3, dtype=torch.uint8)).shape[-1])
    spec = BackboneSpec(
        name=name,
        architecture=architecture,
        dim=dim,
        input_side=side,
        mean=mean,
        std=std,
        pooling=f"{getattr(tower, 'pool_type', 'the tower')}, projected",
        weights=weights,
        weights_hash=tensors_hash(tower.state_dict()),
        licence="see the source of the weights",
    )
    return Backbone(spec, module)
