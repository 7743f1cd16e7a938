"""Settings of the grid, and their K = settings x seeds heads: initial weights, dropout masks, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from substyle.engine.probes.config import ProbeConfig
from substyle.kernels.probe_step import Heads


@dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        width: hidden units H, 0 for a linear head.
        group: settings of one group compete; validation picks one of each.
        loss: weight of each part of the loss.
        score: weight of each part in the validation accuracy that decides.
        lam: the multi-task weight lambda, None outside the multi-task probe.
    """

    lr: float
    weight_decay: float
    width: int
    group: str = ""
    loss: tuple[float, ...] = (1.0,)
    score: tuple[float, ...] = (1.0,)
    lam: float | None = None

    def describe(self) -> dict[str, Any]:
        """In plain JSON; the width of a linear head is null."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "width": self.width or None}


def grid(config: ProbeConfig, head: str) -> list[Setting]:
    """The settings of a single-task head, linear or mlp."""
    if head == "linear":
        return [Setting(lr, wd, 0) for lr, wd in product(config.learning_rates, config.weight_decays)]
    mlp = product(config.mlp_learning_rates, config.mlp_weight_decays, config.widths)
    return [Setting(lr, wd, width) for lr, wd, width in mlp]


def initial(width: int, inputs: int, outputs: int, settings: int, seeds: Sequence[int], device: torch.device) -> Heads:
    """Heads in setting-major order (head k has seed k % S), all settings of a seed with the same initial weights.

    Weights and biases are uniform in ±1/sqrt(fan-in), as in ``torch.nn.Linear``.
    """
    sizes = [(outputs, inputs)] if width == 0 else [(width, inputs), (outputs, width)]
    tensors: list[torch.Tensor] = []
    rngs = [np.random.Generator(np.random.PCG64([seed, 0x696E6974])) for seed in seeds]
    for size in sizes:
        bound = size[1] ** -0.5
        for shape in (size, size[:1]):
            draws = [rng.random(shape, dtype=np.float32) * np.float32(2 * bound) - np.float32(bound) for rng in rngs]
            of_seeds = torch.from_numpy(np.stack(draws)).to(device)
            tensors.append(of_seeds.repeat(settings, *[1] * len(shape)))
    return Heads(*tensors)


class Dropout:
    """Masks of the hidden layer, one for each seed and step; settings of one seed share them.

    A mask is one random byte for each unit, so that the drop probability is rounded to 1/256. The bytes come from the
    device that trains: a GPU's differ from a CPU's.
    """

    def __init__(self, probability: float, seeds: Sequence[int]) -> None:
        self.threshold = round(probability * 256)
        self.keep = 1.0 - self.threshold / 256
        self.seeds = seeds
        self.bits = [np.random.SFC64([seed, 0x64726F70]) for seed in seeds]
        self.generators: list[torch.Generator] = []

    def masks(self, width: int, batch: int, like: torch.Tensor) -> torch.Tensor | None:
        """1 where kept, else 0. Shape: (S, H, B), in the dtype and on the device of ``like``; None for no dropout."""
        if self.threshold == 0:
            return None
        count = width * batch
        raw = self.device_bytes(count, like.device) if like.is_cuda else self.host_bytes(count)
        return (raw >= self.threshold).view(len(self.seeds), width, batch).to(like.dtype)

    def host_bytes(self, count: int) -> torch.Tensor:
        """Random bytes of every seed, made several times faster than torch makes them on a CPU. Shape: (S, count)."""
        words = -(-count // 8)
        return torch.from_numpy(np.stack([bits.random_raw(words).view(np.uint8)[:count] for bits in self.bits]))

    def device_bytes(self, count: int, device: torch.device) -> torch.Tensor:
        """Random bytes of every seed, made by torch where they are used. Shape: (S, count)."""
        if not self.generators:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
        made = [torch.randint(256, (count,), generator=g, device=device, dtype=torch.uint8) for g in self.generators]
        return torch.stack(made)
