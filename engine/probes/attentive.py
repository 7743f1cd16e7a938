"""Attentive and efficient probes of tokens: grids and initial heads. See :mod:`substyle.kernels.attention_heads`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.heads import Dropout, HeadBank, Setting
from substyle.kernels import dispatch
from substyle.kernels.attention_heads import AttentionHeads

ATTENTIVE, EFFICIENT = "attentive", "efficient"
_QUERY_STD = 0.02  # of initial queries, as in AIM and efficient probing


def settings(config: ProbeConfig, head: str, width: int) -> list[Setting]:
    """The grid of a head on tokens of width D. G is the largest divisor of D up to the configured number."""
    most = config.queries if head == EFFICIENT else config.attention_heads
    groups = max(g for g in range(1, min(most, width) + 1) if width % g == 0)
    each = product(config.attentive_learning_rates, config.attentive_weight_decays)
    return [replace(Setting(lr, decay, 0), kind=head, groups=groups) for lr, decay in each]


def shapes(kind: str, groups: int, width: int, outputs: int) -> list[tuple[int, ...]]:
    """Shapes of the parameters of a head with G groups on tokens of width D."""
    query, squares = ((groups, width), 1) if kind == EFFICIENT else ((width,), 2)
    return [query, *([(width, width)] * squares), (outputs, width), (outputs,)]


def initial(
    setting: Setting, inputs: int, tokens: int, outputs: int, settings: int, seeds: Sequence[int], device: torch.device
) -> AttentionHeads:
    """Initialise heads in setting-major order (head k has seed k % S); weights depend only on the seed.

    Queries are normal with standard deviation 0.02, so that attention begins almost uniform; keys, values and the
    classifier are uniform in ±1/sqrt(D), as in ``torch.nn.Linear``.

    Args:
        inputs: P · D.
        tokens: P.
        settings: number of settings.
    """
    width = inputs // tokens
    rngs = [np.random.Generator(np.random.PCG64([seed, 0x61747465])) for seed in seeds]
    bound = width**-0.5
    tensors = []
    for place, shape in enumerate(shapes(setting.kind, setting.groups, width, outputs)):
        draws = [
            rng.standard_normal(shape, dtype=np.float32) * np.float32(_QUERY_STD)
            if place == 0
            else rng.random(shape, dtype=np.float32) * np.float32(2 * bound) - np.float32(bound)
            for rng in rngs
        ]
        of_seeds = torch.from_numpy(np.stack(draws)).to(device)
        whole = dispatch.empty((settings, *of_seeds.shape), torch.float32, device).copy_(of_seeds)
        tensors.append(whole.flatten(0, 1))
    return AttentionHeads(*tensors, tokens=tokens, groups=setting.groups)


class AttentionBank(HeadBank):
    """The heads of settings of one kind with all seeds, setting-major, trained together without captured steps."""

    def __init__(
        self,
        settings: Sequence[Setting],
        inputs: int,
        tokens: int,
        outputs: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.settings, self.seeds, self.width, self.depth, self.in_turn = list(settings), len(seeds), 0, 1, False
        self.dropout, self.lessons = Dropout(0.0, seeds), []
        self.pieces = [initial(settings[0], inputs, tokens, outputs, len(settings), seeds, device)]
