"""Specification of a backbone: preprocessing, training objective, and where in the network an embedding is read."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from substyle.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from substyle.engine.cuda import Canvas

OBJECTIVES = ("masked", "image_text", "contrastive", "distilled", "supervised", "none")
UNSTATED = ""

# The first match in a timm or open_clip name, `architecture.tag`, counts. Fine-tuning on labels counts as supervised.
_BY_NAME = (
    (r"ft_in\d|lc_in1k", "supervised"),
    (r"[._](fc)?mae|[._]mim_|ijepa", "masked"),
    (r"dino|lvd\d|sat493m|c_radio|[._]pe_spatial", "distilled"),
    (r"simclr|moco|swav|[._]seer", "contrastive"),
    (r"clip|siglip|webli|openai|laion|datacomp|dfn\d|tips|coca_|pe[_-](core|lang)", "image_text"),
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
    "metaclip2_worldwide": "MetaCLIP 2 (worldwide)",
    "merged2b": "Merged-2B",
    "webli": "WebLI",
    "yfcc15m": "YFCC-15M",
    "cc12m": "CC-12M",
    "jft": "JFT-300M",
}
_DATA_WORDS = re.compile("(?<![a-z0-9])(" + "|".join(sorted(_DATA, key=len, reverse=True)) + ")(?![0-9])")
# data of tags that state the method only
_DATA_OF_METHOD = {"mae": "ImageNet-1k", "fcmae": "ImageNet-1k", "dino": "ImageNet-1k", "fb_dino": "ImageNet-1k"}


def of_tag(architecture: str, tag: str) -> tuple[str, str]:
    """Derive objective and pretraining data of timm or open_clip weights from their name.

    Args:
        architecture: such as ``vit_base_patch16_224``.
        tag: such as ``mae`` or ``augreg_in21k_ft_in1k``.

    Returns:
        one of `OBJECTIVES`, and datasets in the order of training; "" if not stated.
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
Embed = Callable[["Canvas"], NDArray[np.float32]]


@dataclass(frozen=True)
class BackboneSpec:
    """Facts of a backbone, kept in its store, cache entries and reports.

    Attributes:
        name: full name, such as ``timm:vit_base_patch16_224.mae``.
        architecture: the architecture's name in its library.
        dim: embedding width D.
        input_side: input side of the network in pixels; the canvas is resized to it inside the graph.
        mean, std: normalisation of RGB in [0, 1].
        pooling: description of the pooling.
        weights: source of the weights.
        weights_hash: SHA-256 over all tensors (16 hex digits).
        licence: licence of the weights, if stated by the source.
        control: True for untrained baselines.
        objective: training objective: masked, image_text, contrastive, distilled, supervised, none; "" if unstated.
        parameters: number of trainable values; None if not counted, as for graphs.
        data: training data; "" if unknown.
        graph: digest of its exported graph, with weights; "" for plain arithmetic.
        sketch: random projections of its float32 embeddings of `packaged_photographs.fixed_canvases`, (4, 64).
        finetuned: of fine-tuned weights, the ``backbone`` before, and ``objective``, ``seed``, ``transformations`` and
            ``settings`` of the training; else None.

    Raises:
        ConfigError: the objective is unknown.
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
    objective: str = UNSTATED
    parameters: int | None = None
    data: str = ""
    graph: str = ""
    sketch: tuple[tuple[float, ...], ...] = ()
    finetuned: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.objective not in (UNSTATED, *OBJECTIVES):
            raise ConfigError(f"backbone {self.name}: objective", self.objective, ", ".join(OBJECTIVES))

    def describe(self) -> dict[str, Any]:
        """Return the spec as plain JSON."""
        left_out: dict[str, Any] = {"finetuned": None, "graph": "", "sketch": ()}
        return {key: value for key, value in asdict(self).items() if key not in left_out or value != left_out[key]}


def columns(specs: Sequence[BackboneSpec]) -> list[slice]:
    """Return the columns of each backbone in the concatenation of their embeddings."""
    ends = list(accumulate(spec.dim for spec in specs))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone.

    Attributes:
        spec: its facts.
        module: float32 network with preprocessing, from a uint8 canvas (B, S, S, 3) to (B, D); None for graphs.
        graph: serialised ONNX model with the same interface and a fixed batch; None for modules.
        compiled: False for controls that are plain arithmetic and run eagerly in torch.
        members: facts of the backbones whose embeddings this one concatenates, in order; empty for a single backbone.
    """

    spec: BackboneSpec
    module: nn.Module | None = None
    graph: bytes | None = None
    compiled: bool = True
    members: tuple[BackboneSpec, ...] = ()


