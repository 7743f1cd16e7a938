"""Trains a grid of MLPs at once on one stream of batches; validation picks the setting.

Schedule: the learning rate rises linearly over the first twentieth of the steps and falls to zero as a cosine. The
weights are those at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from substyle.engine.probes.bank import Bank
from substyle.engine.probes.batches import Batches, Part
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.replay import DeviceBank, replays
from substyle.engine.probes.script import AHEAD, DeviceBatches
from substyle.engine.probes.validation import Validation
from substyle.kernels.probe_heads import Heads

_WARM_UP = 0.05
_BLOCK = 64 << 20  # bytes of features and dropout masks that are prepared together


@dataclass(frozen=True)
class Trained:
    """A setting and what its training gave.

    Attributes:
        setting: the setting.
        heads: the trained heads, one for each seed.
        validation: deciding validation accuracy, mean over seeds.
        loss: validation loss, mean over seeds, of the parts weighted as in training.
        steps: optimiser steps.
    """

    setting: Setting
    heads: Heads
    validation: float
    loss: float
    steps: int

    def describe(self) -> dict[str, Any]:
        """The training fields of results.json."""
        return {"setting": self.setting.describe(), "validation": self.validation, "steps": self.steps}


def learning_rate(done: int, steps: int) -> float:
    """Share of the peak learning rate in the step after ``done`` steps."""
    warm = max(1, round(_WARM_UP * steps))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def train(
    features: Features,
    parts: Sequence[Part],
    settings: Sequence[Setting],
    config: ProbeConfig,
    steps: int,
    *,
    seeds: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[Setting, Trained]:
    """Train all settings with all seeds.

    Args:
        features: gathers the rows.
        parts: make up each batch and the loss.
        settings: the grid.
        config: dropout and validation rows.
        steps: optimiser steps.
        seeds: of initial weights and dropout; the configuration's alone where none are given.
        advance: takes the number of steps made.
    """
    seeds = [config.seed] if seeds is None else seeds
    outputs = max(part.outputs.stop for part in parts)
    replayed = replays(features.device)
    make_bank, make_batches = (DeviceBank, DeviceBatches) if replayed else (Bank, Batches)
    banks: list[Bank] = [
        make_bank(own, features.width, outputs, seeds, config.dropout, features.device)
        for own in ([s for s in settings if s.width == width] for width in dict.fromkeys(s.width for s in settings))
    ]
    validation = [Validation(features, part.task, part.outputs, config) for part in parts]
    done = 0
    at_once = AHEAD if replayed else _steps_at_once(features, parts, banks)
    with closing(make_batches(features, parts, at_once, steps)) as batches:
        while done < steps:
            ahead = min(at_once, steps - done)
            block = batches.block([learning_rate(i, steps) for i in range(done, done + ahead)])
            for bank in banks:
                bank.learn(block, parts)
            done += len(block)
            advance(len(block))
    return {s: trained for bank in banks for s, trained in _evaluated(bank, validation, steps)}


def _steps_at_once(features: Features, parts: Sequence[Part], banks: Sequence[Bank]) -> int:
    """Steps that are prepared together: one, but for heads that train in turn as many as _BLOCK bytes hold."""
    if not any(bank.in_turn for bank in banks):
        return 1
    size = sum(part.count for part in parts)
    masks = sum(bank.width * bank.seeds for bank in banks if bank.dropout.threshold)
    return max(1, _BLOCK // (size * (features.width * features.dtype.itemsize + masks)))


def _evaluated(bank: Bank, validation: Sequence[Validation], steps: int) -> list[tuple[Setting, Trained]]:
    judged = [v.judge_bank(bank, number) for number, v in enumerate(validation)]
    found = []
    for g, setting in enumerate(bank.settings):
        own = slice(g * bank.seeds, (g + 1) * bank.seeds)
        accuracy = sum(w * float(a[own].mean()) for w, (a, _) in zip(setting.score, judged, strict=True))
        loss = sum(w * float(v[own].mean()) for w, (_, v) in zip(setting.loss, judged, strict=True) if w > 0)
        found.append((setting, Trained(setting, Heads(*bank.parameters(g)), accuracy, loss, steps)))
    return found
