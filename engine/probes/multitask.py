"""The multi-task probe: one hidden layer, a transformation head and a class head; and its two single-task twins.

Loss: ``weight / log T * transformation loss + (1 - weight) / log C * semantic loss``, the first over rows of random
variants, the second over identity rows; half of each batch is of either kind. The twins have a weight of 1 and 0 in the
same run, the same grid and as many steps, so that all three see exactly the same rows in the same order. Validation
picks a setting for each by its own loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.features import Features
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.metrics import Estimate, resample, uniform_over
from substyle.engine.probes.mlp import Mlp, by_loss, part_of, until_agreed
from substyle.engine.probes.scoring import score
from substyle.engine.probes.tasks import I64, Task, identity
from substyle.engine.probes.validation import Validation
from substyle.engine.table import EmbeddingTable

JOINT, TWIN_FINE, TWIN_SEMANTIC = "joint", "twin-fine", "twin-semantic"


@dataclass(frozen=True)
class Multitask:
    """The trained joint probe and its twins, and their scores by ``fine``, ``semantic``, ``twin-fine``, ..."""

    fine: Task
    semantic: Task
    made: dict[str, Mlp]
    scores_TN: dict[str, NDArray[np.float32]]


def settings_of(fine: Task, semantic: Task, config: ProbeConfig) -> list[Setting]:
    """The grid of the joint probe and of each twin."""
    scale = math.log(len(fine.labels)), math.log(len(semantic.labels))
    weights = {JOINT: config.task_weight, TWIN_FINE: 1.0, TWIN_SEMANTIC: 0.0}
    return [
        Setting(
            lr,
            decay,
            width,
            group=group,
            loss=(weight / scale[0], (1.0 - weight) / scale[1]),
            score=(weight, 1.0 - weight),
        )
        for lr, decay, width in product(config.multitask_learning_rates, config.mlp_weight_decays, config.widths)
        for group, weight in weights.items()
    ]


def train_multitask(
    features: Features,
    fine: Task,
    semantic: Task,
    config: ProbeConfig,
    images: I64,
    advance: Callable[[int], None] = lambda count: None,
) -> Multitask:
    """Train the joint probe and its twins, and score all of them on test ``images``."""
    classes = len(fine.labels)
    outputs = slice(0, classes), slice(classes, classes + len(semantic.labels))
    half = part_of(fine, config, outputs[0], share=2).count
    asked = [
        Validation(features, fine, outputs[0], config),
        Validation(features, replace(semantic, train_T=semantic.score_T), outputs[1], config),
    ]
    made = until_agreed(
        features,
        lambda: [
            part_of(fine, config, outputs[0], share=2),
            replace(part_of(semantic, config, outputs[1]), count=half),
        ],
        settings_of(fine, semantic, config),
        config,
        config.multitask_steps,
        by_loss,
        asked,
        advance,
    )
    scored = {
        "fine": (JOINT, fine, outputs[0]),
        "semantic": (JOINT, semantic, outputs[1]),
        TWIN_FINE: (TWIN_FINE, fine, outputs[0]),
        TWIN_SEMANTIC: (TWIN_SEMANTIC, semantic, outputs[1]),
    }
    scores_TN = {
        name: score(features, task, own, made[group].trained.heads, images).mean_TN
        for name, (group, task, own) in scored.items()
    }
    return Multitask(fine, semantic, made, scores_TN)


def report_multitask(
    table: EmbeddingTable, joint: Multitask, config: ProbeConfig, group_N: I64 | None
) -> dict[str, Any]:
    """The entry of results.json; ``semantic`` is the clean accuracy, on identity rows."""
    count = len(table.transformations)
    resampled = {name: resample(s, config.bootstrap, config.seed, group_N) for name, s in joint.scores_TN.items()}
    fine_T, clean_T = uniform_over(joint.fine.score_T, count), uniform_over([identity(table)], count)
    fine, twin_fine = resampled["fine"].mean(fine_T), resampled[TWIN_FINE].mean(fine_T)
    semantic, twin_semantic = resampled["semantic"].mean(clean_T), resampled[TWIN_SEMANTIC].mean(clean_T)
    obfuscated = resampled["semantic"].mean(1.0 - clean_T)
    twins = {group: joint.made[group].describe() for group in (TWIN_FINE, TWIN_SEMANTIC)}
    return {
        **_pair(fine, semantic),
        "obfuscated": obfuscated.number,
        "obfuscated_ci95": obfuscated.ci95,
        "task_weight": config.task_weight,
        "single_task": {**_pair(twin_fine, twin_semantic), "training": twins},
        "difference": {"fine": _difference(fine - twin_fine), "semantic": _difference(semantic - twin_semantic)},
        **joint.made[JOINT].describe(),
        "converged": all(mlp.converged for mlp in joint.made.values()),
    }


def _pair(fine: Estimate, semantic: Estimate) -> dict[str, Any]:
    return {
        "fine": fine.number,
        "fine_ci95": fine.ci95,
        "semantic": semantic.number,
        "semantic_ci95": semantic.ci95,
    }


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.number, "ci95": estimate.ci95, "ci90": estimate.ci90}
