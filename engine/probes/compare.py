"""Differences between backbones and between heads, paired by image."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.metrics import resample, uniform_over
from substyle.engine.probes.outcome import ProbeOutcome
from substyle.engine.probes.single import coarse_weights

F64 = NDArray[np.float64]


def compare_outcomes(outcomes: Mapping[str, ProbeOutcome]) -> list[dict[str, Any]]:
    """The ``comparisons`` of results.json: every pair of backbones once for each task, metric and head, a minus b.

    For each backbone also its MLP minus its linear head on the fine task, as head ``mlp-linear`` with a = b.
    ``metric`` is accuracy (fine), held_out or seen (coarse), clean or obfuscated (semantic), fine or semantic
    (multitask). Images and transformations that only one of the two has are left out; without a common row a pair is
    left out.
    """
    rows: list[dict[str, Any]] = []
    for (name_a, a), (name_b, b) in combinations(outcomes.items(), 2):
        for score_name in a.scores:
            if score_name in b.scores and "/twin-" not in score_name:
                task, head = score_name.split("/")
                for metric, weight_T in _metrics(a, task, head).items():
                    label = "mlp" if task == "multitask" else head
                    rows += _row(task, label, metric, (name_a, a, score_name), (name_b, b, score_name), weight_T)
    for name, outcome in outcomes.items():
        if {"fine/mlp", "fine/linear"} <= outcome.scores.keys():
            weight_T = _metrics(outcome, "fine", "mlp")["accuracy"]
            sides = (name, outcome, "fine/mlp"), (name, outcome, "fine/linear")
            rows += _row("fine", "mlp-linear", "accuracy", *sides, weight_T)
    return rows


def _metrics(outcome: ProbeOutcome, task: str, head: str) -> dict[str, F64]:
    count = len(outcome.transformations)
    every = uniform_over(range(count), count)
    base = uniform_over([outcome.transformations.index("identity")], count)
    if task == "coarse":
        weights = coarse_weights(outcome.transformations, outcome.coarse, outcome.roles)
        held_out = {} if weights.held_out_T is None else {"held_out": weights.held_out_T}
        return held_out | {"seen": weights.seen_T}
    if task == "semantic":
        return {"clean": base, "obfuscated": every - base}
    if task == "multitask":
        return {head: base if head == "semantic" else every}
    return {"accuracy": every}


def _row(
    task: str,
    head: str,
    metric: str,
    side_a: tuple[str, ProbeOutcome, str],
    side_b: tuple[str, ProbeOutcome, str],
    weight_T: F64,
) -> list[dict[str, Any]]:
    (name_a, a, score_a), (name_b, b, score_b) = side_a, side_b
    place_b = {key: n for n, key in enumerate(b.keys)}
    common = [(n, place_b[key]) for n, key in enumerate(a.keys) if key in place_b]
    shared = [t for t, name in enumerate(a.transformations) if name in b.transformations]
    if not common or not shared:
        return []
    n_a, n_b = np.array(common).T
    t_b = [b.transformations.index(a.transformations[t]) for t in shared]
    left = a.scores[score_a][np.ix_(shared, n_a)]
    right = b.scores[score_b][np.ix_(t_b, n_b)]
    uncounted = ~(np.isfinite(left) & np.isfinite(right))
    weight = weight_T[shared]
    means = [resample(np.where(uncounted, np.nan, score), a.bootstrap, a.seed).mean(weight) for score in (left, right)]
    difference = means[0] - means[1]
    if difference.number is None:
        return []
    row = {"task": task, "metric": metric, "head": head, "a": name_a, "b": name_b}
    return [row | {"difference": difference.number, "ci95": difference.ci95}]
