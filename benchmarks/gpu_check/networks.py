"""Backbones with random weights behind the uint8 interface, canvases for them, and the comparison of embeddings."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.spec import RGB
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
    """Its operations and bytes for a batch, counted on tensors without memory."""
    with torch.device("meta"):
        network, seen = _made(model)
        x = torch.empty(batch, 3, seen["side"], seen["side"])
    return of_network(network.eval(), x)


def plain(model: str) -> bool:
    """Whether torch's own network of the same sizes stands for timm's, which is not installed."""
    return importlib.util.find_spec("timm") is None and model in SHAPES


def _made(model: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network, and its input side, mean and deviation. Raises ImportError naming timm where that is what it needs."""
    if plain(model):
        return PlainViT(SHAPES[model]), {"side": SHAPES[model].side, "mean": HALF, "std": HALF}
    importlib.import_module("timm")  # before ours, whose first want may be something that timm brings along
    from substyle.engine.backbones.families import timm

    network = timm.create(model)
    return network, timm.data_config(network)


def compared(got_ND: torch.Tensor, reference_ND: torch.Tensor) -> Comparison:
    """Hold embeddings against their reference; what is not finite has a cosine of -1."""
    mean = reference_ND.double().mean(0)
    cosine = functional.cosine_similarity(got_ND.double() - mean, reference_ND.double() - mean).nan_to_num(-1.0)
    return Comparison(float(cosine.min()), float(cosine.mean()))


HALF: RGB = (0.5, 0.5, 0.5)  # mean and deviation of the input


@dataclass(frozen=True)
class Shape:
    """Input side and side of a patch in pixels, width D, blocks, heads of attention."""

    side: int
    patch: int
    width: int
    depth: int
    heads: int


# by timm's names of the networks of these sizes; that of the tests has a narrower perceptron there
SHAPES = {
    "vit_base_patch16_224": Shape(224, 16, 768, 12, 12),
    "vit_large_patch14_clip_224": Shape(224, 14, 1024, 24, 16),
    "test_vit": Shape(160, 16, 64, 6, 2),
}


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*split.unbind(0))
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        grown: torch.Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + grown


class PlainViT(nn.Module):
    """A vision transformer in torch alone, with random weights: what a machine without timm measures in its place.

    Its products have the shapes that timm's have; the embedding is the class token. (B, 3, side, side) to (B, D).
    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch)
        self.token = nn.Parameter(torch.randn(1, 1, shape.width) * 0.02)
        self.place = nn.Parameter(torch.randn(1, 1 + (shape.side // shape.patch) ** 2, shape.width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(shape.width, shape.heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.place
        embedding: torch.Tensor = self.norm(self.blocks(x)[:, 0])
        return embedding
