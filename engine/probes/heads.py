"""Settings of the grid, and their K = settings x seeds heads: initial weights, dropout masks, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.config import ProbeConfig
from substyle.kernels import memory
from substyle.kernels.probe_heads import Heads


@dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        width: hidden units H, 0 for a linear head.
        group: settings of one group compete; validation picks one of each.
        loss: weight of each part of the loss.
        score: weight of each part in the validation accuracy.
    """

    lr: float
    weight_decay: float
    width: int
    group: str = ""
    loss: tuple[float, ...] = (1.0,)
    score: tuple[float, ...] = (1.0,)

    def describe(self) -> dict[str, Any]:
        """In plain JSON; the width of a linear head is null."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "width": self.width or None}


def grid(config: ProbeConfig) -> list[Setting]:
    """The settings of a single-task MLP."""
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
            whole = memory.empty((settings, *of_seeds.shape), torch.float32, device).copy_(of_seeds)
            tensors.append(whole.flatten(0, 1))
    return Heads(*tensors)


class Dropout:
    """Masks of the hidden layer, one for each seed and step; settings of one seed share them.

    A mask is one random byte for each unit, so that the drop probability is rounded to 1/256. The bytes come from the
    device that trains: a GPU's differ from a CPU's. Steps that a GPU replays key them by seed and step instead
    (``kernels.dropout``) and take the threshold from here.
    """

    def __init__(self, probability: float, seeds: Sequence[int]) -> None:
        self.threshold = round(probability * 256)
        self.keep = 1.0 - self.threshold / 256
        self.seeds = seeds
        self.bits = [np.random.SFC64([seed, 0x64726F70]) for seed in seeds]
        self.generators: list[torch.Generator] = []

    def masks(self, out_SHB: torch.Tensor) -> None:
        """Draw the masks of a step: True where kept. Shape: (S, H, B) bool."""
        count = out_SHB[0].numel()
        if out_SHB.device.type == "cpu":
            for bits, own in zip(self.bits, out_SHB.view(len(self.seeds), count).numpy(), strict=True):
                np.greater_equal(host_bytes(bits, count), self.threshold, out=own)
        else:
            out_SHB.copy_((self.device_bytes(count, out_SHB.device) >= self.threshold).view(out_SHB.shape))

    def device_bytes(self, count: int, device: torch.device) -> torch.Tensor:
        """Random bytes of every seed, made by torch where they are used. Shape: (S, count)."""
        if not self.generators:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
        made = [torch.randint(256, (count,), generator=g, device=device, dtype=torch.uint8) for g in self.generators]
        return torch.stack(made)


def host_bytes(bits: np.random.SFC64, count: int) -> NDArray[np.uint8]:
    """Random bytes, made several times faster than torch makes them on a CPU. Shape: (count,)."""
    return bits.random_raw(-(-count // 8)).view(np.uint8)[:count]