EXECUTED = "executed"  # key of the precision that a runtime runs in, which may replace the one that was asked for
SAME_SKETCH = 1e-5  # relative distance of sketches of one network on different processors and libraries


def distance(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> float:
    """Largest relative distance of two sketches over pictures; infinite for other shapes."""
    before, now = np.asarray(old, np.float64), np.asarray(new, np.float64)
    if before.shape != now.shape:
        return float("inf")
    far = np.linalg.norm(now - before, axis=-1) / np.maximum(np.linalg.norm(before, axis=-1), 1e-30)
    return float(np.max(far, initial=0.0))


def tensors_hash(state: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, in name order (16 hex digits)."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# Options at the end of a backbone's name, such as `@layer=6,pool=avg` or `@mean=0.5,std=0.5`. They are part of the
# name: other options are another backbone of a store.

POOLS = ("cls", "avg", "max", "map", "none")
HEADS = ("projection", "none")
BLOCK = "block"
MODULES = (BLOCK, "attention", "ffn")
ALLOWED = (
    "@layer=<index of a block, negative from the end> (or several: 0..11, 2:5:8; or concatenated: 3+11), "
    f"module={'|'.join(MODULES)} with layer (or several: attention:ffn), pool={'|'.join(POOLS)}, "
    f"head={'|'.join(HEADS)}, mean=<number>, std=<number> (of pixels in [0, 1]; or three, "
    "<red>:<green>:<blue>), as=<a name of your own>"
)
# paths may contain an @, so options must be plain words and numbers up to the end
_OPTION = r"(?:as=[\w.-]+|[a-z]+=(?:[a-z0-9-]*|[a-z]+(?::[a-z]+)+|[0-9.:+-]+))"
_OPTIONS = re.compile(f"(?P<model>.+)@(?P<options>{_OPTION}(?:,{_OPTION})*)")
_LEVEL = re.compile(r"[01]|[01]?\.[0-9]+")
_OWN = re.compile(r"([\w.-]{1,80})=([\w-]+:.+)", re.DOTALL)
_AS = re.compile(r"(?<=[@,])as=([\w.-]+),?")


def named(name: str) -> tuple[str, str]:
    """Separate a name of one's own from a backbone: ``old=timm:resnet18`` is ``timm:resnet18@as=old``.

    Returns:
        the name of the backbone in stores, and its own name; "" without one.
    """
    if found := _OWN.fullmatch(name):
        own, name = found.groups()
        return f"{name}{',' if has_options(name) else '@'}as={own}", own
    return name, own_name(name)


def own_name(name: str) -> str:
    """The ``as`` of a backbone's name; "" without one."""
    found = _AS.search(name) if has_options(name) else None
    return found[1] if found else ""


def network_name(name: str) -> tuple[str, str]:
    """What the backbones of one network share: its name without options, and the ``as`` of its checkpoint."""
    return name.partition("@")[0], own_name(name)


def without_own_name(name: str) -> str:
    """Remove the ``as`` of a backbone's name."""
    return _AS.sub("", name).rstrip(",@") if own_name(name) else name


@dataclass(frozen=True)
class Readout:
    """Where to read an embedding, and the normalisation of the input.

    Attributes:
        layer: index of a block, negative from the end, whose output is read without the final normalisation, as in
            timm's `forward_intermediates`. None: the network's output.
        pool: ``cls`` (the class token), ``avg`` or ``max`` over patches or the map, ``map`` (the network's attention
            pooling), ``none`` (only if the output is one vector). None: the network's default.
        head: ``projection``, or ``none`` for the features before it. None: the family's default.
        mean, std: normalisation of RGB in [0, 1]. None: that stated by the library or preset of the weights.
        module: branch of the block: ``attention`` or ``ffn``, what it adds to the residual stream. None: the block.
    """

    layer: int | None = None
    pool: str | None = None
    head: str | None = None
    mean: RGB | None = None
    std: RGB | None = None
    module: str | None = None

    @property
    def place(self) -> Readout:
        """The readout without its normalisation."""
        return Readout(self.layer, self.pool, self.head, module=self.module)

    @property
    def levels(self) -> dict[str, RGB]:
        """``mean`` and ``std`` if given."""
        return {key: value for key, value in (("mean", self.mean), ("std", self.std)) if value is not None}

    def or_else(self, default: Readout) -> Readout:
        """Fill unset fields from a default."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return Readout(**{**asdict(default), **given})


WHOLE = Readout()
_LAYERS = re.compile(r"([@,]layer=)(-?[0-9]{1,4})(?:\.\.(-?[0-9]{1,4})|((?::-?[0-9]{1,4})+))(?=,|$)")
_MODULES = re.compile(r"([@,]module=)([a-z]+(?::[a-z]+)+)(?=,|$)")


def expand(name: str) -> list[str]:
    """Return the names of single layers in the name of several, such as ``mae:base@layer=0..11`` or ``…@layer=2:5:8``.

    Several modules, ``…@layer=0..11,module=attention:ffn``, are expanded for every layer. A name without several is
    returned alone. Raises ConfigError for fewer than two layers, a repeated layer or module, or a range from a negative
    index, which counts from the end, to another.
    """
    if _OPTIONS.fullmatch(name) is None:
        return [name]
    names = [name]
    if found := _LAYERS.search(name):
        first, last, more = found[2], found[3], found[4]
        layers = list(range(int(first), int(last) + 1)) if last else [int(each) for each in (first + more).split(":")]
        crosses = last and int(first) < 0 <= int(last)
        if len(layers) < 2 or len(set(layers)) < len(layers) or crosses:
            allowed = "layer=<index>, <first>..<last> with both from the same end, or different layers as 2:5:8"
            raise ConfigError(f"backbone {name}", found[0].strip("@,"), allowed)
        names = [f"{name[: found.start()]}{found[1]}{layer}{name[found.end() :]}" for layer in layers]
    if found := _MODULES.search(name):
        modules = found[2].split(":")
        if len(set(modules)) < len(modules):
            raise ConfigError(f"backbone {name}", found[0].strip("@,"), "different modules")
        names = [_MODULES.sub(rf"\g<1>{module}", each) for each in names for module in modules]
    return names


_FUSED = re.compile(r"([@,]layer=)(-?[0-9]{1,4}(?:\+-?[0-9]{1,4})+)(?=,|$)")


def fused(name: str) -> list[str]:
    """Return the names of the layers that a backbone such as ``mae:base@layer=3+11`` concatenates; else an empty list.

    Raises ConfigError for a repeated layer.
    """
    found = _FUSED.search(name)
    if found is None or _OPTIONS.fullmatch(name) is None:
        return []
    layers = found[2].split("+")
    if len(set(layers)) < len(layers):
        raise ConfigError(f"backbone {name}", f"layer={found[2]}", "different layers")
    return [f"{name[: found.start()]}{found[1]}{layer}{name[found.end() :]}" for layer in layers]


def has_options(rest: str) -> bool:
    """Return whether the part of a name after the colon ends in options."""
    return _OPTIONS.fullmatch(rest) is not None


def split(name: str, rest: str) -> tuple[str, Readout]:
    """Split the part of a name after the colon into model and readout. Raises ConfigError for an invalid option.

    Args:
        name: the full name, for errors.
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
            "module": value in MODULES,
            "mean": _rgb(value) is not None,
            "std": min(_rgb(value) or (0.0,)) > 0.0,
            "as": True,
        }
        if key in given or not known.get(key, False):
            raise ConfigError(f"backbone {name}", option, ALLOWED + ", each once")
        given[key] = value
    layer = int(given["layer"]) if "layer" in given else None
    if layer is None and "module" in given:
        raise ConfigError(f"backbone {name}", f"module={given['module']} without layer", ALLOWED)
    module = given["module"] if given.get("module", BLOCK) != BLOCK else None
    mean, std = (_rgb(given[key]) if key in given else None for key in ("mean", "std"))
    return found["model"], Readout(layer, given.get("pool"), given.get("head"), mean, std, module)


def _rgb(text: str) -> RGB | None:
    """Parse one number from 0 to 1 for all channels, or three; None if invalid."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(_LEVEL.fullmatch(part) for part in parts):
        return None
    red, green, blue = (float(part) for part in (parts * 3)[:3])
    return (red, green, blue) if max(red, green, blue) <= 1.0 else None


Pending = Callable[[], NDArray[np.float32]]  # waits for embeddings (B, D) that are computed in the background


class Runtime(ABC):
    """Embeds batches in the background."""

    @abstractmethod
    def start(self, canvas_BSSC: Canvas) -> Pending:
        """Start a batch, on the runtime's device or the host. Do not modify it before its embeddings are there."""

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """Embed (B, S, S, 3) uint8 to (B, D) float32."""
        return self.start(canvas_BSSC)()
