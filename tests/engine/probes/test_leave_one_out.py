"""Leave-one-out probes: training rows, held-out sets and reported numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick

from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.evaluate import Scores, score
from substyle.engine.probes.leave_one_out import (
    LeaveOneOut,
    held_out_in_turn,
    redrawn_sets,
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


def features_of_all(table: EmbeddingTable) -> Features:
    return Features(table, standard_of(table, whole(table), 0), CPU, torch.float32)


def turned(features: Features, config: ProbeConfig, redraws: int = 0) -> LeaveOneOut:
    table = features.held.table
    return rotate(features, whole(table), 0.1, config, table.rows(2), redraws=redraws)


def alone(features: Features, config: ProbeConfig, held: list[int]) -> Scores:
    """Scores of a probe that is trained without some transformations."""
    task = whole(features.held.table)
    seen = np.setdiff1d(task.train_T, held)
    own = replace(task, train_T=seen)
    rows = TrainingRows(features, own, variant_weights(own, seen)[None])
    fit = fit_heads(rows, config, [0.1], tolerance=config.expert.tolerance / 3)
    return score(features, replace(task, score_T=np.array(held)), fit.heads, features.held.table.rows(2))


def spoilt(table: EmbeddingTable, t: int) -> EmbeddingTable:
    """The same table with training rows of transformation t replaced."""
    x_TND = table.x_TND.copy()
    x_TND[t, table.rows(0)] = x_TND[(t + 2) % len(x_TND), table.rows(0)]
    return replace(table, x_TND=x_TND)


def test_each_is_scored_by_the_probe_that_held_it_out(make_table: Make, quick: Quick) -> None:
    """Compared with separate probes on tasks without these rows."""
    table, config = make_table(style=0.7), quick(tolerance=1e-5)
    features = features_of_all(table)
    found = turned(features, config)
    assert found.turned.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert np.isnan(found.score_TN[0]).all()
    for t in range(1, 8):
        own = alone(features, config, [t]).mean_TN[t]
        assert (own == found.score_TN[t]).mean() >= 1 - 1.5 / len(own)


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
    features = features_of_all(table)
    changed = Features(spoilt(table, 2), features.standard, CPU, torch.float32)
    before, after = turned(features, config), turned(changed, config)
    assert before.turned.tolist() == [1, 2, 4, 6, 7, 8]
    np.testing.assert_array_equal(before.score_TN[1:3], after.score_TN[1:3])
    assert (before.score_TN[4] != after.score_TN[4]).any()
    entry = report_rotation(table, before, config, None)
    assert list(entry["by_transformation"]) == ["fog@1", "fog@3", "snow@2", "noise@1", "grain@1", "noise@5"]


CROSSED = (
    ("identity", "identity", "train"), ("blur_a", "blur", "train"), ("blur_b", "blur", "train"),
    ("style_wave", "style", "train"), ("style_glass", "style", "train"),
    ("style_gravel", "style", "held_out"), ("style_tissue", "style", "held_out"),
)  # fmt: skip


def test_styles_of_a_generator_are_scored_by_a_probe_that_saw_none_of_them(make_table: Make, quick: Quick) -> None:
    table, config = make_table(style=0.7, suite=CROSSED), quick(tolerance=1e-5)
    features = features_of_all(table)
    found = turned(features, config, redraws=2)
    assert found.generators == {"multistyle": [3, 4], "arbitrary": [5, 6]}
    assert len(found.redrawn_R) == 2
    entry = report_rotation(table, found, config, None)
    for generator, held in found.generators.items():
        expected = alone(features, config, held).mean_TN[held].mean()
        assert entry["generators"][generator]["accuracy"]["value"] == pytest.approx(expected, abs=0.02)
    # one generator says nothing about another
    one = make_table(style=0.7, suite=CROSSED[:-2])
    assert "generators" not in report_rotation(one, turned(features_of_all(one), config), config, None)
