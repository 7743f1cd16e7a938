"""Leave-one-out probes: training rows, held-out sets and reported numbers."""

from __future__ import annotations

from dataclasses import replace

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


STYLED = (
    ("identity", "identity", "train"), ("blur_a", "blur", "train"), ("blur_b", "blur", "held_out"),
    ("style_a", "style", "train"), ("style_b", "style", "train"),
)  # fmt: skip


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
