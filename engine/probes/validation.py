"""Scores heads on validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.bank import Bank
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.replay import DeviceBank
from substyle.engine.probes.tasks import UNKNOWN, Task
from substyle.kernels.errors import SubstyleError
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import forward, judge

F64 = NDArray[np.float64]
_PIECE = 4096  # rows that are judged at once, which bounds the logits in memory
AGREEMENT = 0.005  # by which the accuracies of two trainings may differ


class Validation:
    """A fixed sample of validation rows; answers count so that every label that occurs has the same weight."""

    def __init__(self, features: Features, task: Task, outputs: slice, config: ProbeConfig) -> None:
        t, n = task.sample(task.val_N, config.validation_rows, np.random.default_rng([config.seed, 0x726F7773]))
        answers = task.answers(t, n)
        known = answers != UNKNOWN  # of a class without a training photograph
        t, n, answers = t[known], n[known], answers[known]
        if len(t) == 0:
            raise SubstyleError(
                f"no validation row for the {task.name} task: every variant is indistinct from identity, or every "
                "class is without training photographs"
            )
        weight = np.ones(len(t))
        if task.name == "coarse":
            weight = 1.0 / np.bincount(answers)[answers]
        self.x_BD = features(t, n)
        self.outputs = outputs
        self.answers = torch.from_numpy(answers).to(features.device)
        self.weight = torch.from_numpy(weight / weight.sum()).to(features.device)

    def judge(self, heads: Heads) -> tuple[F64, F64]:
        """Accuracy and cross-entropy of each head. Shapes: (K,), (K,)."""
        accuracy_K, loss_K = self.totals(heads).cpu().numpy()
        return np.minimum(accuracy_K, 1.0), loss_K

    def totals(self, heads: Heads) -> torch.Tensor:
        """Accuracy and cross-entropy of each head, summed over pieces of the rows where they are. Shape: (2, K)."""
        total = torch.zeros(2, len(heads), dtype=torch.float64, device=self.x_BD.device)
        for start in range(0, len(self.x_BD), _PIECE):
            own = slice(start, start + _PIECE)
            total += torch.stack(judge(heads, self.x_BD[own], self.answers[own], self.weight[own], self.outputs))
        return total

    def right(self, heads: Heads) -> torch.Tensor:
        """Which rows each head gets right. Shape: (K, B) bool."""
        pieces = torch.split(self.x_BD, _PIECE)
        picked_KB = torch.cat([forward(heads, x_BD)[:, self.outputs].argmax(1) for x_BD in pieces], 1)
        return picked_KB == self.answers

    def difference(self, a: Heads, b: Heads) -> tuple[float, bool]:
        """Accuracy of a minus that of b, and whether they agree.

        They do where the difference is at most half a point; on few rows, which cannot tell half a point, one standard
        error of the paired difference, but never more than a point.
        """
        gain_KB = self.right(a).double() - self.right(b).double()
        gain_B = (gain_KB * self.weight).mean(0)
        difference = float(gain_B.sum())
        return difference, abs(difference) <= min(max(AGREEMENT, float(gain_B.square().sum().sqrt())), 2 * AGREEMENT)

    def judge_bank(self, bank: Bank, number: int = 0) -> tuple[F64, F64]:
        """Accuracy and cross-entropy of each head of a bank, in its order.

        Args:
            number: which of a training's validations this is, for a bank that replays them.
        """
        if isinstance(bank, DeviceBank):
            accuracy_K, loss_K = bank.judged(number, self.totals)
            return np.minimum(accuracy_K, 1.0), loss_K
        accuracies, losses = zip(*(self.judge(piece) for piece in bank.pieces), strict=True)
        return np.concatenate(accuracies), np.concatenate(losses)


def asked(features: Features, task: Task, outputs: slice, config: ProbeConfig) -> list[Validation]:
    """Validation rows on which two trainings must agree: of what is learned, and of what else is scored."""
    others = np.setdiff1d(task.score_T, task.train_T)
    kinds = [task.train_T, others] if task.distinct_TN[np.ix_(others, task.val_N)].any() else [task.train_T]
    return [Validation(features, replace(task, train_T=kind), outputs, config) for kind in kinds]


def compare(asked: Sequence[Validation], a: Heads, b: Heads) -> tuple[float, bool]:
    """The largest difference in accuracy of a and b on some validation rows, and whether they agree on all of them."""
    differences, agreed = zip(*(v.difference(a, b) for v in asked), strict=True)
    return max(differences, key=abs), all(agreed)
