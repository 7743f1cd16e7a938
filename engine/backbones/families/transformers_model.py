"""`transformers:<folder>`: an image model that `save_pretrained` of `transformers` has written, or one of a hub."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones.families import blocks, timm
from substyle.engine.backbones.family import Family, LoadContext, checkpoint_identity, register_family
from substyle.engine.backbones.spec import Backbone, Readout, split
from substyle.engine.backbones.weights import HUB, UNREADABLE, WeightsError, cached_only, hub_repository
from substyle.errors import ConfigError
from substyle.pipelines import limits

# whose configurations name no further model, which would be loaded, also from a hub
_TYPES = {
    "aimv2", "aimv2_vision_model", "align", "altclip", "beit", "bit", "blip", "chinese_clip",
    "chinese_clip_vision_model", "clip", "clip_vision_model", "clipseg", "convnext", "convnextv2", "cvt",
    "data2vec-vision", "deit", "dinat", "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit",
    "efficientnet", "flava", "focalnet", "hiera", "ijepa", "levit", "metaclip_2", "mlcd", "mlcd_vision_model",
    "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "owlvit", "pixio", "poolformer", "pvt", "pvt_v2",
    "regnet", "resnet", "segformer", "siglip", "siglip2", "siglip2_vision_model", "siglip_vision_model",
    "swiftformer", "swin", "swin2sr", "swinv2", "tipsv2", "tipsv2_vision_model", "vit", "vit_mae", "vit_msn",
    "vitdet", "yolos",
}  # fmt: skip
_PROCESSOR = "preprocessor_config.json"
_POOLS = ("cls", "avg", "max")
# what processors may do besides, and the preprocessing of a backbone does not
_OTHERWISE = ("do_flip_channel_order", "rescale_offset", "do_grayscale", "do_color_quantize")
_OWN = "the model's own"
_PROJECTED = "WithProjection"  # ending of the classes of towers with their projection


class ImageModel(nn.Module):
    """An image model of `transformers` with timm's interface.

    Args:
        model: a model for images, or one with `get_image_features`, which projects them to a joint space with text.
        pooler: whether its own pooling has trained weights, or needs none.
        side: input side in pixels.
    """

    def __init__(self, model: nn.Module, *, pooler: bool, side: int) -> None:
        super().__init__()
        self.projects = hasattr(model, "get_image_features") or type(model).__name__.endswith(_PROJECTED)
        for name in ("text_model", "text_projection"):  # not used for images
            if hasattr(model, name):
                delattr(model, name)
        self.model, self.pool, self.head = model, _OWN, True
        with torch.no_grad():
            x = torch.zeros(1, 3, side, side)
            last = self.forward_features(x)
            if not pooler or self._own(x) is None:
                self.pool = "cls"
        self.num_prefix_tokens = last.shape[1] - math.isqrt(last.shape[1]) ** 2 if last.ndim == 3 else 0
        self.cls_token = True if self.num_prefix_tokens else None  # timm's mark of a class token
        if self.pool == "cls" and not self.num_prefix_tokens:
            self.pool = "avg"

    @property
    def tower(self) -> Any:  # noqa: ANN401 - a module of transformers
        """The part that reads pixels."""
        return getattr(self.model, "vision_model", self.model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, D)."""
        if self.pool != _OWN:
            map_BDHW, prefix_BPD = blocks.last_map(self, x)
            return blocks.pooled(map_BDHW, prefix_BPD, self.pool)
        vector = self._own(x)
        assert vector is not None
        return vector.flatten(1)

    def _own(self, x: torch.Tensor) -> torch.Tensor | None:
        """What the model itself makes of its tokens; None if it has no pooling."""
        features = getattr(self.model, "get_image_features", None)
        found = (features or self.model)(pixel_values=x) if self.projects and self.head else self.tower(pixel_values=x)
        if isinstance(found, torch.Tensor):
            return found
        return found.get("image_embeds", found.get("pooler_output"))  # type: ignore[no-any-return]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last tokens (B, P, D) or map (B, D, H, W)."""
        return self.tower(pixel_values=x).last_hidden_state  # type: ignore[no-any-return]

    def forward_intermediates(
        self, x: torch.Tensor, indices: list[int] | None = None, *, return_prefix_tokens: bool = False, **options: bool
    ) -> list[Any]:
        """Maps (B, D, H, W) of these blocks, or all for None; with prefix tokens (B, P, D) if asked."""
        found = self.tower(pixel_values=x, output_hidden_states=True)
        states = (found.get("reshaped_hidden_states") or found.hidden_states)[1:]
        picked = states if indices is None else [states[index] for index in indices]
        return [self._map(state, prefix=return_prefix_tokens) for state in picked]

    def _map(self, state: torch.Tensor, *, prefix: bool) -> Any:  # noqa: ANN401 - a map, or a map and tokens
        if state.ndim == 4:
            return (state, None) if prefix else state
        first = self.num_prefix_tokens
        patches = state[:, first:].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        found = patches.reshape(*patches.shape[:2], side, side)
        return (found, state[:, :first]) if prefix else found


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    """Load a model from a folder with ``config.json``, weights in safetensors and ``preprocessor_config.json``.

    No code of the folder is run. Weights of heads are left out.

    Raises:
        ConfigError: `transformers` is not installed, the folder has no model for images, its output is random, or it
            does not support the readout.
        WeightsError: weights are missing or of another shape.
    """
    folder, readout = split(name, rest)
    library = require_transformers(name)
    path = folder_of(name, folder)
    _require_alone(name, path)
    with _quietly(library), cached_only():
        try:
            config = library.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
            projected = architecture.endswith(_PROJECTED) and hasattr(library, architecture)
            kind = getattr(library, architecture) if projected else library.AutoModel
            model, report = kind.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True,
                dtype=torch.float32,
            )  # fmt: skip
        except Exception as error:  # whatever the library raises for a configuration
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise WeightsError(f"{name}: cannot load {path}: {reason}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise WeightsError(f"{name}: {path} has no weights for {', '.join(missing[:3])} ({len(missing)} in all)")
    seen = _preprocessing(name, path, config, readout)
    try:
        network = ImageModel(model.eval(), pooler=not report["missing_keys"], side=seen["side"])
        _require_deterministic(name, network, seen["side"])
        return timm.wrap(
            *(name, architecture, network),
            canvas=context.canvas,
            weights=f"{'hub' if folder.startswith(HUB) else 'folder'}: {folder}",
            config=seen,
            readout=readout,
            apply=_read_at,
        )
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"backbone {name}", architecture, f"a model of images ({error})") from error


