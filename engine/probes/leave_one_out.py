"""Leave-one-out evaluation: linear kind probes with each transformation, all styles of a generator, or random sets
held out.

All probes are fitted at once, with the C selected for the suite's own held-out transformations. The only transformation
of a kind cannot be held out. All severities of a transformation are held out together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes import linear
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.linear import certified, fit_heads, until_agreed, variant_weights
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.resampling import balanced_over, by_class, resample, uniform_over
from substyle.engine.probes.single_task import Judged
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import F64, I64, Advance, Task, kind_task
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.store.table import EmbeddingTable
from substyle.pipelines.transforms.names import count_families
from substyle.pipelines.transforms.style import by_generator

STYLE = "style"  # kind of painting styles


@dataclass(frozen=True)
class LeaveOneOut:
    """Scores on held-out transformations.

    Attributes:
        score_TN: scores of each transformation by the probe trained without it; NaN for those never held out.
        turned: columns of the table that were held out.
        by_generator_TN: scores of the styles of each generator by the probe trained without any of them; NaN for
            others.
        generators: styles by generator; empty with fewer than two.
        redrawn_R: accuracy on the held-out transformations of each random set, all kinds weighted equally.
        redrawn: number of transformations per random set.
        fit: certificates of all probes.
        difference: mean validation accuracy on held-out transformations, minus that of the fits before; the
            larger of single transformations and random sets.
    """

    score_TN: NDArray[np.float32]
    turned: I64
    by_generator_TN: NDArray[np.float32]
    generators: dict[str, list[int]]
    redrawn_R: list[float]
    redrawn: int
    fit: Fit
    difference: float

    def describe(self, tolerance: float) -> dict[str, Any]:
        """``converged`` and ``certificate`` of results.json, at the configured tolerance."""
        own = certified(self.fit, tolerance)
        agreed = abs(self.difference) <= linear.AGREEMENT and bool(self.fit.converged_K.all())
        return {
            "converged": own["converged"] and agreed,
            "certificate": own["certificate"] | {"difference": self.difference},
        }


def whole_task(table: EmbeddingTable, seed: int) -> Task | None:
    """The kind task with all transformations seen; None if none can be held out."""
    task = kind_task(table, seed, seen=range(len(table.transformations)))
    return task if task is not None and held_out_in_turn(table, task) else None


def held_out_in_turn(table: EmbeddingTable, task: Task) -> list[I64]:
    """The columns of each transformation whose kind has another transformation to train on."""
    several = [own for members in _by_class(table, task) if len(members) > 1 for own in members]
    return sorted(several, key=lambda own: int(own[0]))


def _by_class(table: EmbeddingTable, task: Task) -> list[list[I64]]:
    """The columns of each transformation, by kind."""
    found: list[dict[str, list[int]]] = [{} for _ in task.labels]
    for t in task.train_T.tolist():
        found[task.answer[t]].setdefault(table.families[t], []).append(t)
    return [[np.array(columns, np.int64) for columns in members.values()] for members in found]


def redrawn_sets(table: EmbeddingTable, task: Task, count: int, seed: int) -> list[I64]:
    """Draw random sets of held-out transformations, with all of their severities.

    Per kind as many as the suite holds out (one if the suite holds out none), leaving at least one to train on.
    """
    rng = np.random.default_rng([seed, 0x72656472])
    held_out_T = np.array(table.roles) == "held_out"
    sets = []
    for _ in range(count):
        picked: list[I64] = []
        for members in _by_class(table, task):
            wanted = sum(held_out_T[own].any() for own in members) if held_out_T.any() else 1
            picked += [members[k] for k in rng.permutation(len(members))[: min(wanted, len(members) - 1)]]
        sets.append(np.sort(np.concatenate(picked)))
    return sets


def rotate(
    features: Features,
    task: Task,
    C: float,
    config: ProbeConfig,
    images: I64,
    *,
    redraws: int,
    tolerance: float | None = None,
    advance: Advance = lambda count: None,
) -> LeaveOneOut:
    """Fit and score the probes of all held-out sets.

    Args:
        task: result of :func:`whole_task`.
        C: inverse regularisation strength.
        redraws: number of random sets.
        tolerance: tolerance of the first fits; default: the configured one.
    """
    table = features.held.table
    alone = held_out_in_turn(table, task)
    generators = by_generator(table.transformations, table.generators)
    together = [np.array(own, np.int64) for own in generators.values()]
    sets = alone + together
    chosen = len(sets)  # not by chance
    sets += redrawn_sets(table, task, redraws, config.seed)
    seen = [np.setdiff1d(task.train_T, held) for held in sets]
    weight_KT = np.stack([variant_weights(task, seen_T) for seen_T in seen])
    few = task.val_N[: max(1, config.validation_rows // len(task.train_T))]

    def validated(fit: Fit) -> F64:
        """Mean accuracy on held-out transformations, of single transformations and of random sets."""
        found = [_scored(features, task, held, fit, k, few) for k, held in enumerate(sets)]
        parts = found[: len(alone)], found[len(alone) :]
        return np.array([np.mean([v for values in part for v in values] or [0.0]) for part in parts])

    rows = TrainingRows(features, task, weight_KT)
    fitted = partial(fit_heads, rows, config, [C] * len(sets), basis=CovarianceBasis.of(rows), advance=advance)

    def compared(a: Fit, b: Fit) -> tuple[float, bool]:
        difference = float(max(validated(a) - validated(b), key=abs))
        return difference, abs(difference) <= linear.AGREEMENT

    (*_, fit), difference, _ = until_agreed(fitted(None, tolerance), fitted, compared, config.expert.doublings)
    score_TN, by_generator_TN = np.full((2, len(table.transformations), len(images)), np.nan, np.float32)
    redrawn: list[float] = []
    for k, held in enumerate(sets):
        if k < chosen:
            own = replace(task, score_T=held)
            scored = score(features, own, fit.heads.select([k]), images)
            (score_TN if k < len(alone) else by_generator_TN)[held] = scored.mean_TN[held]
        else:
            redrawn += _scored(features, task, held, fit, k, images)
    held_out = count_families(table.transformations[t] for t in sets[-1]) if redraws else 0  # the same in each set
    turned = np.sort(np.concatenate(alone))
    return LeaveOneOut(score_TN, turned, by_generator_TN, generators, redrawn, held_out, fit, difference)


def _scored(features: Features, task: Task, held: I64, fit: Fit, k: int, images: I64) -> list[float]:
    """Accuracy of head k on its held-out transformations, a mean over kinds; empty if no row is scored."""
    own, table = replace(task, score_T=held, test_N=images), features.held.table
    scored = score(features, own, fit.heads.select([k]), images)
    accuracy_T = scored.accuracy_ST[0]
    known = [int(t) for t in held if np.isfinite(accuracy_T[t])]
    weight_T = balanced_over(known, table.kind, sorted({table.kind[t] for t in known}))
    return [float(np.nan_to_num(accuracy_T) @ weight_T / weight_T.sum())] if known else []


def report_rotation(
    table: EmbeddingTable, rotation: LeaveOneOut, config: ProbeConfig, group_N: I64 | None
) -> dict[str, Any]:
    """Entry of results.json: means over all transformations held out in turn, over kinds of their
    transformations, over the styles, and over the styles of each generator with all of them held out."""
    count = len(table.transformations)

    def judged_on(score_TN: NDArray[np.float32]) -> Judged:
        given = (config.bootstrap, config.seed, group_N)
        return Judged(resample(score_TN, *given, families=table.families, unit=table.unit_of(config.resample_by)), None)

    judged = judged_on(rotation.score_TN)
    styles = [t for t in rotation.turned if table.kind[t] == STYLE]
    each = {table.transformations[t]: judged.resampled.one(t) for t in rotation.turned}
    crossed = judged_on(rotation.by_generator_TN)
    generators = {
        name: {"accuracy": crossed.estimate(uniform_over(own, count), general=True)}
        for name, own in rotation.generators.items()
    }
    balanced = by_class(rotation.turned.tolist(), table.kind)
    return {
        "accuracy": judged.estimate(uniform_over(rotation.turned, count), general=True),
        "balanced": judged.estimate(balanced, general=True, kind_T=table.kind),
        "styles": judged.estimate(uniform_over(styles, count), general=True),
        "by_transformation": {name: {"accuracy": one.entry()} for name, one in each.items()},
        **({"generators": generators} if generators else {}),
        **rotation.describe(config.expert.tolerance),
    }


def report_redrawn(rotation: LeaveOneOut) -> dict[str, Any] | None:
    """Entry of results.json for random sets; None without any."""
    if not rotation.redrawn_R:
        return None
    accuracy_R = np.array(rotation.redrawn_R)
    return {
        "sets": len(accuracy_R),
        "transformations": rotation.redrawn,
        "mean": float(accuracy_R.mean()),
        "sd": float(accuracy_R.std(ddof=1)) if len(accuracy_R) > 1 else None,
        "low": float(accuracy_R.min()),
        "high": float(accuracy_R.max()),
        "accuracies": accuracy_R.tolist(),
    }
