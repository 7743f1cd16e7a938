"""Temperatures that make a probe's probabilities match its accuracy, and the error that remains.

Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.tasks import Task
from substyle.engine.probes.trainer import Validation, row_weights
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import forward

TEMPERATURES = (0.05, 20.0)  # the range of a fitted one
BINS = 15
_ROWS, _WIDE = 4096, 1 << 24  # rows and numbers at once


def calibrate(features: Features, task: Task, heads: Heads, config: ProbeConfig) -> dict[str, Any]:
    """Fit the temperature of a head's output for a task, and measure what it changes.

    The temperature is fitted to the validation photographs. These have also chosen the setting, which makes the head
    look slightly better on them than it is; the errors are of test photographs, which have chosen nothing. Rows are
    those that a probe is trained on: training transformations, for classes the originals, with all kinds weighted
    equally.

    Returns:
        ``temperature``, and the expected calibration error with (``ece``) and without it (``ece_before``), in [0, 1];
        the errors are None without test rows.
    """
    full = features.full()
    validation = Validation(full, task, config)
    log_p_CB = log_probabilities(torch.cat([forward(heads, x_BD)[:, task.outputs] for x_BD in validation.rows()], 2))
    temperature = fit_temperature(log_p_CB, validation.answers, validation.weight)
    t, n = task.rows(task.train_T, task.test_N)
    if len(t) == 0:
        return {"temperature": temperature, "ece": None, "ece_before": None}
    size = max(1, min(_ROWS, _WIDE // max(features.width, len(task.labels))))
    right, confidence = [], []
    answers = task.answers(t, n)
    for start in range(0, len(t), size):
        own = slice(start, start + size)
        log_p_CB = log_probabilities(forward(heads, full(t[own], n[own]))[:, task.outputs])
        right.append(log_p_CB.argmax(0).cpu().numpy() == answers[own])
        each = [at_temperature(log_p_CB, value).amax(0).cpu().numpy() for value in (temperature, 1.0)]
        confidence.append(np.stack(each))
    right_B, (after_B, before_B) = np.concatenate(right), np.concatenate(confidence, axis=1)
    weight_B = row_weights(task, answers)
    return {
        "temperature": temperature,
        "ece": calibration_error(after_B, right_B, weight_B),
        "ece_before": calibration_error(before_B, right_B, weight_B),
    }


def log_probabilities(logits_SCB: torch.Tensor) -> torch.Tensor:
    """Logarithm of the probabilities, averaged over S seeds. Shape: (S, C, B) to (C, B) float64."""
    return logits_SCB.double().log_softmax(1).logsumexp(0) - math.log(len(logits_SCB))


def at_temperature(log_p_CB: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities at a temperature. Shape: (C, B) float64. Their order is that of ``log_p_CB``."""
    return (log_p_CB / temperature).softmax(0)


def fit_temperature(log_p_CB: torch.Tensor, answer_B: torch.Tensor, weight_B: torch.Tensor) -> float:
    """The temperature with the smallest negative log likelihood, within `TEMPERATURES`.

    One more row is counted, in which the second most likely label is right (the mean over rows): few rows without a
    mistake would be likeliest at temperature 0, where every probability is 1.

    Args:
        log_p_CB: from `log_probabilities`.
        answer_B: true labels.
        weight_B: weights of the rows, with sum 1.
    """
    from scipy.optimize import minimize_scalar  # takes a third of a second to import, and applying needs none

    truth_B, second_B = log_p_CB.gather(0, answer_B[None])[0], log_p_CB.topk(2, dim=0).values[1]
    rows = 1 / float(weight_B.square().sum())  # as many equally weighted ones
    target_B = (rows * truth_B + second_B) / (rows + 1)

    def loss(log_temperature: float) -> float:
        scaled_CB = log_p_CB / math.exp(log_temperature)
        return float(weight_B @ (scaled_CB.logsumexp(0) - target_B / math.exp(log_temperature)))

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0


def calibration_error(
    confidence_B: NDArray[np.floating[Any]], right_B: NDArray[np.bool_], weight_B: NDArray[np.float64]
) -> float:
    """Expected calibration error of the top label, with 15 equally wide bins (a, b].

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.

    Args:
        confidence_B: probability of the most likely label of each row.
        right_B: whether that label is right.
        weight_B: weights of the rows.
    """
    bin_B = np.clip(np.ceil(confidence_B * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gap_M = np.bincount(bin_B, weight_B * (right_B - confidence_B))
    return float(np.abs(gap_M).sum() / weight_B.sum())
