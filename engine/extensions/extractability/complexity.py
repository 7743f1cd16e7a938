"""Probe complexity: accuracy of transformation and class by depth and width of the probe, and its Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from substyle.engine.extensions.extractability.config import ComplexityConfig
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.linear import Linear
from substyle.engine.probes.mlp import by_accuracy, part_of, scored_in_validation, until_settled
from substyle.engine.probes.resampling import Resampled, resample, uniform_over
from substyle.engine.probes.tasks import I64, Advance, Task, identity
from substyle.engine.probes.trainer import Validation
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads

LINEAR = "linear"


@dataclass(frozen=True)
class Sized:
    """A probe of one task and architecture.

    Attributes:
        parameters: number of weights and biases.
        validation: validation accuracy.
        converged: whether its training has converged.
        resampled: test accuracies over resamples of the test images.
    """

    parameters: int
    validation: float
    converged: bool
    resampled: Resampled


def architectures(sizes: ComplexityConfig) -> dict[str, tuple[int, int]]:
    """(depth, width) of all MLPs, by name: ``2x256`` has two hidden layers of 256 units."""
    depths = [depth for depth in sizes.depths if depth]
    return {f"{depth}x{width}": (depth, width) for depth, width in product(depths, sizes.widths)}


def settings_of(sizes: ComplexityConfig, config: ProbeConfig) -> list[Setting]:
    """The grid: learning rates and decays of every architecture, which are groups."""
    rates = list(product(config.mlp_learning_rates, config.expert.mlp_weight_decays))
    return [
        Setting(lr, decay, width, group=name, depth=depth)
        for name, (depth, width) in architectures(sizes).items()
        for lr, decay in rates
    ]


def train_sizes(
    features: Features,
    task: Task,
    linear: Linear | None,
    sizes: ComplexityConfig,
    config: ProbeConfig,
    images: I64,
    group_N: I64 | None,
    advance: Advance = lambda count: None,
) -> dict[str, Sized]:
    """Train a task with every architecture at once, and score it on test ``images``.

    Args:
        linear: linear probe of the task, the architecture of depth 0; None leaves it out.
        group_N: bootstrap groups of the test images, None for images.
    """

    def sized(heads: Heads, validation: float, converged: bool) -> Sized:
        right_TN = score(features, task, heads, images).mean_TN
        count = sum(p[0].numel() for p in heads.parameters)
        return Sized(
            count,
            validation,
            converged,
            resample(right_TN, config.bootstrap, config.seed, group_N, unit=config.resample_by),
        )

    found = {}
    if linear is not None:
        found[LINEAR] = sized(linear.heads, linear.validation, bool(linear.describe()["converged"]))
    settings = settings_of(sizes, config)
    if settings:
        judge = Validation(features, replace(task, train_T=scored_in_validation(task)), config)
        part = part_of(features, task, config)
        made = until_settled(features, [part], settings, config, config.mlp_steps, by_accuracy, [judge], advance)
        found |= {name: sized(m.heads, m.trained.validation, m.converged) for name, m in made.items()}
    return found


def report(
    table: EmbeddingTable, transformation: Mapping[str, Sized], class_: Mapping[str, Sized], sizes: ComplexityConfig
) -> dict[str, Any]:
    """Entry of results.json: numbers of every architecture by name.

    ``transformation`` is the accuracy on transformations, ``class`` and ``transformed`` on classes of original and of
    transformed photographs; ``<score>_difference`` is to the linear probe, paired. ``selected`` lists
    the tasks for which validation selects the architecture (``both``: the mean of both accuracies); ``front`` is
    whether no other one is better in one of ``transformation`` and ``class`` and at least as good in the other.
    Architectures that have not converged are neither selected nor on the front.
    """
    count, base = len(table.transformations), identity(table)
    original_T = uniform_over([base], count)
    shown = {
        "transformation": (transformation, np.ones(count)),
        "class": (class_, original_T),
        "transformed": (class_, 1.0 - original_T),
    }
    known = {LINEAR: (0, 0)} | architectures(sizes)
    rows: dict[str, dict[str, Any]] = {}
    for name in transformation:
        depth, width = known[name]
        row: dict[str, Any] = {"depth": depth, "width": width or None}
        for score_name, (sized, weight_T) in shown.items():
            estimate = sized[name].resampled.mean(weight_T)
            row[score_name] = estimate.entry()
            if LINEAR in sized and name != LINEAR:
                difference = estimate - sized[LINEAR].resampled.mean(weight_T)
                row[f"{score_name}_difference"] = difference.entry()
        for task, sized in (("transformation", transformation), ("class", class_)):
            one = sized[name]
            row |= {f"{task}_parameters": one.parameters, f"{task}_validation": one.validation}
            row[f"{task}_converged"] = one.converged
        rows[name] = row | {"selected": [], "front": False}
    trained = {n: row for n, row in rows.items() if row["transformation_converged"] and row["class_converged"]}
    for task, keys in (
        ("transformation", ("transformation",)),
        ("class", ("class",)),
        ("both", ("transformation", "class")),
    ):
        able = [n for n, row in rows.items() if all(row[f"{key}_converged"] for key in keys)]
        if able:
            rows[selected(rows, able, keys)]["selected"].append(task)
    both = {
        n: tuple(row[task] and row[task]["value"] for task in ("transformation", "class")) for n, row in trained.items()
    }
    for name in pareto_front(both):
        rows[name]["front"] = True
    return rows


def selected(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], tasks: Sequence[str]) -> str:
    """The architecture of the highest mean validation accuracy; ties go to fewer parameters."""

    def rank(name: str) -> tuple[float, int]:
        accuracies = [rows[name][f"{task}_validation"] for task in tasks]
        return float(np.mean(accuracies)), -sum(rows[name][f"{task}_parameters"] for task in tasks)

    return max(names, key=rank)


def pareto_front(points: Mapping[str, tuple[float | None, float | None]]) -> list[str]:
    """Names of the points that no other dominates: at least as high in both numbers and higher in one.

    Points with a missing number are left out; of equal points all are kept.
    """
    known = {name: point for name, point in points.items() if None not in point}

    def dominates(a: Any, b: Any) -> bool:  # noqa: ANN401 (pairs of numbers)
        return bool(a[0] >= b[0] and a[1] >= b[1] and a != b)

    return [name for name, point in known.items() if not any(dominates(other, point) for other in known.values())]
