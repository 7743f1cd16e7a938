"""Fine-tuning against plain torch: budgets, losses and what stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from substyle.engine.extensions.finetune.config import FinetuneConfig, Objective
from substyle.engine.extensions.finetune.training import LabelledVariants, fit

D, CLASSES, TRANSFORMATIONS = 6, 2, 3


class Network(nn.Module):
    """Colour means through a batch normalisation and a layer: (B, S, S, 3) uint8 to (B, D)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer, self.dropout = nn.BatchNorm1d(3), nn.Linear(3, D), nn.Dropout(0.9)

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.dropout(self.layer(self.norm(canvas_BSSC.float().mean((1, 2)) / 255)))
        return x


def batches(seen: list[LabelledVariants]) -> Iterator[LabelledVariants]:
    """Classes are red or green; transformations the level of blue."""
    generator = torch.Generator().manual_seed(1)
    while True:
        t = torch.randint(TRANSFORMATIONS, (16,), generator=generator)
        c = torch.randint(CLASSES, (16,), generator=generator)
        pixels = torch.randint(90, 110, (16, 4, 4, 3), generator=generator)
        pixels[torch.arange(16), :, :, c] += 60
        pixels[..., 2] += 30 * t[:, None, None]
        seen.append(LabelledVariants(pixels.to(torch.uint8), t, c))
        yield seen[-1]


def trained(objective: Objective, steps: int = 60) -> tuple[Network, dict[str, list[float]], int]:
    network, seen = Network(), list[LabelledVariants]()
    config = FinetuneConfig(steps=steps, batch=16, learning_rate=3e-2)
    losses = fit(
        *(network, batches(seen), config, objective),
        dim=D,
        transformations=TRANSFORMATIONS,
        classes=CLASSES,
        seed=3,
        device=torch.device("cpu"),
    )
    return network, losses, len(seen)


def test_losses_are_means_of_all_steps() -> None:
    _, losses, _ = trained("class", steps=19)
    _, first, _ = trained("class", steps=1)
    assert len(losses["class"]) == 10
    assert losses["class"][0] != first["class"][0]  # of two steps
