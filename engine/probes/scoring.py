"""Scores trained heads on the test images, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.features import Features
from substyle.engine.probes.tasks import UNKNOWN, Task
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import forward

_ROWS = 4096


@dataclass(frozen=True)
class Scores:
    """What S seeds of one setting get right.

    Attributes:
        right_STN: 1 right, 0 wrong, NaN not scored; N are the images asked for, in their order.
        confusion_CC: rows true, columns predicted, summed over seeds; rows whose answer is no label are left out.
        labels: of the confusion.
    """

    right_STN: NDArray[np.float32]
    confusion_CC: NDArray[np.int64]
    labels: tuple[str, ...]

    @property
    def mean_TN(self) -> NDArray[np.float32]:
        """Share of seeds that are right. Shape: (T, N), NaN where not scored."""
        return np.asarray(self.right_STN.mean(axis=0), np.float32)

    @property
    def accuracy_ST(self) -> NDArray[np.float32]:
        """Accuracy of each seed on each transformation, NaN where none of its rows is scored. Shape: (S, T)."""
        known_T = np.isfinite(self.right_STN[0]).sum(axis=1)
        total_ST = np.nansum(self.right_STN, axis=2)
        return np.asarray(np.where(known_T > 0, total_ST / np.maximum(known_T, 1), np.nan), np.float32)

    def confusion(self) -> dict[str, Any]:
        """In plain JSON."""
        return {"labels": list(self.labels), "counts": self.confusion_CC.tolist()}


def score(features: Features, task: Task, outputs: slice, heads: Heads, images: NDArray[np.int64]) -> Scores:
    """Score K = S heads on the test rows of a task that count; ``images`` contain the task's test images."""
    if heads.w2 is None:  # a small GEMM, and the only one whose rounding reaches the logits unhidden
        features = features.full()
    seeds, classes = len(heads), len(task.labels)
    right = np.full((seeds, features.variants, len(images)), np.nan, np.float32)
    confusion = np.zeros(classes * classes, np.int64)
    t, n = task.rows(task.score_T, task.test_N)
    place = np.searchsorted(images, n)
    for start in range(0, len(t), _ROWS):
        here = slice(start, start + _ROWS)
        logits_KCB = forward(heads, features(t[here], n[here]))[:, outputs]
        predicted_SB = logits_KCB.argmax(1).cpu().numpy()
        answers = task.answers(t[here], n[here])
        right[:, t[here], place[here]] = predicted_SB == answers
        known = answers != UNKNOWN
        cells = answers[known] * classes + predicted_SB[:, known]
        confusion += np.bincount(cells.ravel(), minlength=classes * classes)
    return Scores(right, confusion.reshape(classes, classes), task.labels)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the GEMMs in training: "auto" is bfloat16 on GPUs and on CPUs that multiply it natively.

    Weights, moments and losses are float32 in any case, and linear heads are scored in float32.
    """
    if precision == "auto":
        fast = device.type == "cuda" or cpu_has_bf16()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 dot products (AVX512-BF16 or AMX), as Linux lists its features."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(name in flags.split() for name in ("avx512_bf16", "amx_bf16", "bf16"))
