"""Training of a grid of MLPs on one stream of batches, and validation.

The learning rate rises linearly over the first twentieth of the steps and then decays to zero as a cosine. The final
weights are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from substyle.engine.probes.batches import AHEAD, Batches, BatchPart, Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.heads import HeadBank, Setting
from substyle.engine.probes.tasks import F64, I64, UNKNOWN, Advance, Task
from substyle.errors import SubstyleError
from substyle.kernels.dispatch import threads, threads_for
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import forward, judge

_PIECE, _WIDE = 4096, 1 << 24  # rows and numbers per block, to bound the memory of logits and rows
_HELD = 1 << 26  # numbers of validation rows that are kept
AGREEMENT = 0.005  # maximum difference in accuracy of two trainings that agree


class Validation:
    """A fixed sample of validation rows; in kind tasks all classes are weighted equally."""

    def __init__(self, features: Features, task: Task, config: ProbeConfig) -> None:
        t, n = task.sample(task.val_N, config.validation_rows, np.random.default_rng([config.seed, 0x726F7773]))
        answers = task.answers(t, n)
        known = answers != UNKNOWN  # the class has training photographs
        t, n, answers = t[known], n[known], answers[known]
        if len(t) == 0:
            raise SubstyleError(
                f"no validation rows for the {task.name} task: all variants are indistinct from identity, or no class "
                "of the validation photographs has training photographs"
            )
        weight = row_weights(task, answers)
        self.features, self.t_B, self.n_B = features, t, n
        few = len(t) * features.width <= _HELD  # others are gathered again for each validation
        self.x_BD = features(t, n) if few else None
        self.outputs = task.outputs
        self.answers = torch.from_numpy(answers).to(features.device)
        self.weight = torch.from_numpy(weight / weight.sum()).to(features.device)

    def rows(self) -> Iterator[torch.Tensor]:
        """Rows (B, D) in blocks."""
        return (x_BD for _, x_BD in self._blocks())

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows in blocks that bound the memory of logits and gathered rows."""
        size = max(1, min(_PIECE, _WIDE // self.features.width))
        for start in range(0, len(self.t_B), size):
            own = slice(start, start + size)
            yield own, self.features(self.t_B[own], self.n_B[own]) if self.x_BD is None else self.x_BD[own]

    def judge(self, heads: Heads) -> tuple[F64, F64]:
        """Accuracy and cross-entropy of each head. Shapes: (K,), (K,)."""
        accuracy_K, loss_K = self.totals(heads).cpu().numpy()
        return np.minimum(accuracy_K, 1.0), loss_K

    def totals(self, heads: Heads) -> torch.Tensor:
        """Accuracy and cross-entropy of each head, as a tensor on the device. Shape: (2, K)."""
        total = torch.zeros(2, len(heads), dtype=torch.float64, device=self.features.device)
        for own, x_BD in self._blocks():
            total += torch.stack(judge(heads, x_BD, self.answers[own], self.weight[own], self.outputs))
        return total

    def right(self, heads: Heads) -> torch.Tensor:
        """Whether each head is right on each row. Shape: (K, B) bool."""
        picked_KB = torch.cat([forward(heads, x_BD)[:, self.outputs].argmax(1) for _, x_BD in self._blocks()], 1)
        return picked_KB == self.answers

    def difference(self, a: Heads, b: Heads, within: float = AGREEMENT) -> tuple[float, bool]:
        """Accuracy of a minus that of b, and whether they agree.

        They agree if the difference is at most ``within`` or, with few rows, one standard error of the paired
        difference, but at most one point.
        """
        gain_KB = self.right(a).double() - self.right(b).double()
        gain_B = (gain_KB * self.weight).mean(0)
        difference = float(gain_B.sum())
        return difference, abs(difference) <= min(max(within, float(gain_B.square().sum().sqrt())), 2 * AGREEMENT)

    def judge_bank(self, bank: HeadBank, number: int = 0) -> tuple[F64, F64]:
        """Accuracy and cross-entropy of each head of a bank, in its order.

        Args:
            number: index of the validation within the training, for banks that replay it.
        """
        accuracy_K, loss_K = bank.judged(number, self.totals)
        return np.minimum(accuracy_K, 1.0), loss_K


def row_weights(task: Task, answer_B: I64) -> F64:
    """Weights of rows with known labels: equal, in kind tasks for all kinds. Shape: (B,)."""
    if task.name == "kind":
        return np.asarray(1.0 / np.bincount(answer_B)[answer_B])
    return np.ones(len(answer_B))


def agreement_rows(features: Features, task: Task, config: ProbeConfig) -> list[Validation]:
    """Validation rows on which two trainings must agree: of training transformations, and of other scored ones."""
    others = np.setdiff1d(task.score_T, task.train_T)
    kinds = [task.train_T, others] if task.distinct_TN[np.ix_(others, task.val_N)].any() else [task.train_T]
    return [Validation(features, replace(task, train_T=kind), config) for kind in kinds]


def compare(agreement: Sequence[Validation], a: Heads, b: Heads, within: float = AGREEMENT) -> tuple[float, bool]:
    """Largest difference in accuracy of a and b over validation sets, and whether they agree on all."""
    differences, agreed = zip(*(v.difference(a, b, within) for v in agreement), strict=True)
    return max(differences, key=abs), all(agreed)


_WARM_UP = 0.05
# Smallest change of the loss by a training, relative to it, and what twice the steps may change it by, relative to half
_MOVED, _MOST = 1e-3, 1.5
_BLOCK = 64 << 20  # bytes of features and dropout masks per block


@dataclass(frozen=True)
class Trained:
    """A trained setting.

    Attributes:
        heads: trained heads, one per seed.
        validation: validation accuracy, weighted by ``setting.score``, mean over seeds.
        loss: validation loss, weighted as in training, mean over seeds; infinite if it is not a number.
        untrained: that of the initial weights.
    """

    setting: Setting
    heads: Heads
    validation: float
    loss: float
    steps: int
    untrained: float

    def arrived(self, half: Trained) -> bool:
        """Whether the loss has left that of the initial weights, and half of the steps have covered most of the way.

        Where the learning rate is too small, twice the steps go twice as far, but accuracies need not differ.
        """
        fallen, by_half = self.untrained - self.loss, half.untrained - half.loss
        return _MOVED * self.loss < abs(fallen) < math.inf and fallen < _MOST * abs(by_half)

    def describe(self) -> dict[str, Any]:
        """Training fields of results.json."""
        return {"setting": self.setting.describe(), "validation": self.validation, "steps": self.steps}


def learning_rate(done: int, steps: int, warm_up: int | None = None) -> float:
    """Learning rate after ``done`` steps, relative to its peak, which follows ``warm_up`` steps (a twentieth)."""
    warm = max(1, round(_WARM_UP * steps)) if warm_up is None else warm_up
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def train(
    features: Features,
    parts: Sequence[BatchPart],
    settings: Sequence[Setting],
    config: ProbeConfig,
    steps: int,
    *,
    seeds: Sequence[int] | None = None,
    advance: Advance = lambda count: None,
) -> dict[Setting, Trained]:
    """Train all settings with all seeds.

    Args:
        parts: parts of each batch and of the loss.
        seeds: seeds of initial weights and dropout; default: the configured seed.
    """
    seeds = [config.seed] if seeds is None else seeds
    outputs = max(part.task.outputs.stop for part in parts)
    shapes = dict.fromkeys((s.width, s.depth) for s in settings)
    alike = [[s for s in settings if (s.width, s.depth) == shape] for shape in shapes]
    banks = [own[0].bank(own, features, outputs, seeds, config.expert.dropout) for own in alike]
    validation = [Validation(features, part.task, config) for part in parts]
    untrained = [_evaluated(bank, validation) for bank in banks]
    gathered = not any(bank.replayed for bank in banks)
    at_once = _steps_at_once(features, parts, banks, gathered)
    size = sum(part.count for part in parts)
    largest = max(sum(p.numel() for p in bank.pieces[0].parameters) for bank in banks)
    with (
        threads(threads_for(size * largest, features.device)),
        closing(Batches(features, parts, at_once, steps, gathered=gathered)) as batches,
    ):
        while batches.taken < steps:
            ahead = range(batches.taken, min(batches.taken + at_once, steps))
            block = batches.block([learning_rate(step, steps) for step in ahead])
            for bank in banks:
                bank.learn(block, parts)
            advance(len(block))
    return {
        s: Trained(s, bank.pieces[0].like(bank.parameters(g)), accuracy, loss, steps, before[g][1])
        for bank, before in zip(banks, untrained, strict=True)
        for g, (s, (accuracy, loss)) in enumerate(zip(bank.settings, _evaluated(bank, validation), strict=True))
    }


def _steps_at_once(features: Features, parts: Sequence[BatchPart], banks: Sequence[HeadBank], gathered: bool) -> int:
    """Steps per block: one, or as many as fit into _BLOCK bytes for heads that train in blocks."""
    if not any(bank.in_blocks for bank in banks):
        return 1
    size = sum(part.count for part in parts)
    masks = sum(bank.hidden * len(bank.seeds) for bank in banks if bank.threshold)
    if gathered:
        return max(1, _BLOCK // (size * (features.width * features.dtype.itemsize + masks)))
    return max(1, min(AHEAD, _BLOCK // (size * max(masks, 1))))


def _evaluated(bank: HeadBank, validation: Sequence[Validation]) -> list[tuple[float, float]]:
    """Accuracy and loss of each setting, mean over seeds."""
    judged = [v.judge_bank(bank, number) for number, v in enumerate(validation)]
    found = []
    for g, setting in enumerate(bank.settings):
        own = slice(g * len(bank.seeds), (g + 1) * len(bank.seeds))
        accuracy = sum(w * float(a[own].mean()) for w, (a, _) in zip(setting.score, judged, strict=True))
        loss = sum(w * float(v[own].mean()) for w, (_, v) in zip(setting.loss, judged, strict=True) if w > 0)
        found.append((accuracy, math.inf if math.isnan(loss) else loss))
    return found
