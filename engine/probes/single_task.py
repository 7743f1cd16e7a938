"""Single-task probes: transformation, kind and class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.evaluate import Scores, score
from substyle.engine.probes.linear import Linear, fit_linear, resampled_images
from substyle.engine.probes.mlp import Mlp, train_mlp
from substyle.engine.probes.resampling import BootstrapResult, Resampled, balanced_over, resample, uniform_over
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import F64, I64, Advance, Task, identity
from substyle.engine.store.table import EmbeddingTable


@dataclass(frozen=True)
class Single:
    """A trained and scored single-task probe.

    Attributes:
        probe: the trained probe.
        scores: test scores of the probe trained on all training photographs.
        training_ST: accuracies of probes trained on resampled photographs; None without any.
    """

    task: Task
    probe: Linear | Mlp
    scores: Scores
    training_ST: NDArray[np.float32] | None


def train_single(
    features: Features,
    task: Task,
    head: str,
    config: ProbeConfig,
    *,
    images: I64,
    group_N: I64,
    advance: Advance = lambda count: None,
) -> Single:
    """Train a probe on a task and score it on test ``images``.

    Args:
        head: linear or mlp.
        group_N: groups of all images, for resamples of the training photographs.
    """
    count = config.resamples if head == "linear" else config.mlp_resamples
    times_SN = resampled_images(task, group_N, count, config.seed)
    made: Linear | Mlp
    if head == "linear":
        made = fit_linear(features, task, config, times_SN, advance)
    else:
        made = train_mlp(features, task, config, times_SN, advance)
    others = made.resampled.heads if isinstance(made.resampled, Fit) else made.resampled
    training_ST = None if others is None else score(features, task, others, images).accuracy_ST
    return Single(task, made, score(features, task, made.heads, images), training_ST)


@dataclass(frozen=True)
class Judged:
    """Bootstrap estimates of a probe's scores.

    Attributes:
        resampled: accuracies over resamples of the test images.
        training_ST: accuracies of probes trained on resampled photographs; None without any.
    """

    resampled: Resampled
    training_ST: NDArray[np.float32] | None

    def estimate(
        self,
        weight_T: F64,
        minus_T: F64 | None = None,
        *,
        general: bool = False,
        kind_T: Sequence[str] = (),
    ) -> dict[str, Any] | None:
        """Entry of results.json for a weighted mean of accuracies, or a difference of two.

        Args:
            general: whether it generalises to unseen transformations, so that its interval is over these too.
            kind_T: kinds within which transformations are random; by default there are none.

        Returns:
            an `Estimate` with the interval over images as ``one_way`` if it is general, else with that over images and
            transformations as ``two_way``. ``se_training`` is the standard deviation over probes trained on resampled
            photographs, and ``se`` the root of the sum of its square and that of the standard error over images.
        """
        mean = self.resampled.mean(weight_T)
        two_way = self.resampled.nested(weight_T, kind_T) if kind_T else self.resampled.two_way(weight_T)
        training = None if self.training_ST is None else _means(self.training_ST, weight_T)
        if minus_T is not None:
            mean -= self.resampled.mean(minus_T)
            two_way = _difference(two_way, self.resampled.two_way(minus_T))
            training = None if training is None else training - _means(self.training_ST, minus_T)
        of_training = None if training is None or len(training) < 2 else float(training.std(ddof=1))
        of_training = of_training if of_training is not None and math.isfinite(of_training) else None
        se = None if mean.se is None else math.hypot(mean.se, of_training or 0.0)
        if general:
            return two_way.entry(one_way=mean.ci95, se=se, se_training=of_training)
        return mean.entry(two_way=two_way.ci95, se=se, se_training=of_training)


def _difference(a: BootstrapResult, b: BootstrapResult) -> BootstrapResult:
    """a - b; without replicates if one of them has none."""
    if len(a.replicates_R) != len(b.replicates_R):
        a, b = (replace(each, replicates_R=np.empty(0)) for each in (a, b))
    return a - b


def _means(accuracy_ST: NDArray[np.float32] | None, weight_T: F64) -> F64:
    assert accuracy_ST is not None
    known_T = np.isfinite(accuracy_ST).all(axis=0) & (weight_T > 0)
    if not known_T.any():
        return np.full(len(accuracy_ST), np.nan)
    return np.asarray(accuracy_ST[:, known_T] @ weight_T[known_T] / weight_T[known_T].sum(), np.float64)


def report(table: EmbeddingTable, single: Single, config: ProbeConfig, group_N: I64 | None) -> dict[str, Any]:
    """Entry of results.json for a task and head. ``group_N``: bootstrap groups of the scored images, or None."""
    drawn = resample(
        *(single.scores.mean_TN, config.bootstrap, config.seed, group_N),
        families=table.families,
        unit=table.unit_of(config.resample_by),
    )
    judged = Judged(drawn, single.training_ST)
    make = {"transformation": _transformation, "kind": _kind, "class": _class}[single.task.name]
    return {
        **make(table, single, judged),
        # of transformations only: that of a thousand classes has a million counts, which nothing shows
        **({} if single.task.by_image else {"confusion": single.scores.confusion()}),
        **single.probe.describe(),
        "chance": single.task.chance,
    }


def _transformation(table: EmbeddingTable, single: Single, judged: Judged) -> dict[str, Any]:
    weight = uniform_over(single.task.score_T, len(table.transformations))
    return {"accuracy": judged.estimate(weight)} | _each(table, single.task, judged.resampled)


@dataclass(frozen=True)
class KindWeights:
    """Weights of transformations in seen and held-out accuracy.

    Both are means over kinds of the mean over a class's transformations. The classes are those with seen and
    held-out transformations, or all except identity's if nothing is held out (then ``held_out_T`` is None).
    """

    seen_T: NDArray[np.float64]
    held_out_T: NDArray[np.float64] | None


def kind_weights(transformations: tuple[str, ...], kind: tuple[str, ...], roles: tuple[str, ...]) -> KindWeights:
    """Weights for a suite."""
    seen = [t for t, role in enumerate(roles) if role == "train" and transformations[t] != "identity"]
    held_out = [t for t, role in enumerate(roles) if role == "held_out"]
    both = sorted({kind[t] for t in seen} & {kind[t] for t in held_out})
    if both:
        return KindWeights(balanced_over(seen, kind, both), balanced_over(held_out, kind, both))
    return KindWeights(balanced_over(seen, kind, sorted({kind[t] for t in seen})), None)


def _kind(table: EmbeddingTable, single: Single, judged: Judged) -> dict[str, Any]:
    weights = kind_weights(table.transformations, table.kind, table.roles)
    numbers = {"seen": judged.estimate(weights.seen_T), "held_out": None, "gap": None}
    if weights.held_out_T is not None:
        numbers["held_out"] = judged.estimate(weights.held_out_T, general=True)
        numbers["gap"] = judged.estimate(weights.seen_T, weights.held_out_T, general=True)
    each = map(judged.resampled.one, range(len(table.transformations)))
    by_transformation = {
        name: {"accuracy": one.entry(), "role": role, "kind": kind}
        for name, one, role, kind in zip(table.transformations, each, table.roles, table.kind, strict=True)
    }
    return numbers | {"by_transformation": by_transformation}


def _class(table: EmbeddingTable, single: Single, judged: Judged) -> dict[str, Any]:
    base, count = identity(table), len(table.transformations)
    original_T = uniform_over([base], count)
    numbers = {"original": judged.estimate(original_T), "transformed": judged.estimate(1.0 - original_T)}
    return numbers | _each(table, single.task, judged.resampled)


def _each(table: EmbeddingTable, task: Task, resampled: Resampled) -> dict[str, Any]:
    """Accuracies on each transformation, and against severity where transformations have several."""
    plain = {table.transformations[t]: resampled.one(t).number for t in task.score_T}
    curves = by_severity(table.transformations, resampled, task.chance, rises=not task.by_image)
    return {"by_transformation": plain} | ({"by_severity": curves} if curves else {})


def by_severity(
    names: Sequence[str], resampled: Resampled, chance: float, *, rises: bool = True
) -> dict[str, dict[str, Any]]:
    """Accuracies at each severity of the transformations that have several in a table.

    Args:
        names: T transformations, ``name@severity`` at one severity.
        resampled: their accuracies.
        chance: accuracy at severity 0.
        rises: whether accuracy rises from there, as that of the transformation does; that of the class falls.

    Returns:
        by transformation: ``severities`` and ``accuracy`` (lists), and ``halfway``, see :func:`halfway`; None unless
        accuracy rises and its interval at the strongest severity lies above chance.
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
        above = rises and strongest is not None and strongest[0] > chance
        level_L = np.array(severities, np.float64)
        values = halfway(level_L, np.concatenate([resampled.value_T[None], resampled.replicates_RT])[:, places], chance)
        half = BootstrapResult(float(values[0]), values[1:], min(one.units for one in each), unit=resampled.unit)
        found[name] = {
            "severities": severities,
            "accuracy": [one.entry() for one in each],
            "halfway": half.entry(0.0, float(level_L[-1])) if above else None,
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
