"""The multi-task probe: one hidden layer, a transformation head and a class head; and its two single-task twins.

Loss: ``lambda / log T * transformation loss + (1 - lambda) / log C * semantic loss``, the first over rows of random
variants, the second over identity rows; half of each batch is of either kind. The twins are lambda = 1 and lambda = 0
in the same run, so that all three see exactly the same rows in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.batches import Part
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.held import Held
from substyle.engine.probes.metrics import Estimate, resample, uniform_over
from substyle.engine.probes.sampling import stream_of
from substyle.engine.probes.scoring import pick_dtype, score
from substyle.engine.probes.single import batch_size
from substyle.engine.probes.standard import Standard, standard_of
from substyle.engine.probes.tasks import Task, identity
from substyle.engine.probes.trainer import Trained, train
from substyle.engine.table import EmbeddingTable

JOINT, TWIN_FINE, TWIN_SEMANTIC = "joint", "twin-fine", "twin-semantic"


@dataclass(frozen=True)
class Multitask:
    """The trained joint probe, and the scores of it and its twins by ``fine``, ``semantic``, ``twin-fine``, ..."""

    fine: Task
    semantic: Task
    trained: dict[str, Trained]
    scores_TN: dict[str, NDArray[np.float32]]
    seeds: dict[str, list[float]]
    standard: Standard


def settings_of(fine: Task, semantic: Task, config: ProbeConfig) -> list[Setting]:
    """The grid: every lambda is a joint probe, 1 and 0 are the twins."""
    scale = math.log(len(fine.labels)), math.log(len(semantic.labels))
    made = []
    for lr, decay, width in product(config.multitask_learning_rates, config.mlp_weight_decays, config.widths):
        base = Setting(lr, decay, width)
        for lam in config.lambdas:
            loss = lam / scale[0], (1.0 - lam) / scale[1]
            made.append(replace(base, group=JOINT, loss=loss, score=(0.5, 0.5), lam=lam))
        made.append(replace(base, group=TWIN_FINE, loss=(1.0 / scale[0], 0.0), score=(1.0, 0.0), lam=1.0))
        made.append(replace(base, group=TWIN_SEMANTIC, loss=(0.0, 1.0 / scale[1]), score=(0.0, 1.0), lam=0.0))
    return made


def parts_of(fine: Task, semantic: Task, config: ProbeConfig) -> tuple[Part, Part]:
    """The two halves of each batch: variant rows for the transformation head, identity rows for the class head."""
    rows = int(fine.distinct_TN[np.ix_(fine.train_T, fine.train_N)].sum())
    half = max(1, batch_size(rows, config.batch) // 2)
    classes = len(fine.labels)
    return (
        Part(fine, stream_of(fine, config.sampling, config.seed), half, slice(0, classes)),
        Part(
            semantic,
            stream_of(semantic, config.sampling, config.seed),
            half,
            slice(classes, classes + len(semantic.labels)),
        ),
    )


def train_multitask(
    held: Held,
    fine: Task,
    semantic: Task,
    config: ProbeConfig,
    images: NDArray[np.int64],
    advance: Callable[[int], None] = lambda count: None,
) -> Multitask:
    """Train the joint probe and its twins, and score all of them on test ``images``."""
    table = held.table
    standard = standard_of(table, fine, config.seed)
    features = Features(held, standard, held.device, pick_dtype(config.precision, held.device))
    parts = parts_of(fine, semantic, config)
    trained = train(features, parts, settings_of(fine, semantic, config), config, config.multitask_steps, advance)
    scores_TN: dict[str, NDArray[np.float32]] = {}
    seeds: dict[str, list[float]] = {}
    count = len(table.transformations)
    for name, group, part in (
        ("fine", JOINT, parts[0]),
        ("semantic", JOINT, parts[1]),
        (TWIN_FINE, TWIN_FINE, parts[0]),
        (TWIN_SEMANTIC, TWIN_SEMANTIC, parts[1]),
    ):
        scored = score(features, part.task, part.outputs, trained[group].heads, images)
        scores_TN[name] = scored.mean_TN
        seeds[name] = scored.by_seed(_weight(table, part.task, count))
    return Multitask(fine, semantic, trained, scores_TN, seeds, standard)


def report_multitask(table: EmbeddingTable, joint: Multitask, config: ProbeConfig) -> dict[str, Any]:
    """The entry of results.json; ``semantic`` is the clean accuracy, on identity rows."""
    count = len(table.transformations)
    resampled = {name: resample(s, config.bootstrap, config.seed) for name, s in joint.scores_TN.items()}
    fine_T, clean_T = _weight(table, joint.fine, count), _weight(table, joint.semantic, count)
    fine, twin_fine = resampled["fine"].mean(fine_T), resampled[TWIN_FINE].mean(fine_T)
    semantic, twin_semantic = resampled["semantic"].mean(clean_T), resampled[TWIN_SEMANTIC].mean(clean_T)
    others_T = 1.0 - clean_T
    picked = joint.trained[JOINT]
    return {
        **_pair(fine, semantic),
        "obfuscated": resampled["semantic"].mean(others_T).number,
        "obfuscated_ci95": resampled["semantic"].mean(others_T).ci95,
        "lambda": picked.setting.lam,
        "seeds": {"fine": joint.seeds["fine"], "semantic": joint.seeds["semantic"]},
        "single_task": {
            **_pair(twin_fine, twin_semantic),
            "seeds": {"fine": joint.seeds[TWIN_FINE], "semantic": joint.seeds[TWIN_SEMANTIC]},
            "training": {g: joint.trained[g].describe() for g in (TWIN_FINE, TWIN_SEMANTIC)},
        },
        "difference": {
            "fine": {"value": (fine - twin_fine).number, "ci95": (fine - twin_fine).ci95},
            "semantic": {"value": (semantic - twin_semantic).number, "ci95": (semantic - twin_semantic).ci95},
        },
        **picked.describe(),
    }


def _pair(fine: Estimate, semantic: Estimate) -> dict[str, Any]:
    return {
        "fine": fine.number,
        "fine_ci95": fine.ci95,
        "semantic": semantic.number,
        "semantic_ci95": semantic.ci95,
    }


def _weight(table: EmbeddingTable, task: Task, count: int) -> NDArray[np.float64]:
    return uniform_over([identity(table)] if task.by_image else task.score_T, count)
