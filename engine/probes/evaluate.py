"""Scores of heads on test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from substyle.engine.probes.batches import Features
from substyle.engine.probes.tasks import UNKNOWN, Task
from substyle.errors import SubstyleError
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import forward

_ROWS, _WIDE = 4096, 1 << 24  # rows and numbers at once


@dataclass(frozen=True)
class Scores:
    """Test scores of S seeds of one setting.

    Attributes:
        right_STN: 1 right, 0 wrong, NaN not scored.
        confusion_CC: counts, rows true, columns predicted, summed over seeds; unknown labels are excluded. Sparse:
            of many classes most pairs never occur.
        labels: labels of the confusion matrix.
    """

    right_STN: NDArray[np.float32]
    confusion_CC: csr_array
    labels: tuple[str, ...]

    @property
    def mean_TN(self) -> NDArray[np.float32]:
        """Fraction of seeds that are right, NaN if not scored. Shape: (T, N)."""
        return np.asarray(self.right_STN.mean(axis=0), np.float32)

    @property
    def accuracy_ST(self) -> NDArray[np.float32]:
        """Accuracy of each seed on each transformation, NaN if not scored. Shape: (S, T)."""
        known_T = np.isfinite(self.right_STN[0]).sum(axis=1)
        total_ST = np.nansum(self.right_STN, axis=2)
        return np.asarray(np.where(known_T > 0, total_ST / np.maximum(known_T, 1), np.nan), np.float32)

    def confusion(self) -> dict[str, Any]:
        """The confusion matrix as JSON."""
        return {"labels": list(self.labels), "counts": self.confusion_CC.toarray().tolist()}


def score(features: Features, task: Task, heads: Heads, images: NDArray[np.int64]) -> Scores:
    """Score K = S heads on the test rows of a task; ``images`` must contain the task's test images.

    Raises:
        SubstyleError: logits are not finite, since embeddings are not, or since a head has diverged.
    """
    if len(heads.layers) == 1:  # float32, since rounding would directly affect the logits
        features = features.full()
    seeds, classes = len(heads), len(task.labels)
    right = np.full((seeds, features.variants, len(images)), np.nan, np.float32)
    confusion_CC = csr_array((classes, classes), dtype=np.int64)
    t, n = task.rows(task.score_T, task.test_N)
    place = np.searchsorted(images, n)
    size = max(1, min(_ROWS, _WIDE // features.width))
    for start in range(0, len(t), size):
        here = slice(start, start + size)
        x_BD = features(t[here], n[here])
        logits_KCB = forward(heads, x_BD)[:, task.outputs]
        if not bool(logits_KCB.isfinite().all()):  # argmax would name a class all the same
            table = features.held.table
            if not bool(x_BD.isfinite().all()):
                raise table.not_finite()
            raise SubstyleError(f"a probe of {table.backbone} ({task.name}) has diverged: its logits are not finite")
        predicted_SB = logits_KCB.argmax(1).cpu().numpy()
        answers = task.answers(t[here], n[here])
        right[:, t[here], place[here]] = predicted_SB == answers
        known = answers != UNKNOWN
        pairs = np.tile(answers[known], seeds), predicted_SB[:, known].ravel()
        confusion_CC += coo_array((np.ones(len(pairs[0]), np.int64), pairs), confusion_CC.shape)
    return Scores(right, confusion_CC, task.labels)
