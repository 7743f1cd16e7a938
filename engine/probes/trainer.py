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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.heads import Dropout, Setting, initial
from substyle.engine.probes.sampling import Stream
from substyle.engine.probes.tasks import Task
from substyle.kernels.errors import SubstyleError
from substyle.kernels.probe_step import Heads, Term, forward, step

_WARM_UP = 0.05


@dataclass(frozen=True)
class Part:
    """Rows of each batch that one loss is computed on, and the outputs it is computed for.

    Attributes:
        task: what the rows are asked.
        stream: where they come from.
        count: how many of them are in a batch.
        outputs: the outputs of the head that answer.
    """

    task: Task
    stream: Stream
    count: int
    outputs: slice


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


@dataclass
class _Bank:
    """The heads of one width; they share each GEMM."""

    settings: list[Setting]
    heads: Heads
    dropout: Dropout

    def keep(self, settings: Sequence[Setting], seeds: int) -> None:
        chosen = [g for g, s in enumerate(self.settings) if s in settings]
        if len(chosen) < len(self.settings):
            self.heads = self.heads.select([g * seeds + i for g in chosen for i in range(seeds)])
            self.settings = [self.settings[g] for g in chosen]


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
    width_in = features.x_TND.shape[2]
    banks = [
        _Bank(own, initial(width, width_in, outputs, len(own), seeds, features.device), Dropout(config.dropout, seeds))
        for width in dict.fromkeys(s.width for s in settings)
        if (own := [s for s in settings if s.width == width])
    ]
    validation = [_Validation(features, part, config) for part in parts]
    records = {s: Trained(s) for s in settings}
    alive = list(settings)
    evaluate_at = sorted(
        {round(steps * (i + 1) / config.evaluations) for i in range(config.evaluations)} - {0} | {steps}
    )
    halve_at = sorted({min((e for e in evaluate_at if e >= share * steps), default=steps) for share in config.halving})
    stale = 0
    done = 0
    while done < steps:
        _step(features, parts, banks, config.seeds, learning_rate(done, steps))
        done += 1
        advance(1)
        if done not in evaluate_at:
            continue
        improved = False
        for bank in banks:
            improved |= _evaluate(bank, validation, records, config.seeds, done)
        if done in halve_at and done < steps:
            alive = _better_half(alive, records)
            for bank in banks:
                bank.keep(alive, config.seeds)
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


def _step(features: Features, parts: Sequence[Part], banks: Sequence[_Bank], seeds: int, rate: float) -> None:
    rows = [part.stream.batch(part.count) for part in parts]
    x_BD = features(np.concatenate([t for t, _ in rows]), np.concatenate([n for _, n in rows]))
    starts = np.cumsum([0, *(part.count for part in parts)])
    targets = [torch.from_numpy(p.task.answers(t, n)).to(x_BD.device) for p, (t, n) in zip(parts, rows, strict=True)]
    for bank in banks:
        terms = []
        for i, part in enumerate(parts):
            scale = None
            if len(parts) > 1:
                scale = torch.tensor([s.loss[i] for s in bank.settings for _ in range(seeds)], device=x_BD.device)
            terms.append(Term(targets[i], slice(int(starts[i]), int(starts[i + 1])), part.outputs, scale))
        width = bank.settings[0].width
        kept = bank.dropout.masks(width, len(x_BD), x_BD) if width else None
        lr_K = [s.lr * rate for s in bank.settings for _ in range(seeds)]
        decay_K = [s.weight_decay for s in bank.settings for _ in range(seeds)]
        step(bank.heads, x_BD, terms, lr_K, decay_K, kept_SHB=kept, keep=bank.dropout.keep)


class _Validation:
    """A fixed sample of validation rows; answers count so that every label that occurs has the same weight."""

    def __init__(self, features: Features, part: Part, config: ProbeConfig) -> None:
        task = part.task
        t, n = task.sample(task.val_N, config.validation_rows, np.random.default_rng([config.seed, 0x726F7773]))
        if len(t) == 0:
            raise SubstyleError(
                f"no validation row for the {task.name} task: every variant is indistinct from identity"
            )
        answers = task.answers(t, n)
        weight = np.ones(len(t))
        if task.name == "coarse":
            weight = 1.0 / np.bincount(answers)[answers]
        self.x_BD = features(t, n)
        self.outputs = part.outputs
        self.answers = torch.from_numpy(answers).to(features.device)
        self.weight = torch.from_numpy(weight / weight.sum()).to(features.device)

    def judge(self, heads: Heads) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Accuracy and cross-entropy of each head. Shapes: (K,), (K,)."""
        logits_KCB = forward(heads, self.x_BD)[:, self.outputs]
        right_KB = (logits_KCB.argmax(1) == self.answers).double()
        loss_KB = -logits_KCB.log_softmax(1).gather(1, self.answers.expand(len(heads), 1, -1))[:, 0].double()
        accuracy_K, loss_K = ((v @ self.weight).cpu().numpy() for v in (right_KB, loss_KB))
        return np.minimum(accuracy_K, 1.0), loss_K


def _evaluate(
    bank: _Bank, validation: Sequence[_Validation], records: dict[Setting, Trained], seeds: int, done: int
) -> bool:
    judged = [v.judge(bank.heads) for v in validation]
    improved = False
    for g, setting in enumerate(bank.settings):
        own = slice(g * seeds, (g + 1) * seeds)
        accuracy = sum(w * float(a[own].mean()) for w, (a, _) in zip(setting.score, judged, strict=True))
        loss = sum(w * float(v[own].mean()) for w, (_, v) in zip(setting.score, judged, strict=True) if w > 0)
        record = records[setting]
        record.curve.append((done, accuracy))
        if (accuracy, -loss) > record.rank:
            record.validation, record.loss, record.steps, improved = accuracy, loss, done, True
            record.parameters = [p[own].clone() for p in bank.heads.parameters]
    return improved


def _better_half(alive: Sequence[Setting], records: dict[Setting, Trained]) -> list[Setting]:
    kept: list[Setting] = []
    for group in dict.fromkeys(s.group for s in alive):
        rivals = [s for s in alive if s.group == group]
        rivals.sort(key=lambda s: records[s].rank, reverse=True)
        kept += rivals[: -(-len(rivals) // 2)]
    return [s for s in alive if s in kept]
