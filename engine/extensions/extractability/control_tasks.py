"""Control tasks and shuffled labels: does a probe read the embedding, or memorise it?

A control task (Hewitt & Liang, "Designing and interpreting probes with control tasks", EMNLP 2019) gives each word a
random label, which a probe can only memorise; selectivity is the accuracy on the task minus that on the control task.
Here photographs take the place of words: they recur as variants, but not in other splits. So control tasks are trained
on some variants of the training photographs and scored on their other variants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.linear import Linear, fit_heads, training_rows_of, variant_weights
from substyle.engine.probes.mlp import Mlp, part_of
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.resampling import BootstrapResult, resample, uniform_over
from substyle.engine.probes.tasks import I64, UNKNOWN, Advance, Task
from substyle.engine.probes.trainer import Validation, train
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels.probe_heads import Heads

SCORED = 20_000  # maximum number of training photographs to score


@dataclass(frozen=True)
class Controls:
    """A task and its control tasks, which differ only in their labels.

    Attributes:
        task: the task, trained on some variants of the training photographs.
        photographs: its training rows with a random label per photograph.
        rows: its training rows with a random label per row; None for tasks on photographs.
        scored_N: training photographs to score.
        held_TN: rows to score, other variants of training photographs.
    """

    task: Task
    photographs: Task
    rows: Task | None
    scored_N: I64
    held_TN: NDArray[np.bool_]


def controls_of(task: Task, seed: int) -> Controls:
    """Create the control tasks of a task.

    Of a task on transformations a random half of each photograph's variants are training rows, and random labels are
    uniform. A task on photographs keeps its training rows, and random labels are those of other photographs. Labels per
    photograph are the same for its near-duplicates.
    """
    rng = np.random.default_rng([seed, 0x636F6E74])
    images, classes = task.distinct_TN.shape[1], len(task.labels)
    scored_N = np.sort(rng.permutation(task.train_N)[:SCORED])
    if task.by_image:
        answer_N = task.answer.copy()
        _, first, place_N = np.unique(task.first_N[task.train_N], return_index=True, return_inverse=True)
        answer_N[task.train_N] = rng.permutation(task.answer[task.train_N[first]])[place_N]
        held_TN = task.distinct_TN.copy()
        held_TN[task.train_T] = False
        return Controls(task, replace(task, answer=answer_N), None, scored_N, held_TN)
    may_TN = task.distinct_TN[:, task.train_N]
    order_TN = rng.random(may_TN.shape, np.float32)
    order_TN[~may_TN] = 2.0
    last_N = (may_TN.sum(axis=0) + 1) // 2 - 1
    middle_N = np.take_along_axis(np.sort(order_TN, axis=0), np.maximum(last_N, 0)[None], 0)
    half_TN, held_TN = task.distinct_TN.copy(), np.zeros_like(task.distinct_TN)
    half_TN[:, task.train_N] = may_TN & (order_TN <= middle_N)
    held_TN[:, task.train_N] = may_TN & (order_TN > middle_N)
    own = replace(task, distinct_TN=half_TN)
    answer_N, answer_TN = (np.asarray(rng.integers(classes, size=size)) for size in ((images,), half_TN.shape))
    by_photograph = replace(own, by_image=True, answer=answer_N[task.first_N])
    by_row = replace(own, answer=answer_TN)
    return Controls(own, by_photograph, by_row, scored_N, held_TN)


def control(
    features: Features,
    task: Task,
    made: Linear | Mlp,
    config: ProbeConfig,
    group_N: I64 | None,
    basis: CovarianceBasis | None = None,
    advance: Advance = lambda count: None,
) -> dict[str, Any]:
    """Train a probe's setting on the control tasks. Returns the entry of results.json.

    Args:
        made: the probe, whose C, or setting and steps, are used.
        group_N: bootstrap groups of all images, None for images.
        basis: basis of all training rows of the task.

    Returns:
        ``task``: accuracy on the task; ``control``: accuracy on labels per photograph, on held-out variants of training
        photographs; ``selectivity``: their difference; ``memorised``: accuracy on labels per row, on the training rows
        (not for tasks on photographs). Intervals are over the scored photographs. Tasks on photographs are
        scored on the same rows as their control; tasks on transformations on test photographs, since the labels of a
        training photograph's other variants are just those that it was not trained on.
    """
    found = controls_of(task, config.seed)
    weight_KT = variant_weights(found.task, found.task.train_T)[None]
    converged = bool(made.describe()["converged"])

    def fit(own: Task) -> Heads:
        """Heads with the probe's setting on other labels of the same rows."""
        nonlocal converged
        if isinstance(made, Linear):
            rows = TrainingRows(features, own, weight_KT)
            fitted = fit_heads(rows, config, [made.C], basis=basis, advance=advance)
            converged &= bool(fitted.converged_K.all())
            return fitted.heads
        part, setting, steps = part_of(features, own, config), made.trained.setting, made.trained.steps
        return train(features, [part], [setting], config, steps, advance=advance)[setting].heads

    def accuracy(own: Task, heads: Heads, rows_TN: NDArray[np.bool_], images: I64) -> BootstrapResult:
        every_T = np.arange(len(rows_TN))
        scored = replace(own, distinct_TN=rows_TN, score_T=every_T, test_N=images)
        right_TN = score(features, scored, heads, images).mean_TN
        groups = None if group_N is None else group_N[images]
        resampled = resample(right_TN, config.bootstrap, config.seed, groups, unit=config.resample_by)
        return resampled.mean(uniform_over(every_T, len(every_T)))

    named: dict[str, BootstrapResult] = {}
    if found.rows is None:
        named["task"] = accuracy(found.task, made.heads, found.held_TN, found.scored_N)
    else:
        named["task"] = accuracy(found.task, fit(found.task), task.distinct_TN, task.test_N)
        named["memorised"] = accuracy(found.rows, fit(found.rows), found.rows.distinct_TN, found.scored_N)
    named["control"] = accuracy(found.photographs, fit(found.photographs), found.held_TN, found.scored_N)
    named["selectivity"] = named["task"] - named["control"]
    answer: dict[str, Any] = {name: result.entry() for name, result in named.items()}
    return answer | {"photographs": len(found.scored_N), "converged": converged}