def require_transformers(name: str) -> Any:  # noqa: ANN401 - a module
    """Import transformers. Raises ConfigError, naming the extra, if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        allowed = "another backbone, or install transformers: pip install 'substyle[transformers]'"
        raise ConfigError("backbone", name, allowed) from error


def _require_alone(name: str, path: Path) -> None:
    """Raise ConfigError if other code or another model would be loaded for what ``config.json`` states."""
    try:
        stated = json.loads(limits.read_text(path / "config.json"))
        kind, nested = stated["model_type"], set(_keys(stated))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"backbone {name}", f"config.json: {error!r}", "a configuration with its model_type"
        ) from error
    if kind not in _TYPES:
        raise ConfigError(f"backbone {name}", f"model_type {kind}", ", ".join(sorted(_TYPES)))
    # of attention: names a repository with a kernel
    if other := [key for key in nested if "_implementation" in key and not key.endswith("_autoset")]:
        raise ConfigError(f"backbone {name}", f"config.json: {other[0]}", "a configuration without it")


def _keys(stated: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """All keys of nested objects."""
    if isinstance(stated, dict):
        yield from stated
    for value in stated.values() if isinstance(stated, dict) else stated if isinstance(stated, list) else ():
        yield from _keys(value)


def folder_of(name: str, folder: str) -> Path:
    """The local folder of a model. Raises ConfigError if it does not exist, WeightsError if its hub is out of reach."""
    if repository := hub_repository(name, folder):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"]))
        except UNREADABLE as error:
            raise WeightsError(f"{name}: cannot load {repository}: {error}") from error
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(f"backbone {name}", str(path), "a folder with config.json, or hf-hub:<owner>/<name>")
    return path


def _read_at(name: str, network: nn.Module, readout: Readout, side: int) -> tuple[nn.Module, str]:
    assert isinstance(network, ImageModel)
    if readout.head is not None and not network.projects:
        raise ConfigError(
            f"backbone {name}", f"head={readout.head}", "a model that projects to a joint space with text"
        )
    if readout.layer is not None:
        return blocks.block(name, network, readout, side=side, own="token" if network.cls_token else None)
    if readout.pool is not None:
        allowed = _POOLS if network.cls_token else _POOLS[1:]
        if readout.pool not in allowed:
            raise ConfigError(f"backbone {name}", f"pool={readout.pool}", ", ".join(allowed))
        network.pool = readout.pool
    network.head = readout.head != "none"
    projected = ", projected" * (network.projects and network.head and network.pool == _OWN)
    return network, f"{network.pool}{projected}"


def _preprocessing(name: str, path: Path, config: Any, readout: Readout) -> dict[str, Any]:  # noqa: ANN401
    """Input side, mean and std, as keyword arguments of `Preprocessed`."""
    file = path / _PROCESSOR
    allowed = "JSON with image_mean, image_std and size, as save_pretrained of an image processor writes"
    try:
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        facts = facts.get("image_processor", facts)
        if facts.get("do_rescale", True) and not math.isclose(facts.get("rescale_factor", 1 / 255), 1 / 255):
            raise ValueError(f"rescale_factor {facts['rescale_factor']}, not 1/255")
        if other := [key for key in _OTHERWISE if facts.get(key)]:
            raise ValueError(f"{', '.join(other)}, which is not supported")
        if facts and not facts.get("do_normalize", True):
            facts |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        elif _kind(facts).startswith("EfficientNet") and facts.get("include_top", True) and "image_std" in facts:
            # normalised a second time, with a mean of 0
            facts["image_std"] = [float(level) ** 2 for level in facts["image_std"]]
        levels = {key: timm.rgb(facts[f"image_{key}"]) for key in ("mean", "std") if key not in readout.levels}
        side = _input_side(facts, getattr(getattr(config, "vision_config", config), "image_size", None))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        given = f"{file.name}: {error!r}" if file.is_file() else f"no {file.name}"
        raise ConfigError(f"preprocessing of {name}", given, allowed) from error
    return {"side": side, **levels, **readout.levels}


def _kind(facts: dict[str, Any]) -> str:
    """Class of the image processor; "" if unstated."""
    return str(facts.get("image_processor_type") or facts.get("feature_extractor_type") or "")


def _input_side(facts: dict[str, Any], own: Any) -> int:  # noqa: ANN401 - as `_side`
    """The side that the processor makes, or that of the model if the processor makes no square."""
    cropped = facts.get("crop_size") if facts.get("do_center_crop", True) else None
    made = cropped or facts.get("size")
    try:
        return _side(made)
    except (ValueError, TypeError):
        if own is None:
            raise
        return _side(own)


def _side(size: Any) -> int:  # noqa: ANN401 - a number, a pair or a table, as processors have them
    if isinstance(size, dict):
        size = [size[key] for key in ("height", "width", "shortest_edge") if key in size]
    sides = {int(each) for each in (size if isinstance(size, list | tuple) else [size])}
    if len(sides) != 1 or not 0 < min(sides) <= 4096:
        raise ValueError(f"size {size}, not that of a square")
    return sides.pop()


def _require_deterministic(name: str, network: ImageModel, side: int) -> None:
    """Raise ConfigError if the output is not a function of the pixels, such as of a masked autoencoder."""
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = (network(x) for _ in range(2))
    if not torch.equal(first, second):
        raise ConfigError(f"backbone {name}", type(network.model).__name__, "a model without random masks")


@contextlib.contextmanager
def _quietly(library: Any) -> Iterator[None]:  # noqa: ANN401 - a module
    """Silence the library's progress bars and remarks on heads that are left out."""
    log = library.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    folder = split(name, rest)[0]
    return None if folder.startswith(HUB) else checkpoint_identity(Path(folder).expanduser())


register_family(
    Family(
        *("transformers", "<folder>|hf-hub:<owner>/<name>", "image models saved by transformers"),
        *(_load, _identify),
        check=split,
        position=2,
    )
)
