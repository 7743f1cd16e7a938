"""Sensitivity against robustness: rank correlations over backbones, with a bootstrap over photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.resampling import BootstrapResult
from substyle.engine.results.statistics import FEWEST_CORRELATED

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Replicates:
    """Of one backbone: mean sensitivity to the transformations, and loss of class accuracy by shift."""

    sensitivity: BootstrapResult
    loss: Mapping[str, BootstrapResult]


def spearman(x_RK: F64, y_RK: F64) -> F64:
    """Spearman's rho of K pairs in each of R rows, (R,); NaN where a side is constant."""
    from scipy.stats import rankdata  # slow to import

    return _cosines(*(rankdata(v_RK, axis=1) - (v_RK.shape[1] + 1) / 2 for v_RK in (x_RK, y_RK)))


def rank_correlations(x_RK: F64, y_RK: F64) -> tuple[F64, F64]:
    """Spearman's rho and Kendall's tau-b of K pairs in each of R rows, (R,) each; NaN where a side is constant."""
    signs = (np.sign(v_RK[:, :, None] - v_RK[:, None, :]).reshape(len(v_RK), -1) for v_RK in (x_RK, y_RK))
    return spearman(x_RK, y_RK), _cosines(*signs)


def _cosines(a_RK: F64, b_RK: F64) -> F64:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a_RK * b_RK).sum(1) / np.sqrt((a_RK**2).sum(1) * (b_RK**2).sum(1)), np.float64)


def robustness(points: Mapping[str, Replicates]) -> list[dict[str, Any]]:
    """Rank correlation of sensitivity and loss over backbones, for each shift that all have.

    The photographs are resampled, the same for all backbones, and the backbones are not: an interval says how certain
    the order of these backbones is, not what other backbones would do. Noise in the accuracies pulls replicates
    towards 0.

    Returns:
        for each shift, and for their mean (``shift`` null) if there are several: ``spearman`` and ``kendall``, null
        with fewer than `FEWEST_CORRELATED` backbones, and by backbone ``sensitivity`` and ``loss``.
    """
    first = next(iter(points.values())).loss if points else ()
    shifts = [name for name in first if all(name in p.loss for p in points.values())]
    rows = []
    for shift in [*shifts, *([None] if len(shifts) > 1 else [])]:
        own = {name: (p.sensitivity, _loss(p, [shift] if shift else shifts)) for name, p in points.items()}
        row: dict[str, Any] = {"shift": shift}
        sides = [np.stack([np.r_[each[i].value, each[i].replicates_R] for each in own.values()], 1) for i in (0, 1)]
        for name, value_R in zip(("spearman", "kendall"), rank_correlations(*sides), strict=True):
            known_R = value_R if len(own) >= FEWEST_CORRELATED else np.array([np.nan])
            row[name] = BootstrapResult(float(known_R[0]), known_R[1:]).entry()
        row["backbones"] = {
            name: {"sensitivity": moved.entry(), "loss": lost.entry()} for name, (moved, lost) in own.items()
        }
        rows.append(row)
    return rows


def _loss(points: Replicates, shifts: list[str]) -> BootstrapResult:
    values = [points.loss[shift] for shift in shifts]
    return BootstrapResult(
        float(np.mean([v.value for v in values])),
        np.mean([v.replicates_R for v in values], axis=0, dtype=np.float64),
        *(min(v.units for v in values), max(v.unseen for v in values)),
    )
