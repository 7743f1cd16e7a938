"""The fine, coarse and semantic probes: one task, one head, a grid of settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.batches import Part
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.heads import grid
from substyle.engine.probes.held import Held
from substyle.engine.probes.metrics import Estimate, Resampled, balanced_over, resample, uniform_over
from substyle.engine.probes.sampling import stream_of
from substyle.engine.probes.scoring import Scores, pick_dtype, score
from substyle.engine.probes.standard import Standard, standard_of
from substyle.engine.probes.tasks import Task, identity
from substyle.engine.probes.trainer import Trained, train
from substyle.engine.table import EmbeddingTable

_STEPS_PER_EPOCH = 16  # at least, by smaller batches


@dataclass(frozen=True)
class Single:
    """A trained and scored single-task probe."""

    task: Task
    trained: Trained
    scores: Scores
    standard: Standard


def batch_size(rows: int, most: int) -> int:
    """Rows of a batch: at least 16 batches an epoch, between 32 rows (or all there are) and ``most``."""
    return min(most, max(rows // _STEPS_PER_EPOCH, min(rows, 32)))


def train_single(
    held: Held,
    task: Task,
    head: str,
    config: ProbeConfig,
    images: NDArray[np.int64],
    advance: Callable[[int], None] = lambda count: None,
) -> Single:
    """Train the head's grid on a task and score the picked setting on test ``images``."""
    standard = standard_of(held.table, task, config.seed)
    features = Features(held, standard, held.device, pick_dtype(config.precision, held.device))
    rows = int(task.distinct_TN[np.ix_(task.train_T, task.train_N)].sum())
    outputs = slice(0, len(task.labels))
    stream = stream_of(task, config.sampling, config.seed)
    part = Part(task, stream, batch_size(rows, config.batch), outputs)
    steps = config.steps if head == "linear" else config.mlp_steps
    trained = train(features, [part], grid(config, head), config, steps, advance)[""]
    return Single(task, trained, score(features, task, outputs, trained.heads, images), standard)


def report(table: EmbeddingTable, single: Single, config: ProbeConfig) -> dict[str, Any]:
    """The entry of results.json for a task and head."""
    resampled = resample(single.scores.mean_TN, config.bootstrap, config.seed)
    make = {"fine": _fine, "coarse": _coarse, "semantic": _semantic}[single.task.name]
    return make(table, single, resampled) | single.trained.describe() | {"chance": single.task.chance}


def _fine(table: EmbeddingTable, single: Single, resampled: Resampled) -> dict[str, Any]:
    weight = uniform_over(single.task.score_T, len(table.transformations))
    estimate = resampled.mean(weight)
    return {
        "accuracy": estimate.number,
        "ci95": estimate.ci95,
        "by_transformation": _plain(table, single.task, resampled),
        "confusion": single.scores.confusion(),
        "seeds": single.scores.by_seed(weight),
    }


@dataclass(frozen=True)
class CoarseWeights:
    """Weights that make seen and held-out accuracy from the accuracies of T transformations.

    Both are means over the same coarse classes of the mean over a class's transformations: those that have seen and
    held-out ones, or all but identity's where nothing is held out (then ``held_out_T`` is None).
    """

    seen_T: NDArray[np.float64]
    held_out_T: NDArray[np.float64] | None


def coarse_weights(transformations: tuple[str, ...], coarse: tuple[str, ...], roles: tuple[str, ...]) -> CoarseWeights:
    """Weights for a suite. With nothing but identity seen, its accuracy stands for the seen one."""
    seen = [t for t, role in enumerate(roles) if role == "train" and transformations[t] != "identity"]
    held_out = [t for t, role in enumerate(roles) if role == "held_out"]
    both = sorted({coarse[t] for t in seen} & {coarse[t] for t in held_out})
    if both:
        return CoarseWeights(balanced_over(seen, coarse, both), balanced_over(held_out, coarse, both))
    return CoarseWeights(balanced_over(seen, coarse, sorted({coarse[t] for t in seen})), None)


def _coarse(table: EmbeddingTable, single: Single, resampled: Resampled) -> dict[str, Any]:
    weights = coarse_weights(table.transformations, table.coarse, table.roles)
    seen = resampled.mean(weights.seen_T)
    nothing = Estimate(float("nan"), np.empty(0))
    held_out = nothing if weights.held_out_T is None else resampled.mean(weights.held_out_T)
    gap = nothing if weights.held_out_T is None else seen - held_out
    return {
        "seen": seen.number,
        "seen_ci95": seen.ci95,
        "held_out": held_out.number,
        "held_out_ci95": held_out.ci95,
        "gap": gap.number,
        "gap_ci95": gap.ci95,
        "by_transformation": {
            name: {
                "accuracy": resampled.one(t).number,
                "ci95": resampled.one(t).ci95,
                "role": table.roles[t],
                "coarse": table.coarse[t],
            }
            for t, name in enumerate(table.transformations)
        },
        "confusion": single.scores.confusion(),
        "seeds": single.scores.by_seed(weights.seen_T),
        "held_out_seeds": None if weights.held_out_T is None else single.scores.by_seed(weights.held_out_T),
    }


def _semantic(table: EmbeddingTable, single: Single, resampled: Resampled) -> dict[str, Any]:
    base = identity(table)
    others = [t for t in range(len(table.transformations)) if t != base]
    clean = resampled.one(base)
    obfuscated = resampled.mean(uniform_over(others, len(table.transformations)))
    return {
        "clean": clean.number,
        "clean_ci95": clean.ci95,
        "obfuscated": obfuscated.number,
        "obfuscated_ci95": obfuscated.ci95,
        "by_transformation": _plain(table, single.task, resampled),
        "confusion": single.scores.confusion(),
        "seeds": single.scores.by_seed(uniform_over([base], len(table.transformations))),
    }


def _plain(table: EmbeddingTable, task: Task, resampled: Resampled) -> dict[str, float | None]:
    return {table.transformations[t]: resampled.one(t).number for t in task.score_T}