def shuffled_task(task: Task, seed: int) -> Task:
    """Permute the labels of a task among the rows, or images, of each split."""
    rng = np.random.default_rng([seed, 0x73687566])
    if task.by_image:
        answer = task.answer.copy()
        for split in (task.train_N, task.val_N, task.test_N):
            answer[split] = rng.permutation(answer[split])
        return replace(task, answer=answer)
    answer = np.repeat(task.answer[:, None], task.distinct_TN.shape[1], axis=1)
    for split in (task.train_N, task.val_N, task.test_N):
        t_R, n_R = task.rows(np.arange(len(answer)), split)
        answer[t_R, n_R] = rng.permutation(answer[t_R, n_R])
    return replace(task, answer=answer)


def shuffled(
    features: Features,
    task: Task,
    made: Linear,
    config: ProbeConfig,
    basis: CovarianceBasis | None = None,
    advance: Advance = lambda count: None,
) -> dict[str, Any]:
    """Fit, select and score linear heads on shuffled labels. Returns the entry of results.json.

    Returns:
        ``accuracy`` on shuffled labels of test rows; its ``expected`` value and ``range95`` if predictions are
        independent of labels; ``at_chance``: whether the accuracy is in the range.
    """
    own, Cs = replace(shuffled_task(task, config.seed), score_T=task.train_T), sorted({*config.Cs, made.C})
    fit = fit_heads(training_rows_of(features, own), config, Cs, basis=basis, advance=advance)
    accuracy_K, _ = Validation(features.full(), own, config).judge(fit.heads)
    best = int(accuracy_K.argmax())
    counts_CC = score(features, own, fit.heads.select([best]), own.test_N).confusion_CC
    known = own.answers(*own.rows(own.score_T, own.test_N)) != UNKNOWN
    expected, sd = by_chance(counts_CC)
    accuracy = float(counts_CC.trace() / known.sum())
    return {
        "accuracy": accuracy,
        "expected": expected,
        "range95": [max(expected - 1.96 * sd, 0.0), min(expected + 1.96 * sd, 1.0)],
        "at_chance": abs(accuracy - expected) <= 1.96 * sd,
        "C": Cs[best],
        "converged": bool(fit.only(best).converged_K.all()),
    }


def by_chance(counts_CC: csr_array) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy if labels are permuted at random.

    The number of matches is a sum over a random permutation; its moments are Hoeffding's ("A combinatorial central
    limit theorem", Annals of Mathematical Statistics 22, 1951).

    Args:
        counts_CC: confusion matrix; only its margins matter.
    """
    true_C, predicted_C = counts_CC.sum(axis=1).astype(np.float64), counts_CC.sum(axis=0).astype(np.float64)
    rows = true_C.sum()
    both = true_C @ predicted_C
    squares = both - (true_C @ predicted_C**2 + predicted_C @ true_C**2) / rows + (both / rows) ** 2
    return float(both / rows**2), float(np.sqrt(squares / max(rows - 1, 1)) / rows)
