"""Backbones with random weights behind the uint8 interface, canvases for them, and the comparison of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from substyle.engine.backbones.families import timm
from substyle.engine.backbones.preprocess import Preprocessed
from substyle.engine.estimate.work import Work, of_network

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
    """A timm model, untrained, with its own preprocessing, on the CPU."""
    torch.manual_seed(0)
    network = timm.create(model).eval().requires_grad_(False)
    front = Preprocessed(network, canvas=canvas, **timm.data_config(network)).eval()
    timm.recalibrate(front, canvases(CALIBRATION, canvas).numpy())
    return front


def work(model: str, batch: int) -> Work:
    """Its operations and bytes for a batch, counted on tensors without memory."""
    with torch.device("meta"):
        network = timm.create(model).eval()
        side = timm.data_config(network)["side"]
        x = torch.empty(batch, 3, side, side)
    return of_network(network, x)


def compared(got_ND: torch.Tensor, reference_ND: torch.Tensor) -> Comparison:
    """Hold embeddings against their reference; what is not finite has a cosine of -1."""
    mean = reference_ND.double().mean(0)
    cosine = functional.cosine_similarity(got_ND.double() - mean, reference_ND.double() - mean).nan_to_num(-1.0)
    return Comparison(float(cosine.min()), float(cosine.mean()))
