"""Trains a grid of settings x seeds at once on one stream of batches; validation picks the setting and the step.

Schedule: the learning rate rises linearly over the first twentieth of the steps and falls to zero as a cosine.
Pruning (successive halving, Jamieson & Talwalkar 2016): after each share of the steps in ``halving`` the worse half of
the settings of a group, by the seeds' mean validation accuracy so far, is dropped.
Early stopping: training ends when no setting left has improved for ``patience`` evaluations. Each setting keeps the
weights of its own best evaluation. Of equal accuracies the one with the lower validation loss is better, so that a
small validation split, where many are equal, does not favour the barely trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

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


@dataclass
class Trained:
    """The setting that validation picked in a group, and its training.

    Attributes:
        setting: the setting.
        parameters: its weights at its best evaluation; first axis S seeds.
        validation: mean over seeds of the deciding validation accuracy there.
        loss: mean over seeds of the validation loss there, which decides between equal accuracies.
        steps: optimiser steps taken up to there.
        improving: whether more steps might have helped, see :func:`still_improving`.
        curve: (step, deciding validation accuracy) of each evaluation.
    """

    setting: Setting
    parameters: list[torch.Tensor] = field(default_factory=list)
    validation: float = -1.0
    loss: float = math.inf
    steps: int = 0
    improving: bool = False
    curve: list[tuple[int, float]] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """The training fields of results.json."""
        return {
            "setting": self.setting.describe(),
            "validation": self.validation,
            "steps": self.steps,
            "improving": self.improving,
            "curve": [[s, a] for s, a in self.curve],
        }

    @property
    def rank(self) -> tuple[float, float]:
        """What the best has most of."""
        return self.validation, -self.loss

    @property
    def heads(self) -> Heads:
        """The trained heads, one for each seed."""
        return Heads(*self.parameters)


def learning_rate(done: int, steps: int) -> float:
    """Share of the peak learning rate in the step after ``done`` steps."""
    warm = max(1, round(_WARM_UP * steps))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def still_improving(curve: Sequence[tuple[int, float]], steps: int, rows: int) -> bool:
    """Whether a training of full length was still improving.

    It was if its last evaluation is more accurate than any before, or if its second half gained more than two
    standard errors of an accuracy over ``rows`` validation rows: as the learning rate falls to zero, a flat end proves
    nothing.
    """
    if len(curve) < 2 or curve[-1][0] < steps:
        return False
    first = max((a for step, a in curve if step <= steps / 2), default=curve[0][1])
    best = max(a for _, a in curve)
    error = math.sqrt(best * (1.0 - best) / rows)
    return curve[-1][1] > max(a for _, a in curve[:-1]) or best - first > 2.0 * error


def train(
    features: Features,
    parts: Sequence[Part],
    settings: Sequence[Setting],
    config: ProbeConfig,
    steps: int,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Trained]:
    """Train all settings with all seeds.

    Args:
        features: gathers the rows.
        parts: make up each batch and the loss.
        settings: the grid, of one or more groups.
        config: seeds, dropout, evaluations, patience, halving.
        steps: most optimiser steps.
        advance: told how many steps were taken, ``steps`` in total even if training ends early.

    Returns:
        the picked setting of each group.
    """
    seeds = [config.seed + i for i in range(config.seeds)]
    outputs = max(part.outputs.stop for part in parts)
    replayed = replays(features.device)
    make_bank, make_batches = (DeviceBank, DeviceBatches) if replayed else (Bank, Batches)
    banks: list[Bank] = [
        make_bank(own, features.width, outputs, seeds, config.dropout, features.device)
        for own in ([s for s in settings if s.width == width] for width in dict.fromkeys(s.width for s in settings))
    ]
    validation = [Validation(features, part, config) for part in parts]
    records = {s: Trained(s) for s in settings}
    alive = list(settings)
    evaluate_at = sorted(
        {round(steps * (i + 1) / config.evaluations) for i in range(config.evaluations)} - {0} | {steps}
    )
    halve_at = sorted({min((e for e in evaluate_at if e >= share * steps), default=steps) for share in config.halving})
    stale = 0
    done = 0
    at_once = AHEAD if replayed else _steps_at_once(features, parts, banks)
    with closing(make_batches(features, parts, at_once, steps)) as batches:
        while done < steps:
            ahead = min(at_once, next(e for e in evaluate_at if e > done) - done)
            block = batches.block([learning_rate(i, steps) for i in range(done, done + ahead)])
            for bank in banks:
                bank.learn(block, parts)
            done += len(block)
            advance(len(block))
            if done not in evaluate_at:
                continue
            improved = False
            for bank in banks:
                improved |= _evaluate(bank, validation, records, done)
            if done in halve_at and done < steps:
                alive = _better_half(alive, records)
                for bank in banks:
                    bank.keep(alive)
                banks = [bank for bank in banks if bank.settings]
            stale = 0 if improved else stale + 1
            if stale >= config.patience:
                break
    advance(steps - done)
    picked: dict[str, Trained] = {}
    for s in alive:
        record = records[s]
        record.improving = still_improving(record.curve, steps, min(len(v.answers) for v in validation))
        if s.group not in picked or record.rank > picked[s.group].rank:
            picked[s.group] = record
    return picked


def _steps_at_once(features: Features, parts: Sequence[Part], banks: Sequence[Bank]) -> int:
    """Steps that are prepared together: one, but for heads that train in turn as many as _BLOCK bytes hold."""
    if not any(bank.in_turn for bank in banks):
        return 1
    size = sum(part.count for part in parts)
    masks = sum(bank.width * bank.seeds for bank in banks if bank.dropout.threshold)
    return max(1, _BLOCK // (size * (features.width * features.dtype.itemsize + masks)))


def _evaluate(bank: Bank, validation: Sequence[Validation], records: dict[Setting, Trained], done: int) -> bool:
    judged = [v.judge_bank(bank, number) for number, v in enumerate(validation)]
    improved = False
    for g, setting in enumerate(bank.settings):
        own = slice(g * bank.seeds, (g + 1) * bank.seeds)
        accuracy = sum(w * float(a[own].mean()) for w, (a, _) in zip(setting.score, judged, strict=True))
        loss = sum(w * float(v[own].mean()) for w, (_, v) in zip(setting.score, judged, strict=True) if w > 0)
        record = records[setting]
        record.curve.append((done, accuracy))
        if (accuracy, -loss) > record.rank:
            record.validation, record.loss, record.steps, improved = accuracy, loss, done, True
            record.parameters = bank.parameters(g, record.parameters)
    return improved


def _better_half(alive: Sequence[Setting], records: dict[Setting, Trained]) -> list[Setting]:
    kept: list[Setting] = []
    for group in dict.fromkeys(s.group for s in alive):
        rivals = [s for s in alive if s.group == group]
        rivals.sort(key=lambda s: records[s].rank, reverse=True)
        kept += rivals[: -(-len(rivals) // 2)]
    return [s for s in alive if s in kept]
