"""`model:<name>`: a torch module of this process, given to `substyle.run` or `substyle.embed`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import nn

from substyle.engine.backbones.families import timm
from substyle.engine.backbones.families.transformers_model import ImageModel
from substyle.engine.backbones.family import Family, LoadContext, register_family
from substyle.engine.backbones.spec import WHOLE, Backbone, BackboneSpec, split, tensors_hash
from substyle.errors import ConfigError

PREFIX = "model"
Model: TypeAlias = "nn.Module | tuple[nn.Module, Callable[..., Any]]"
_GIVEN: dict[str, Model] = {}
_ALLOWED = "a torch module of timm, or (module, preprocess): preprocess turns a PIL image into the module's input"


@contextmanager
def given(models: Mapping[str, Model | str]) -> Iterator[list[tuple[str, str]]]:
    """Let models be backbones within the block; texts are names of other backbones. Yields labels and names.

    Raises ConfigError for what is neither a model nor a name, and for names other than letters, digits, ``_.-``.
    """
    names: list[tuple[str, str]] = []
    for own, model in models.items():
        if not re.fullmatch(r"[\w.-]{1,80}", own):
            raise ConfigError("backbones", own, "names of letters, digits, dots, dashes and underscores")
        if isinstance(model, str):
            names.append((own, f"{own}={model}"))
            continue
        module = model[0] if isinstance(model, tuple) and len(model) == 2 and callable(model[1]) else model
        if not isinstance(module, nn.Module):
            raise ConfigError(f"backbone {own}", type(model).__name__, _ALLOWED)
        names.append((own, f"{PREFIX}:{own}"))
    _GIVEN.update({own: model for own, model in models.items() if not isinstance(model, str)})
    try:
        yield names
    finally:
        for own in models:
            _GIVEN.pop(own, None)


class OwnPreprocessing(nn.Module):
    """A network whose pictures pass through a function for one PIL image, as datasets of torch apply it.

    Args:
        network: maps what ``preprocess`` returns, as a batch, to (B, D).
        preprocess: a transform of torchvision, timm or open_clip, or an image processor of transformers.
    """

    def __init__(self, network: nn.Module, preprocess: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        self.register_buffer("place", torch.zeros(()), persistent=False)  # says on which device the network is

    def pixels(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """Canvases (B, S, S, 3) uint8 as the network reads them, (B, 3, H, W)."""
        pictures = [Image.fromarray(canvas) for canvas in np.asarray(canvas_BSSC.cpu())]
        if hasattr(self.preprocess, "image_processor") or hasattr(self.preprocess, "image_mean"):
            x: torch.Tensor = self.preprocess(images=pictures, return_tensors="pt")["pixel_values"]
        else:
            x = torch.stack([torch.as_tensor(self.preprocess(picture)) for picture in pictures])
        return x.to(self.get_buffer("place").device, torch.float32)

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """Embed (B, S, S, 3) uint8 to (B, D) float32."""
        return self.network(self.pixels(canvas_BSSC))  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    """Image tower of a network of open_clip, which also has one for text."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - a module with encode_image
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.encode_image(x)  # type: ignore[no-any-return]


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    """Wrap a copy of the model in float32.

    Embeddings are those before the classifier of timm's networks, pooled ones of networks of transformers, those of
    images of CLIP, and otherwise what the module returns.

    Raises:
        ConfigError: the model was not given, lacks its preprocessing, or fails.
    """
    own, readout = split(name, rest)
    if own not in _GIVEN:
        allowed = f'the model in Python, as in substyle.run(photographs, {{"{own}": (model, preprocess)}})'
        raise ConfigError(f"backbone {name}", "not given to this process", allowed)
    model = _GIVEN[own]
    module, preprocess = model if isinstance(model, tuple) else (model, None)
    network: Any = copy.deepcopy(module).cpu().float().eval()
    of_timm = hasattr(network, "pretrained_cfg") and hasattr(network, "reset_classifier")
    if of_timm:
        network.reset_classifier(0)
    try:
        if preprocess is None:
            if not of_timm:
                raise ConfigError(f"backbone {own}", type(module).__name__, _ALLOWED)
            architecture = network.pretrained_cfg.get("architecture") or type(network).__name__
            weights = "given in Python"
            return timm.wrap(name, architecture, network, canvas=context.canvas, weights=weights, readout=readout)
        if readout != WHOLE:
            raise ConfigError(f"backbone {name}", rest, "no options of a model with its own preprocessing")
        return _with_its_own(name, type(module).__name__, network, preprocess, context.canvas)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"backbone {own}", f"{type(error).__name__}: {error}", _ALLOWED) from error


def _with_its_own(
    name: str,
    architecture: str,
    network: Any,  # noqa: ANN401 - of any library
    preprocess: Callable[..., Any],
    canvas: int,
) -> Backbone:
    """A backbone with its own preprocessing, which runs on the CPU and is not compiled."""
    hashed, blank_BSSC = tensors_hash(network.state_dict()), torch.zeros(1, canvas, canvas, 3, dtype=torch.uint8)
    side = int(OwnPreprocessing(network, preprocess).pixels(blank_BSSC).shape[-1])
    if type(network).__module__.startswith("transformers."):
        network = ImageModel(network, pooler=True, side=side)
    elif hasattr(network, "encode_image"):
        network = _Encoder(network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    module = OwnPreprocessing(network, preprocess).eval()
    with torch.inference_mode():
        dim = timm.require_vector(name, module(blank_BSSC))
    how = getattr(preprocess, "__qualname__", type(preprocess).__qualname__)
    spec = BackboneSpec(
        *(name, architecture, dim, side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        pooling="the network's own",
        weights=f"given in Python, with its own preprocessing ({how})",
        weights_hash=hashed,
        licence="unstated",
    )
    return Backbone(spec, module, compiled=False)


def _function(name: str, rest: str) -> Callable[[], Model]:
    """What no file may name: a model of this process."""
    return lambda: _GIVEN[split(name, rest)[0]]


register_family(
    Family(
        *(PREFIX, "<name>", "a torch module given to substyle.run or substyle.embed in Python"),
        loader=_load,
        check=split,
        function=_function,
        position=4,
    )
)
