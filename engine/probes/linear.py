"""Linear probes, fitted to convergence over a grid of C that is extended until the best is inside.

Gradients are relative to the objective, since those of separable rows are small far from the optimum. A small gradient
bounds the loss, not the change in accuracy, especially on held-out rows. So the fit at the selected C is continued to
a third of its gradient until two consecutive fits agree within a fifth of a point; what later thirds would add is of
that size. Probes on other rows start at zero: started from a fit to all rows they would retain, within
the tolerance, information about rows that they must not see. Resamples have the largest tolerance at which, and below
which, fits agree with the last one; fits to held-out transformations begin with it and are continued until they agree
themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from substyle.engine.probes import solver
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import C_RANGE, ProbeConfig
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import F64, I64, Advance, Task
from substyle.engine.probes.trainer import Validation, agreement_rows, compare
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels.probe_heads import Heads

AGREEMENT = 0.002  # maximum difference in accuracy of two fits that agree


@dataclass(frozen=True)
class Linear:
    """A fitted linear probe.

    Attributes:
        C: selected inverse regularisation strength.
        tried: all values of C, ascending.
        validation: validation accuracy.
        fit: head trained on all training photographs, and its certificate.
        difference: its validation accuracy minus that of the fit before, of at least three times its gradient.
        agreed: whether the two agree.
        tolerance: configured tolerance.
        loosest_tolerance: that of fits to other rows: of the first fit from which on all agree with the last, but not
            of one that has stalled.
        resampled: heads trained on resampled photographs, with certificates; None without any.
    """

    C: float
    tried: tuple[float, ...]
    validation: float
    fit: Fit
    difference: float
    agreed: bool
    tolerance: float
    loosest_tolerance: float
    resampled: Fit | None

    @property
    def heads(self) -> Heads:
        """The head trained on all training photographs."""
        return self.fit.heads

    def describe(self) -> dict[str, Any]:
        """Training fields of results.json."""
        own, others = certified(self.fit, self.tolerance), self.resampled
        fitted = own["converged"] and (others is None or certified(others, self.tolerance)["converged"])
        return {
            "setting": {"C": self.C, "tried": list(self.tried)},
            "edge": self.C in (self.tried[0], self.tried[-1]),
            "validation": self.validation,
            "steps": int(self.fit.passes_K[0]),
            "converged": fitted and self.agreed,
            "certificate": own["certificate"] | {"difference": self.difference},
        }


def certified(fit: Fit, tolerance: float) -> dict[str, Any]:
    """``converged`` and ``certificate`` of results.json: largest gradient and number of passes over all heads.

    Convergence requires the configured tolerance, not the tightened one, which may be unreachable in float32.
    """
    gradient = float(fit.gradient_K.max())
    return {
        "converged": gradient <= tolerance,
        "certificate": {"gradient": gradient, "tolerance": tolerance, "iterations": int(fit.passes_K.max())},
    }


def fit_linear(
    features: Features,
    task: Task,
    config: ProbeConfig,
    times_SN: F64 | None = None,
    advance: Advance = lambda count: None,
) -> Linear:
    """Fit the linear probe of a task.

    Args:
        task: task; classes of a kind task are weighted equally.
        times_SN: multiplicity of each image in each resample of the training images; None for no resamples.
    """
    rows = training_rows_of(features, task)
    basis = CovarianceBasis.of(rows)
    solved = partial(fit_heads, rows, config, basis=basis, advance=advance)
    validation = Validation(features.full(), task, config)
    agreement = agreement_rows(features.full(), task, config)

    def compared(a: Fit, b: Fit) -> tuple[float, bool]:
        return compare(agreement, a.heads, b.heads, AGREEMENT)

    C, grid = _search_C(solved, validation, config.Cs)
    fits, difference, agreed = until_agreed(grid[C], partial(solved, [C]), compared, config.expert.doublings)
    fit = fits[-1]
    # resamples would not reach a tolerance either that this fit does not reach
    loosest = fit if fit.converged_K.all() else fits[-2]
    for looser in reversed(fits[:-1]):
        if not compared(fit, looser)[1]:
            break
        loosest = looser
    tolerance, resampled = float(loosest.tolerance_K[0]), None
    if times_SN is not None and len(times_SN):
        times = rows.with_image_weights(times_SN)
        resampled = fit_heads(times, config, [C] * len(times_SN), None, tolerance, basis=basis, advance=advance)
    (accuracy,), _ = validation.judge(fit.heads)
    tried = tuple(sorted(grid))
    return Linear(C, tried, float(accuracy), fit, difference, agreed, config.expert.tolerance, tolerance, resampled)


def _search_C(
    solved: Callable[[Sequence[float]], Fit], validation: Validation, Cs: Sequence[float]
) -> tuple[float, dict[float, Fit]]:
    """Fit all C, and further ones until the best is inside. Returns the best C, and all fits by C.

    Further fits start at zero: at the previous solution the gradient may already be within the tolerance.
    """
    fit = solved(sorted(Cs))
    fits = {C: fit.only(k) for k, C in enumerate(sorted(Cs))}
    while True:
        best = _best_C(fits, validation)
        further = float(f"{best / 10 if best == min(fits) else best * 10:.6g}")
        if min(fits) < best < max(fits) or not C_RANGE[0] <= further <= C_RANGE[1]:
            return best, fits
        fits[further] = solved([further])


def _best_C(fits: Mapping[float, Fit], validation: Validation) -> float:
    """C with the highest accuracy; ties go to the lower loss, and within 1 % to the smaller C."""
    best, most, least = 0.0, -1.0, 0.0
    for C in sorted(fits):
        (accuracy,), (loss,) = validation.judge(fits[C].heads)
        if accuracy > most or (accuracy == most and loss < 0.99 * least):
            best, most, least = C, accuracy, loss
    return best


def until_agreed(
    fit: Fit,
    refit: Callable[[Heads, F64], Fit],
    compared: Callable[[Fit, Fit], tuple[float, bool]],
    doublings: int,
) -> tuple[list[Fit], float, bool]:
    """Continue a fit to a third of its gradients until two consecutive fits agree, or one stalls.

    Args:
        refit: fits heads from initial ones and their tolerances.
        compared: the difference in accuracy of two fits, and whether they agree.
        doublings: maximum number of continuations, at least 1.

    Returns:
        all fits, the difference of the last two, and whether they agree.
    """
    fits = [fit]
    for _ in range(doublings):
        before = fits[-1]
        fits.append(refit(before.heads, before.tighter_K))
        reached = bool(fits[-1].converged_K.all())
        difference, same = compared(fits[-1], before)
        if same or not reached:
            break
    return fits, difference, same and reached  # a fit that stalls changes nothing either


def training_rows_of(features: Features, task: Task) -> TrainingRows:
    """The training rows of a task, with the same weights for all heads."""
    return TrainingRows(features, task, variant_weights(task, task.train_T)[None])


def fit_heads(
    rows: TrainingRows,
    config: ProbeConfig,
    Cs: Sequence[float],
    start: Heads | None = None,
    tolerance: F64 | float | None = None,
    *,
    basis: CovarianceBasis | None = None,
    advance: Advance = lambda count: None,
) -> Fit:
    """Fit K heads, one per C.

    Args:
        rows: rows and their weights, the same for all heads or those of each.
        start: initial heads, trained on the same rows; default zeros.
        tolerance: tolerance of all heads or of each; default: the configured one.
        basis: precomputed basis of all rows.
    """
    counted_TN = rows.task.distinct_TN[:, rows.task.train_N]
    count_K = (rows.variant_KT > 0) @ counted_TN.sum(axis=1)
    return solver.fit(
        rows,
        1.0 / (np.asarray(Cs) * count_K),
        tolerance=config.expert.tolerance if tolerance is None else tolerance,
        most=config.expert.passes,
        start=start,
        basis=basis,
        advance=advance,
    )


def variant_weights(task: Task, seen_T: I64) -> F64:
    """Row weights by transformation for a probe trained on ``seen_T``. Shape: (T,).

    Rows are weighted equally; in a kind task all classes, and within a class all transformations.
    """
    weight_T = np.zeros(len(task.distinct_TN))
    weight_T[seen_T] = 1.0
    if task.name == "kind":
        answer_T = task.answer[seen_T]
        members_T = np.bincount(answer_T, minlength=len(task.labels))[answer_T]
        weight_T[seen_T] = 1.0 / (members_T * task.distinct_TN[np.ix_(seen_T, task.train_N)].sum(axis=1))
    return weight_T


def resampled_images(task: Task, group_N: I64, count: int, seed: int) -> F64:
    """Multiplicities of images in ``count`` bootstrap samples of a task's training groups. Shape: (count, N).

    The draws depend only on the seed and the groups, so they are the same for all backbones. A single group has no
    samples: all would be equal.
    """
    groups, place_N = np.unique(group_N[task.train_N], return_inverse=True)
    count = count if len(groups) > 1 else 0
    rng = np.random.default_rng([seed, 0x74726169])
    times_SG = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=count)
    times_SN = np.zeros((count, len(group_N)))
    times_SN[:, task.train_N] = times_SG[:, place_N]
    return times_SN
