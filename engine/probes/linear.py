"""Linear probes: fitted to convergence over a grid of penalties that grows until the best lies inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes import solver
from substyle.engine.probes.config import C_RANGE, ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.solver import Fit, Rows
from substyle.engine.probes.tasks import I64, Task
from substyle.engine.probes.validation import Validation
from substyle.kernels.probe_heads import Heads

F64 = NDArray[np.float64]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Linear:
    """A fitted linear probe.

    Attributes:
        heads: one head, learned from all training photographs.
        C: the inverse penalty that validation picked.
        tried: all that were, ascending.
        validation: validation accuracy.
        fit: its certificate.
        resampled: a head for each resample of the training photographs, with its certificate; None without any.
    """

    heads: Heads
    C: float
    tried: tuple[float, ...]
    validation: float
    fit: Fit
    resampled: Fit | None

    @property
    def converged(self) -> bool:
        """Whether all heads are within the tolerance."""
        return all(bool(each.converged_K.all()) for each in (self.fit, self.resampled) if each is not None)

    def describe(self) -> dict[str, Any]:
        """The training fields of results.json."""
        return {
            "setting": {"C": self.C, "tried": list(self.tried)},
            "edge": self.C in (self.tried[0], self.tried[-1]),
            "validation": self.validation,
            "steps": int(self.fit.passes_K[0]),
        } | certified(self.fit, self.resampled)


def certified(*fits: Fit | None) -> dict[str, Any]:
    """``converged`` and ``certificate`` of results.json: the largest gradient and most passes of some fits."""
    made = [each for each in fits if each is not None]
    return {
        "converged": all(bool(each.converged_K.all()) for each in made),
        "certificate": {
            "gradient": max(float(each.gradient_K.max()) for each in made),
            "tolerance": made[0].tolerance,
            "iterations": max(int(each.passes_K.max()) for each in made),
        },
    }


def fit_linear(
    features: Features,
    task: Task,
    config: ProbeConfig,
    times_SN: F64 | None = None,
    advance: Advance = lambda count: None,
) -> Linear:
    """Fit a task's linear probe.

    Args:
        features: standardise the rows.
        task: what is learned; every answer of a coarse task has the same weight.
        config: the grid, tolerance and passes.
        times_SN: how often each image stands in each resample of the training images; None for no resamples.
        advance: takes the number of passes made.
    """
    weight_T = variant_weights(task, task.train_T)
    validation = Validation(features.full(), task, slice(0, len(task.labels)), config)
    fits: dict[float, Fit] = {}

    def solved(Cs: Sequence[float], start: Heads | None, image_KN: F64 | None = None) -> Fit:
        return fit_heads(features, task, config, np.tile(weight_T, (len(Cs), 1)), Cs, start, image_KN, advance)

    def rank(C: float) -> tuple[float, float]:
        accuracy_K, loss_K = validation.judge(fits[C].heads)
        return float(accuracy_K[0]), -float(loss_K[0])

    Cs = sorted(config.Cs)
    made = solved(Cs, None)
    fits.update({C: made.only(k) for k, C in enumerate(Cs)})
    best = max(fits, key=rank)
    while best in (min(fits), max(fits)):
        further = float(f"{best / 10 if best == min(fits) else best * 10:.6g}")
        if not C_RANGE[0] <= further <= C_RANGE[1]:
            break
        fits[further] = solved([further], fits[best].heads)
        best = max(fits, key=rank)
    resampled = None
    if times_SN is not None and len(times_SN):
        start = fits[best].heads.select([0] * len(times_SN))
        resampled = solved([best] * len(times_SN), start, times_SN)
    return Linear(fits[best].heads, best, tuple(sorted(fits)), rank(best)[0], fits[best], resampled)


def fit_heads(
    features: Features,
    task: Task,
    config: ProbeConfig,
    variant_KT: F64,
    Cs: Sequence[float],
    start: Heads | None = None,
    image_KN: F64 | None = None,
    advance: Advance = lambda count: None,
) -> Fit:
    """Fit K heads, each with its own weights of transformations and images and its own C."""
    rows = Rows(features, task, variant_KT, image_KN)
    counted_TN = task.distinct_TN[:, task.train_N]
    count_K = (variant_KT > 0) @ counted_TN.sum(axis=1)
    return solver.fit(
        rows,
        1.0 / (np.asarray(Cs) * count_K),
        tolerance=config.tolerance,
        most=config.passes,
        start=start,
        advance=advance,
    )


def variant_weights(task: Task, seen_T: I64) -> F64:
    """Weight of a row by its transformation, for a probe that sees some. Shape: (T,).

    Rows have equal weights; those of a coarse task such that every class has the same weight, and within a class every
    transformation.
    """
    weight_T = np.zeros(len(task.distinct_TN))
    weight_T[seen_T] = 1.0
    if task.name == "coarse":
        answer_T = task.answer[seen_T]
        members_T = np.bincount(answer_T, minlength=len(task.labels))[answer_T]
        weight_T[seen_T] = 1.0 / (members_T * task.distinct_TN[np.ix_(seen_T, task.train_N)].sum(axis=1))
    return weight_T


def resampled_images(task: Task, group_N: I64, count: int, seed: int) -> F64:
    """How often each image stands in ``count`` bootstrap samples of a task's training images. Shape: (count, N).

    Whole groups are drawn. The draws depend on the seed and the groups alone, so that probes of several backbones learn
    from the same samples.
    """
    groups, place_N = np.unique(group_N[task.train_N], return_inverse=True)
    rng = np.random.default_rng([seed, 0x74726169])
    times_SG = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=count)
    times_SN = np.zeros((count, len(group_N)))
    times_SN[:, task.train_N] = times_SG[:, place_N]
    return times_SN
