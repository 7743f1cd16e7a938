"""Backbones with random weights behind the uint8 interface, canvases for them, and the comparison of embeddings."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.estimate.networks import Work, of_network

CALIBRATION = 8  # canvases that set the statistics of normalisation layers: else activations fade or explode


@dataclass(frozen=True)
class Comparison:
    """Smallest and mean cosine of embeddings to their reference, after subtraction of the reference's mean."""

    least: float
    mean: float


def canvases(count: int, side: int) -> torch.Tensor:
    """Smooth random fields of many scales, colours and contrasts. Shape: (count, side, side, 3) uint8, on the CPU.

    White noise would not do: its embeddings are alike, and what is left of them without their mean is rounding.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        cells = int(torch.randint(3, 33, (1,), generator=generator))
        low, high = torch.rand(2, 3, 1, 1, generator=generator) * 255
        field = torch.rand(1, 3, cells, cells, generator=generator)
        smooth = functional.interpolate(field, size=(side, side), mode="bilinear")[0]
        made.append((low + (high - low) * smooth).permute(1, 2, 0).to(torch.uint8))
    return torch.stack(made)


def backbone(model: str, canvas: int) -> Preprocessed:
    """A network, untrained, with its own preprocessing, on the CPU."""
    torch.manual_seed(0)
    network, seen = _made(model)
    network = network.eval().requires_grad_(False)
    front = Preprocessed(network, canvas=canvas, **seen).eval()
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        from substyle.engine.backbones.families import timm

        timm.recalibrate(front, canvases(CALIBRATION, canvas).numpy())
    return front


def work(model: str, batch: int) -> Work:
    with torch.device("meta"):
        network, seen = _made(model)
        x = torch.empty(batch, 3, seen["side"], seen["side"])
    return of_network(network.eval(), x)


def _made(model: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network, and its input side, mean and deviation. Raises ImportError naming timm where that is what it needs."""
    importlib.import_module("timm")  # before ours, whose first want may be something that timm brings along
    from substyle.engine.backbones.families import timm

    network = timm.create(model)
    return network, timm.data_config(network)


def compared(got_ND: torch.Tensor, reference_ND: torch.Tensor) -> Comparison:
    """Hold embeddings against their reference; what is not finite has a cosine of -1."""
    mean = reference_ND.double().mean(0)
    cosine = functional.cosine_similarity(got_ND.double() - mean, reference_ND.double() - mean).nan_to_num(-1.0)
    return Comparison(float(cosine.min()), float(cosine.mean()))
