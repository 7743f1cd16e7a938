"""Leave-one-out probes: training rows, held-out sets and reported numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick

from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import Standardizer, standard_of
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.leave_one_out import (
    LeaveOneOut,
    held_out_in_turn,
    redrawn_sets,
    report_redrawn,
    report_rotation,
    rotate,
    whole_task,
)
from substyle.engine.probes.linear import fit_heads, variant_weights
from substyle.engine.probes.tasks import Task
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.store.table import EmbeddingTable

pytestmark = pytest.mark.usefixtures("one_thread")


def whole(table: EmbeddingTable) -> Task:
    task = whole_task(table, 0)
    assert task is not None
    return task


def turned(
    table: EmbeddingTable, config: ProbeConfig, standard: Standardizer | None = None, redraws: int = 0
) -> LeaveOneOut:
    task = whole(table)
    features = Features(table, standard or standard_of(table, task, 0), CPU, torch.float32)
    return rotate(features, task, 0.1, config, table.rows(2), redraws=redraws)


def spoilt(table: EmbeddingTable, t: int) -> EmbeddingTable:
    """The same table with training rows of transformation t replaced."""
    x_TND = table.x_TND.copy()
    x_TND[t, table.rows(0)] = x_TND[(t + 2) % len(x_TND), table.rows(0)]
    return replace(table, x_TND=x_TND)


def test_a_head_depends_on_no_row_of_what_it_holds_out(make_table: Make, quick: Quick) -> None:
    """Bit-identical: held-out rows have no weight, and fits start at zero."""
    table = make_table(style=1.0)
    task, config = whole(table), quick(tolerance=1e-5)
    standard = standard_of(table, task, 0)
    weight_T = variant_weights(task, np.setdiff1d(task.train_T, [4]))

    def fitted(table: EmbeddingTable) -> torch.Tensor:
        features = Features(table, standard, CPU, torch.float32)
        return fit_heads(TrainingRows(features, task, weight_T[None]), config, [0.1]).heads.w1

    assert torch.equal(fitted(table), fitted(spoilt(table, 4)))
    assert not torch.equal(fitted(table), fitted(spoilt(table, 2)))


@pytest.mark.parametrize("t", [2, 4])
def test_scores_depend_on_no_training_row_of_what_is_held_out(make_table: Make, quick: Quick, t: int) -> None:
    """With fixed standardisation; other scores do depend on these rows."""
    table, config = make_table(style=0.7), quick(tolerance=1e-5)
    standard = standard_of(table, whole(table), 0)
    before, after = turned(table, config, standard), turned(spoilt(table, t), config, standard)
    np.testing.assert_array_equal(before.score_TN[t], after.score_TN[t])
    other = {2: 1, 4: 5}[t]  # of the same kind
    assert (before.score_TN[other] != after.score_TN[other]).any()


def test_each_is_scored_by_the_probe_that_held_it_out(make_table: Make, quick: Quick) -> None:
    """Compared with separate probes on tasks without these rows."""
    table, config = make_table(style=0.7), quick(tolerance=1e-5)
    task = whole(table)
    standard = standard_of(table, task, 0)
    features = Features(table, standard, CPU, torch.float32)
    found = turned(table, config, standard)
    images = table.rows(2)
    assert found.turned.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for t in range(8):
        if t == 0:
            assert np.isnan(found.score_TN[t]).all()
            continue
        seen = np.setdiff1d(task.train_T, [t])
        own = replace(task, train_T=seen)
        alone = fit_heads(
            TrainingRows(features, own, variant_weights(own, seen)[None]),
            config,
            [0.1],
            tolerance=config.expert.tolerance / 3,
        )
        picked = score(features, replace(task, score_T=np.array([t])), alone.heads, images)
        assert (picked.mean_TN[t] == found.score_TN[t]).mean() >= 1 - 1.5 / len(images)


def test_what_can_be_held_out(make_table: Make) -> None:
    """Independent of roles; the only transformation of a class is never held out."""
    table = make_table()
    assert np.array_equal(held_out_in_turn(table, whole(table)), [[1], [2], [3], [4], [5], [6], [7]])
    suite = (("identity", "identity", "train"), ("blur_a", "blur", "train"), ("noise_a", "noise", "held_out"))
    assert whole_task(make_table(suite=suite), 0) is None
    suite = (*suite, ("noise_b", "noise", "held_out"))
    table = make_table(suite=suite)
    assert np.array_equal(held_out_in_turn(table, whole(table)), [[2], [3]])


SEVERITIES = (
    ("identity", "identity", "train"), ("fog@1", "weather", "train"), ("fog@3", "weather", "train"),
    ("blur@1", "blur", "train"), ("snow@2", "weather", "train"), ("blur@2", "blur", "train"),
    ("noise@1", "noise", "held_out"), ("grain@1", "noise", "train"), ("noise@5", "noise", "held_out"),
)  # fmt: skip


def test_severities_are_held_out_together(make_table: Make, quick: Quick) -> None:
    """No severity of what a probe holds out is in its training rows, and a class of one transformation stays whole."""
    table, config = make_table(style=0.7, suite=SEVERITIES), quick(tolerance=1e-5)
    task = whole(table)
    assert [own.tolist() for own in held_out_in_turn(table, task)] == [[1, 2], [4], [6, 8], [7]]
    sets = redrawn_sets(table, task, 40, 0)
    assert {tuple(held.tolist()) for held in sets} == {(6, 8), (7,)}  # the only class with something held out
    none = make_table(suite=SEVERITIES, roles=("train",) * 9)
    drawn = {tuple(held.tolist()) for held in redrawn_sets(none, whole(none), 40, 0)}
    assert drawn == {(1, 2, 6, 8), (1, 2, 7), (4, 6, 8), (4, 7)}
    standard = standard_of(table, task, 0)
    before, after = turned(table, config, standard), turned(spoilt(table, 2), config, standard)
    assert before.turned.tolist() == [1, 2, 4, 6, 7, 8]
    np.testing.assert_array_equal(before.score_TN[1:3], after.score_TN[1:3])
    assert (before.score_TN[4] != after.score_TN[4]).any()
    entry = report_rotation(table, before, config, None)
    assert list(entry["by_transformation"]) == ["fog@1", "fog@3", "snow@2", "noise@1", "grain@1", "noise@5"]


def test_redrawn_sets(make_table: Make) -> None:
    """As many per kind as the suite holds out, determined by the seed."""
    table = make_table()
    sets = redrawn_sets(table, whole(table), 60, 0)
    assert len(sets) == 60
    for held in sets:
        assert sorted(table.kind[t] for t in held) == ["blur", "noise"]
        assert (np.diff(held) > 0).all()
    assert {tuple(held) for held in sets} == {(a, b) for a in (1, 2, 3) for b in (4, 5)}
    again, other = (redrawn_sets(table, whole(table), 60, seed) for seed in (0, 1))
    assert all(map(np.array_equal, sets, again))
    assert not all(map(np.array_equal, sets, other))
    assert all(map(np.array_equal, sets[:5], redrawn_sets(table, whole(table), 5, 0)))


def test_one_of_each_class_at_least_stays(make_table: Make) -> None:
    """Also if the suite holds out all of a class; one per class if it holds out none."""
    roles = ("train", "held_out", "held_out", "held_out", "train", "train", "train", "train")
    table = make_table(roles=roles)
    for held in redrawn_sets(table, whole(table), 30, 0):
        assert len(held) == 2
        assert set(held) < {1, 2, 3}
    table = make_table(roles=("train",) * 8)
    for held in redrawn_sets(table, whole(table), 30, 0):
        assert sorted(table.kind[t] for t in held) == ["blur", "noise", "tone"]


STYLED = (
    ("identity", "identity", "train"), ("blur_a", "blur", "train"), ("blur_b", "blur", "held_out"),
    ("style_a", "style", "train"), ("style_b", "style", "train"),
)  # fmt: skip


@pytest.mark.parametrize("suite", [STYLED, None])
def test_the_report_of_a_rotation(make_table: Make, quick: Quick, suite: tuple[tuple[str, str, str], ...]) -> None:
    """Means over held-out transformations and over styles; null without styles."""
    table = make_table(style=0.7, **({"suite": suite} if suite else {}))
    config = quick()
    found = turned(table, config)
    entry = json.loads(json.dumps(report_rotation(table, found, config, None), allow_nan=False))
    scores = {"accuracy", "balanced", "styles"}
    assert entry.keys() == {*scores, "by_transformation", "converged", "certificate"}
    for name in scores - (set() if suite else {"styles"}):
        assert entry[name].keys() == {"value", "low", "high", "n", "unit", "one_way", "se"}  # none of training
    by = {name: one["accuracy"]["value"] for name, one in entry["by_transformation"].items()}
    assert list(by) == [table.transformations[t] for t in found.turned]
    for name, each in entry["by_transformation"].items():
        t, one = table.transformations.index(name), each["accuracy"]
        assert one["value"] == pytest.approx(float(found.score_TN[t].mean()))
        assert one["low"] <= one["value"] <= one["high"]
    accuracy, balanced = entry["accuracy"], entry["balanced"]
    assert accuracy["value"] == pytest.approx(np.mean(list(by.values())))
    assert accuracy["one_way"][0] < accuracy["value"] < accuracy["one_way"][1]
    assert accuracy["high"] - accuracy["low"] > np.diff(accuracy["one_way"])
    classes: dict[str, list[float]] = {}
    for name, one in by.items():
        classes.setdefault(table.kind[table.transformations.index(name)], []).append(one)
    assert balanced["value"] == pytest.approx(np.mean([np.mean(each) for each in classes.values()]))
    assert balanced["high"] - balanced["low"] > np.diff(balanced["one_way"])
    if suite:
        assert entry["styles"]["value"] == pytest.approx((by["style_a"] + by["style_b"]) / 2)
    else:
        assert entry["styles"] is None
    assert entry["converged"] is True
    assert entry["certificate"].keys() == {"gradient", "tolerance", "iterations", "difference"}


def test_the_report_of_redrawn_sets(make_table: Make, quick: Quick) -> None:
    """The accuracy of a set is the mean over its classes, by a probe trained without it."""
    table, config = make_table(style=0.7), quick(tolerance=1e-5)
    task, images = whole(table), table.rows(2)
    found = turned(table, config, redraws=3)
    entry: Any = json.loads(json.dumps(report_redrawn(found), allow_nan=False))
    expected = []
    features = Features(table, standard_of(table, task, 0), CPU, torch.float32)
    for held in redrawn_sets(table, task, 3, config.seed):
        seen = np.setdiff1d(task.train_T, held)
        alone = fit_heads(
            TrainingRows(features, task, variant_weights(task, seen)[None]),
            config,
            [0.1],
            tolerance=config.expert.tolerance / 3,
        )
        scores = score(features, replace(task, score_T=held), alone.heads, images)
        expected.append(np.mean([np.mean(scores.mean_TN[t]) for t in held]))  # one of blur, one of noise
    assert entry["accuracies"] == pytest.approx(expected, abs=1.5 / len(images))
    accuracies = entry["accuracies"]
    assert entry == {
        "sets": 3,
        "transformations": 2,
        "mean": pytest.approx(np.mean(accuracies)),
        "sd": pytest.approx(np.std(accuracies, ddof=1)),
        "low": min(accuracies),
        "high": max(accuracies),
        "accuracies": accuracies,
    }
    assert report_redrawn(replace(found, redrawn_R=[])) is None
    one = report_redrawn(replace(found, redrawn_R=[0.25]))
    assert one is not None
    assert (one["sd"], one["mean"]) == (None, 0.25)


def test_fits_that_do_not_agree_are_not_converged(make_table: Make, quick: Quick) -> None:
    config = quick(doublings=4)
    found = turned(make_table(), config)
    assert found.describe(config.expert.tolerance)["converged"] is True
    assert replace(found, difference=-0.006).describe(config.expert.tolerance)["converged"] is False
    assert found.describe(0.0)["converged"] is False


CROSSED = (
    ("identity", "identity", "train"), ("blur_a", "blur", "train"), ("blur_b", "blur", "train"),
    ("style_wave", "style", "train"), ("style_glass", "style", "train"),
    ("style_gravel", "style", "held_out"), ("style_tissue", "style", "held_out"),
)  # fmt: skip


def test_styles_of_a_generator_are_scored_by_a_probe_that_saw_none_of_them(make_table: Make, quick: Quick) -> None:
    table, config = make_table(style=0.7, suite=CROSSED), quick(tolerance=1e-5)
    task = whole(table)
    standard = standard_of(table, task, 0)
    found = turned(table, config, standard, redraws=2)
    assert found.generators == {"multistyle": [3, 4], "arbitrary": [5, 6]}
    entry = report_rotation(table, found, config, None)
    for generator, held in found.generators.items():
        seen = np.setdiff1d(task.train_T, held)
        own = replace(task, train_T=seen)
        features = Features(table, standard, CPU, torch.float32)
        alone = fit_heads(
            TrainingRows(features, own, variant_weights(own, seen)[None]),
            config,
            [0.1],
            tolerance=config.expert.tolerance / 3,
        )
        picked = score(features, replace(task, score_T=np.array(held)), alone.heads, table.rows(2))
        expected = float(np.mean([picked.mean_TN[t].mean() for t in held]))
        assert entry["generators"][generator]["accuracy"]["value"] == pytest.approx(expected, abs=0.02)
    # one generator says nothing about another, and all else stays as it is
    alone_table = make_table(style=0.7, suite=STYLED)
    assert "generators" not in report_rotation(alone_table, turned(alone_table, config), config, None)
    assert len(found.redrawn_R) == 2
