"""Specification of a backbone: preprocessing, training objective, and where in the network an embedding is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine.cuda import Canvas
from substyle.kernels.errors import ConfigError

# What a backbone was trained for and on, as its name states it: read from names and tags, never from weights.

OBJECTIVES = ("masked", "image_text", "contrastive", "distilled", "supervised", "none")
UNSTATED = ""

# The first that fits a timm or open_clip name, `architecture.tag`. Training that ended on labels is supervised.
_BY_NAME = (
    (r"ft_in\d|lc_in1k", "supervised"),
    (r"[._](fc)?mae|[._]mim_|ijepa", "masked"),
    (r"dino|lvd\d|sat493m|c_radio", "distilled"),
    (r"simclr|moco|swav|[._]seer", "contrastive"),
    (r"clip|siglip|webli|openai|laion|datacomp|dfn\d|tips|coca_", "image_text"),
    (r"[._]in(w?21|1|12|22)k", "supervised"),
)
_DATA = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "inw21k": "ImageNet-21k (winter)",
    "in22k": "ImageNet-22k",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "sat493m": "SAT-493M",
    "openai": "WIT-400M (OpenAI)",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
    "laion5b": "LAION-5B",
    "laiona": "LAION-Aesthetic",
    "datacomp1b": "DataComp-1B",
    "datacompxl": "DataComp-1B",
    "datacomp_xl": "DataComp-1B",
    "commonpool_xl": "CommonPool-XL",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "metaclip_400m": "MetaCLIP-400M",
    "metaclip_2pt5b": "MetaCLIP-2.5B",
    "merged2b": "Merged-2B",
    "webli": "WebLI",
    "yfcc15m": "YFCC-15M",
    "cc12m": "CC-12M",
    "jft": "JFT-300M",
}
_DATA_WORDS = re.compile("(?<![a-z0-9])(" + "|".join(sorted(_DATA, key=len, reverse=True)) + ")(?![0-9])")
# tags that name their method alone
_DATA_OF_METHOD = {"mae": "ImageNet-1k", "fcmae": "ImageNet-1k", "dino": "ImageNet-1k", "fb_dino": "ImageNet-1k"}


def of_tag(architecture: str, tag: str) -> tuple[str, str]:
    """Objective and pretraining data of pretrained weights of timm or open_clip.

    Args:
        architecture: such as ``vit_base_patch16_224``.
        tag: such as ``mae`` or ``augreg_in21k_ft_in1k``.

    Returns:
        one of `OBJECTIVES` and the data in words, in the order of training; "" for what the tag does not state.
    """
    name = f"{architecture}.{tag}".lower()
    objective = next((found for pattern, found in _BY_NAME if re.search(pattern, name)), UNSTATED)
    words = dict.fromkeys(_DATA[word] for word in _DATA_WORDS.findall(tag.lower()))
    return objective, ", ".join(words) or _DATA_OF_METHOD.get(tag, "")


RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
# canvas → embeddings (B, D) float32
Embed = Callable[[Canvas], NDArray[np.float32]]


@dataclass(frozen=True)
class BackboneSpec:
    """Facts of a backbone that its store, its cache entry and the report carry.

    Attributes:
        name: as the user writes it, such as ``timm:vit_base_patch16_224.mae``.
        architecture: the architecture's name in its library.
        dim: embedding width D.
        input_side: side in pixels of the square the network sees; the canvas is resized to it inside the graph.
        mean, std: normalisation of RGB in [0, 1].
        pooling: how positions become one vector, in words.
        weights: where the weights come from.
        weights_hash: SHA-256 over every tensor (16 hex digits).
        licence: licence of the weights as far as the source states it.
        control: True for embeddings that know nothing by training.
        code: digest of the source of a plug-in that loads it; "" for families of this package.
        objective: what it was trained for: masked, image_text, contrastive, distilled, supervised, none; "" where
            that is not stated.
        parameters: number of trainable values; None where they are not counted, as for graphs.
        data: what it was trained on, as far as known, else "".

    Raises:
        ConfigError: an objective that is none of these.
    """

    name: str
    architecture: str
    dim: int
    input_side: int
    mean: RGB
    std: RGB
    pooling: str
    weights: str
    weights_hash: str
    licence: str = "see the source of the weights"
    control: bool = False
    code: str = ""
    objective: str = UNSTATED
    parameters: int | None = None
    data: str = ""

    def __post_init__(self) -> None:
        if self.objective not in (UNSTATED, *OBJECTIVES):
            raise ConfigError(f"backbone {self.name}: objective", self.objective, ", ".join(OBJECTIVES))

    def describe(self) -> dict[str, Any]:
        """This spec in plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone.

    Attributes:
        spec: its facts.
        module: float32 network from a uint8 canvas (B, S, S, 3) to (B, D), preprocessing included; None for a backbone
            that came as a graph.
        graph: serialised ONNX model with the same interface and a fixed batch, for backbones that came as a graph.
        compiled: False for controls that are plain arithmetic and run in torch as they are.
    """

    spec: BackboneSpec
    module: nn.Module | None = None
    graph: bytes | None = None
    compiled: bool = True


def tensors_hash(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in name order (16 hex digits)."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# Options at the end of a backbone's name: where in a network an embedding is read, and from pixels of which levels.
#
# Such as `@layer=6,pool=avg` or `@mean=0.5,std=0.5`. They are part of the name: with other options it is another
# backbone of a store.

POOLS = ("cls", "avg", "max", "map", "none")
HEADS = ("projection", "none")
ALLOWED = (
    f"@layer=<number of a block, negative from the end>, pool={'|'.join(POOLS)}, head={'|'.join(HEADS)}, "
    "mean=<number>, std=<number> (of pixels in [0, 1]; or three, <red>:<green>:<blue>)"
)
# a name's own part may hold an @, as a path does: options are plain words and numbers to the very end
_OPTION = "[a-z]+=(?:[a-z0-9-]*|[0-9.:]+)"
_OPTIONS = re.compile(f"(?P<model>.+)@(?P<options>{_OPTION}(?:,{_OPTION})*)")
_LEVEL = re.compile(r"[01]|[01]?\.[0-9]+")


@dataclass(frozen=True)
class Readout:
    """Where an embedding is read, and what normalisation the network is given.

    Attributes:
        layer: number of a block from 0, negative from the end: its output without the network's final normalisation,
            as timm's `forward_intermediates` gives it. None: the network's end.
        pool: how positions become one vector: ``cls`` (the class token), ``avg`` and ``max`` over the patches or the
            map, ``map`` (the network's attention pooling), ``none`` (only where there is one vector anyhow). None: the
            network's own.
        head: ``projection``, or ``none`` for what comes before it. None: the family's default.
        mean, std: normalisation of RGB in [0, 1]. None: that of the weights, as their library or preset states it.
    """

    layer: int | None = None
    pool: str | None = None
    head: str | None = None
    mean: RGB | None = None
    std: RGB | None = None

    @property
    def place(self) -> Readout:
        """Where alone, whatever the normalisation."""
        return Readout(self.layer, self.pool, self.head)

    @property
    def levels(self) -> dict[str, RGB]:
        """``mean`` and ``std`` where they are given."""
        return {key: value for key, value in (("mean", self.mean), ("std", self.std)) if value is not None}

    def or_else(self, default: Readout) -> Readout:
        """This one, with what it leaves open taken from a default."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return Readout(**{**asdict(default), **given})


WHOLE = Readout()


def split(name: str, rest: str) -> tuple[str, Readout]:
    """Of what follows a family's colon: the model, and where to read it. Raises ConfigError for a bad option.

    Args:
        name: the whole name, for errors.
        rest: such as ``vit_base_patch16_224.mae@layer=6,pool=avg``.
    """
    found = _OPTIONS.fullmatch(rest)
    if found is None:
        return rest, WHOLE
    given: dict[str, str] = {}
    for option in found["options"].split(","):
        key, _, value = option.partition("=")
        known = {
            "pool": value in POOLS,
            "head": value in HEADS,
            "layer": bool(re.fullmatch("-?[0-9]{1,4}", value)),
            "mean": _rgb(value) is not None,
            "std": min(_rgb(value) or (0.0,)) > 0.0,
        }
        if key in given or not known.get(key, False):
            raise ConfigError(f"backbone {name}", option, ALLOWED + ", each once")
        given[key] = value
    layer = int(given["layer"]) if "layer" in given else None
    mean, std = (_rgb(given[key]) if key in given else None for key in ("mean", "std"))
    return found["model"], Readout(layer, given.get("pool"), given.get("head"), mean, std)


def _rgb(text: str) -> RGB | None:
    """One number from 0 to 1 for all channels, or three; None for anything else."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(_LEVEL.fullmatch(part) for part in parts):
        return None
    red, green, blue = (float(part) for part in (parts * 3)[:3])
    return (red, green, blue) if max(red, green, blue) <= 1.0 else None


# Embeddings on their way: what runtimes give that work in the background.


class AsyncResult(Protocol):
    """Embeddings on their way."""

    def result(self) -> NDArray[np.float32]:
        """Wait for them. Shape: (B, D) float32. To be asked once."""
        ...


@runtime_checkable
class Starts(Protocol):
    """A runtime that works in the background."""

    def start(self, canvas_BSSC: Canvas) -> AsyncResult:
        """Begin with a batch. Nobody may write to the canvas until it has ended."""
        ...


@dataclass(frozen=True)
class CompletedResult:
    """Embeddings that are there."""

    embedded_BD: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        """Shape: (B, D) float32."""
        return self.embedded_BD


@dataclass(frozen=True)
class Concatenated:
    """Embeddings of the parts of a batch."""

    parts: Sequence[AsyncResult]

    def result(self) -> NDArray[np.float32]:
        """Wait for them. Shape: (B, D) float32."""
        return np.concatenate([part.result() for part in self.parts])
