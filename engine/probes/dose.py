"""Accuracy of a probe against the severity of a transformation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from substyle.engine.probes.evaluate import F64, Estimate, Resampled


def by_severity(names: Sequence[str], resampled: Resampled, chance: float) -> dict[str, dict[str, Any]]:
    """Accuracies at each severity of the transformations that have several in a table.

    Args:
        names: T transformations, ``name@severity`` at one severity.
        resampled: their accuracies.
        chance: accuracy at severity 0.

    Returns:
        by transformation: ``severities``, ``accuracy``, ``ci95`` (lists), and ``halfway`` with ``halfway_ci95``, see
        :func:`halfway`; both None unless the interval at the strongest severity lies above chance.
    """
    members: dict[str, list[tuple[int, int]]] = {}
    for t, name in enumerate(names):
        whole, at, severity = name.partition("@")
        if at:
            members.setdefault(whole, []).append((int(severity), t))
    found = {}
    for name, pairs in members.items():
        if len(pairs) < 2:
            continue
        severities, places = (list(column) for column in zip(*sorted(pairs), strict=True))
        each = [resampled.one(t) for t in places]
        strongest = each[-1].ci95
        above = strongest is not None and strongest[0] > chance
        level_L = np.array(severities, np.float64)
        values = halfway(level_L, np.concatenate([resampled.value_T[None], resampled.replicates_RT])[:, places], chance)
        half = Estimate(float(values[0]), values[1:], min(one.units for one in each))
        interval = half.within(0.0, level_L[-1])
        found[name] = {
            "severities": severities,
            "accuracy": [one.number for one in each],
            "ci95": [one.ci95 for one in each],
            "halfway": half.number if above else None,
            "halfway_ci95": interval if above else None,
        }
    return found


def halfway(severity_L: F64, accuracy_RL: F64, chance: float) -> F64:
    """Severity at which accuracy is halfway between chance and its maximum. Shape: (R,).

    The first crossing of the curve that is linear between severities and starts at (0, chance); the last severity if no
    accuracy is above chance, so that such resamples widen an interval rather than vanish from it. NaN if one is NaN.
    """
    x_L = np.concatenate([[0.0], severity_L])
    y_RL = np.concatenate([np.full((len(accuracy_RL), 1), chance), accuracy_RL], axis=1)
    top_R = y_RL[:, 1:].max(axis=1)
    level_R1 = (chance + (top_R - chance) / 2)[:, None]
    after_R = (y_RL >= level_R1).argmax(axis=1)  # at least 1 where the top is above chance
    before_R, row_R = np.maximum(after_R - 1, 0), np.arange(len(y_RL))
    low_R, high_R = y_RL[row_R, before_R], y_RL[row_R, after_R]
    with np.errstate(invalid="ignore", divide="ignore"):  # where no accuracy is above chance
        share_R = (level_R1[:, 0] - low_R) / (high_R - low_R)
        found: F64 = np.where(top_R > chance, x_L[before_R] + share_R * (x_L[after_R] - x_L[before_R]), x_L[-1])
    return np.where(np.isnan(top_R), np.nan, found)
