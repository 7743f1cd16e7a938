"""MLP and multi-task probes, retrained with twice the steps until that raises the accuracy no further."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.batches import BatchPart, Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.heads import Setting, grid
from substyle.engine.probes.resampling import DIFFERENCE, resample, uniform_over
from substyle.engine.probes.tasks import F64, I64, Advance, Task, identity, stream_of
from substyle.engine.probes.trainer import Trained, Validation, train
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads

_STEPS_PER_EPOCH = 16  # minimum; limits the batch size
Rank = Callable[[Trained], tuple[float, ...]]


@dataclass(frozen=True)
class Mlp:
    """A trained MLP and its convergence.

    Attributes:
        trained: of all trainings of the selected setting, that of the highest validation accuracy on the rows of its
            tasks, those of original photographs for classes.
        steps: steps of the longest training.
        gain: validation accuracy of that training minus that with half the steps, the largest over tasks; of classes on
            all scored transformations.
        converged: whether the training has arrived, and the gain is negative or within the tolerance.
        resampled: heads trained on resampled photographs with as many steps; None without any.
    """

    trained: Trained
    steps: int
    gain: float
    converged: bool
    resampled: Heads | None = None

    @property
    def heads(self) -> Heads:
        """The heads trained on all training photographs."""
        return self.trained.heads

    def describe(self) -> dict[str, Any]:
        """Training fields of results.json."""
        return self.trained.describe() | {
            "converged": self.converged,
            "certificate": {"steps": self.steps, "gain": self.gain},
        }


def by_accuracy(trained: Trained) -> tuple[float, ...]:
    """Rank by validation accuracy, ties by lower loss."""
    return trained.validation, -trained.loss


def by_loss(trained: Trained) -> tuple[float, ...]:
    """Rank by lower validation loss."""
    return (-trained.loss,)


def batch_size(rows: int, most: int) -> int:
    """Batch size for at least 16 batches per epoch, between 32 rows (or all rows) and ``most``."""
    return min(most, max(rows // _STEPS_PER_EPOCH, min(rows, 32)))


def part_of(features: Features, task: Task, config: ProbeConfig, share: int = 1) -> BatchPart:
    """The part of batches for a task: ``1 / share`` of the batch size."""
    rows = int(task.distinct_TN[np.ix_(task.train_T, task.train_N)].sum())
    count = max(1, batch_size(rows, config.expert.batch) // share)
    stream = stream_of(task, config.seed, features.held.drawn_on)
    return BatchPart(task, stream, count)


def train_mlp(
    features: Features,
    task: Task,
    config: ProbeConfig,
    times_SN: NDArray[np.float64] | None = None,
    advance: Advance = lambda count: None,
    *,
    settings: Sequence[Setting] = (),
) -> Mlp:
    """Train the MLP of a task, or heads of another grid of settings.

    Args:
        times_SN: as in :func:`substyle.engine.probes.linear.fit_linear`.
        settings: grid; default: that of ``config``.
    """
    settings = settings or grid(config)
    judge = Validation(features, replace(task, train_T=scored_in_validation(task)), config)
    part = part_of(features, task, config)
    each = until_settled(features, [part], settings, config, config.mlp_steps, by_accuracy, [judge], advance)
    found = each[""]
    resampled = []
    for s, times_N in enumerate([] if times_SN is None else times_SN):
        drawn = replace(task, train_N=np.repeat(np.arange(len(times_N)), times_N.astype(np.int64)))
        setting, steps = found.trained.setting, found.trained.steps
        stream = stream_of(drawn, config.seed + s + 1, features.held.drawn_on)
        own = [replace(part, stream=stream)]
        made = train(features, own, [setting], config, steps, seeds=[config.seed + s + 1], advance=advance)
        resampled.append(made[setting].heads)
    return replace(found, resampled=_stacked(resampled) if resampled else None)


def until_settled(
    features: Features,
    parts: Sequence[BatchPart],
    settings: Sequence[Setting],
    config: ProbeConfig,
    steps: int,
    rank: Rank,
    judges: Sequence[Validation],
    advance: Advance,
) -> dict[str, Mlp]:
    """Train all settings, then retrain the best of each group with twice the steps until that no longer helps.

    Each group keeps the training of the highest validation accuracy (`by_accuracy`): longer ones may overfit. Stops
    after ``config.expert.doublings``, or when gains stop shrinking.

    Args:
        parts: parts of each batch; every training starts at their first rows.
        steps: steps of the first training.
        rank: key to select the best setting (maximum).
        judges: validation rows of each part, on which a longer training must not gain.
    """
    made = train(features, parts, settings, config, steps, advance=advance)
    groups = dict.fromkeys(s.group for s in settings)
    last = {g: max((t for s, t in made.items() if s.group == g), key=rank) for g in groups}
    best, found = dict(last), dict[str, Mlp]()
    gains = dict.fromkeys(groups, math.inf)
    for _ in range(config.expert.doublings):
        steps *= 2
        again = train(features, parts, [t.setting for t in last.values()], config, steps, advance=advance)
        for g, before in last.items():
            now = again[before.setting]
            pairs = [
                v.difference(now.heads, before.heads) for v, w in zip(judges, now.setting.loss, strict=True) if w > 0
            ]
            best[g] = max(now, best[g], key=by_accuracy)
            settled = now.arrived(before) and all(agree or difference < 0 for difference, agree in pairs)
            found[g] = Mlp(best[g], steps, max(difference for difference, _ in pairs), settled)
        going = {g: mlp.gain for g, mlp in found.items() if g in last and not mlp.converged and mlp.gain < gains[g]}
        if not going:
            break
        last, gains = {g: again[last[g].setting] for g in going}, going
    return found


def scored_in_validation(task: Task) -> NDArray[np.int64]:
    """Transformations on which trainings are compared: scored ones for class tasks, else training ones."""
    return task.score_T if task.by_image else task.train_T


def _stacked(heads: Sequence[Heads]) -> Heads:
    return heads[0].like([torch.cat(parts) for parts in zip(*(each.parameters for each in heads), strict=True)])


# The multi-task probe has one hidden layer, a transformation head and a class head.
#
# Loss: ``weight / log T * transformation loss + (1 - weight) / log C * class loss``, the first over random variants,
# the second over identity rows, half of each batch each. Its single-task twins have weights 1 and 0; all three are
# trained together on the same rows, grid and first steps. Each selects its setting by its own validation loss.

JOINT, TWIN_TRANSFORMATION, TWIN_CLASS = "joint", "twin-transformation", "twin-class"


@dataclass(frozen=True)
class Multitask:
    """The trained joint probe and its twins, with scores by ``transformation``, ``class``, ``twin-class``, ..."""

    transformation: Task
    class_: Task
    made: dict[str, Mlp]
    scores_TN: dict[str, NDArray[np.float32]]


def settings_of(transformation: Task, class_: Task, config: ProbeConfig) -> list[Setting]:
    """Grid of the joint probe and its twins."""
    scale = math.log(len(transformation.labels)), math.log(len(class_.labels))
    weights = {JOINT: config.task_weight, TWIN_TRANSFORMATION: 1.0, TWIN_CLASS: 0.0}
    return [
        Setting(
            lr,
            decay,
            width,
            group=group,
            loss=(weight / scale[0], (1.0 - weight) / scale[1]),
            score=(weight, 1.0 - weight),
        )
        for lr, decay, width in product(config.multitask_learning_rates, config.expert.mlp_weight_decays, config.widths)
        for group, weight in weights.items()
    ]


def train_joint(
    features: Features,
    transformation: Task,
    class_: Task,
    config: ProbeConfig,
    settings: Sequence[Setting],
    advance: Advance = lambda count: None,
) -> dict[str, Mlp]:
    """Train MLPs on both tasks, half of each batch each; returns the selected one of each group of settings."""
    class_ = replace(class_, first=len(transformation.labels))
    half = part_of(features, transformation, config, share=2)
    judges = [
        Validation(features, transformation, config),
        Validation(features, replace(class_, train_T=class_.score_T), config),
    ]
    return until_settled(
        features,
        [half, replace(part_of(features, class_, config), count=half.count)],
        settings,
        config,
        config.multitask_steps,
        by_loss,
        judges,
        advance,
    )


def train_multitask(
    features: Features,
    transformation: Task,
    class_: Task,
    config: ProbeConfig,
    images: I64,
    advance: Advance = lambda count: None,
) -> Multitask:
    """Train the joint probe and its twins and score them on test ``images``."""
    made = train_joint(features, transformation, class_, config, settings_of(transformation, class_, config), advance)
    class_ = replace(class_, first=len(transformation.labels))
    scored = {
        "transformation": (JOINT, transformation),
        "class": (JOINT, class_),
        TWIN_TRANSFORMATION: (TWIN_TRANSFORMATION, transformation),
        TWIN_CLASS: (TWIN_CLASS, class_),
    }
    scores_TN = {
        name: score(features, task, made[group].heads, images).mean_TN for name, (group, task) in scored.items()
    }
    return Multitask(transformation, class_, made, scores_TN)


def report_multitask(
    table: EmbeddingTable, joint: Multitask, config: ProbeConfig, group_N: I64 | None
) -> dict[str, Any]:
    """Entry of results.json; ``class`` is the accuracy on original photographs."""
    count = len(table.transformations)
    given, unit = (config.bootstrap, config.seed, group_N), table.unit_of(config.resample_by)
    resampled = {name: resample(s, *given, unit=unit) for name, s in joint.scores_TN.items()}
    transformation_T, original_T = (
        uniform_over(joint.transformation.score_T, count),
        uniform_over([identity(table)], count),
    )
    transformation, twin_transformation = (
        resampled["transformation"].mean(transformation_T),
        resampled[TWIN_TRANSFORMATION].mean(transformation_T),
    )
    class_, twin_class = resampled["class"].mean(original_T), resampled[TWIN_CLASS].mean(original_T)
    transformed = resampled["class"].mean(1.0 - original_T)
    twins = {group: joint.made[group].describe() for group in (TWIN_TRANSFORMATION, TWIN_CLASS)}

    def of_twin(task: str, twin: str, weight_T: F64) -> dict[str, Any] | None:
        apart_TN = joint.scores_TN[task] - joint.scores_TN[twin]
        mean = resample(apart_TN, *given, bounds=DIFFERENCE, unit=unit).mean(weight_T)
        return mean.entry(ci90=mean.ci90)

    return {
        "transformation": transformation.entry(),
        "class": class_.entry(),
        "transformed": transformed.entry(),
        "task_weight": config.task_weight,
        "single_task": {"transformation": twin_transformation.entry(), "class": twin_class.entry(), "training": twins},
        "difference": {
            "transformation": of_twin("transformation", TWIN_TRANSFORMATION, transformation_T),
            "class": of_twin("class", TWIN_CLASS, original_T),
        },
        **joint.made[JOINT].describe(),
        "converged": all(mlp.converged for mlp in joint.made.values()),
    }
