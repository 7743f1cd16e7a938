"""A vision transformer in torch alone: what a machine without timm measures in the place of timm's of the same sizes.

Dosovitskiy et al., An Image is Worth 16x16 Words (2021): patches, class token, blocks with normalisation before
attention and perceptron; its products have the shapes that timm's have. Weights are random, the embedding is the
class token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from substyle.engine.backbones.spec import RGB

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
    """(B, 3, side, side) to (B, D)."""

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
