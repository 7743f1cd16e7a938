"""Photographs in memory for the gate, and small networks and how they are compiled, for tests of 8 bits in TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph, slow_after
from torch import nn

from substyle.engine.backbones.compile import CompileOptions
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.runtimes import tensorrt
from substyle.engine.backbones.runtimes.base import CalibrationSamples, fingerprint
from substyle.engine.backbones.spec import Backbone, BackboneSpec
from substyle.engine.devices import EIGHT_BITS, Target
from substyle.errors import ConfigError

BATCH, CANVAS, SIDE, DIM = 4, 48, 32, 24
HALF = (0.5, 0.5, 0.5)
ON_GPU = Target("cuda:0", "tensorrt")
BUILDS = pytest.mark.skipif(tensorrt.installed() is None, reason="no TensorRT")
EACH = pytest.mark.parametrize("precision", slow_after(1, EIGHT_BITS))
NETWORKS = pytest.mark.parametrize("name", slow_after(1, ["convolutions", "transformer"]))


def convolutions() -> nn.Module:
    """Five of them with normalisations that exporters fold: two are narrow (of colours, of single channels)."""
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, DIM, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class Transformer(nn.Module):
    """A ViT of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 8, stride=8)
        self.norm, self.attention = nn.LayerNorm(DIM), nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return (tokens + self.mlp(tokens)).mean(1)  # type: ignore[no-any-return]


def module(name: str) -> Preprocessed:
    torch.manual_seed(0)
    network = convolutions() if name == "convolutions" else Transformer()
    made = Preprocessed(network, canvas=CANVAS, side=SIDE, mean=HALF, std=HALF)
    if name == "convolutions":  # statistics as of a trained network
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
        with torch.no_grad():
            made.train()(torch.from_numpy(np.concatenate([batch(90), 255 - batch(94)])))
    return made.eval().requires_grad_(False)


def backbone(name: str = "convolutions") -> Backbone:
    return Backbone(BackboneSpec("x:tiny", "tiny", DIM, SIDE, HALF, HALF, "flat", "none", name), module(name))


def batch(first: int) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(first + i, CANVAS, CANVAS)) for i in range(BATCH)])


@dataclass(frozen=True)
class GivenSamples(CalibrationSamples):
    """`CalibrationSamples` in memory.

    Attributes:
        batches_GSSC: batches of photographs in every variant, identity first.
        count: number of photographs.
        extra_GSSC: full batches of other photographs, for quantisation.
    """

    batches_GSSC: Sequence[NDArray[np.uint8]]
    count: int
    extra_GSSC: Sequence[NDArray[np.uint8]] = ()

    def images(self) -> int:
        return self.count

    def names(self) -> Sequence[str]:
        return [f"variant {t}" for t in range(len(self.batches_GSSC) // -(-self.count // len(self.first())))]

    def anchors(self) -> Sequence[str]:
        return self.names()

    def family(self, name: str) -> str:
        return name

    def fingerprint(self, name: str) -> str:
        return fingerprint([self.pictures({name: range(self.count)})[name]])

    def first(self) -> NDArray[np.uint8]:
        return self.batches_GSSC[0]

    def pictures(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.uint8]]:
        names = list(self.names())
        whole = {name: np.concatenate(self.batches_GSSC[names.index(name) :: len(names)]) for name in wanted}
        return {name: whole[name][list(chosen)] for name, chosen in wanted.items()}

    def extra_samples(self) -> Sequence[NDArray[np.uint8]]:
        if not self.extra_GSSC:
            raise ConfigError("precision", "8 bits", "16 or 32 bits; quantisation needs photographs outside the gate")
        return self.extra_GSSC

    def extra_fingerprint(self) -> str:
        return fingerprint(self.extra_samples())


SAMPLES = GivenSamples([batch(0), 255 - batch(0)], BATCH, [batch(10), 255 - batch(20), batch(30)])


def options(precision: str, on: Target = ON_GPU) -> CompileOptions:
    return CompileOptions(batch=BATCH, canvas=CANVAS, threads=1, precision=precision, target=on)


def cosine(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """The smallest one, as the gate has it."""
    a, b = got - want.mean(0), want - want.mean(0)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def reference(name: str, canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(module(name)(torch.from_numpy(canvas_BSSC)).numpy())
