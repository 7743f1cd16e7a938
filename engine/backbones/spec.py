"""What a backbone is: a typed spec, the only source of its preprocessing, and the thing that computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine.arriving import Canvas
from substyle.engine.backbones.objectives import OBJECTIVES, UNSTATED
from substyle.kernels.errors import ConfigError

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
