"""Scores on validation rows, and agreement of two trainings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick

from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.tasks import Task, kind_task, transformation_task
from substyle.engine.probes.trainer import Validation
from substyle.engine.store.table import EmbeddingTable

pytestmark = pytest.mark.usefixtures("one_thread")


def made(table: EmbeddingTable, task: Task | None, config: ProbeConfig) -> Validation:
    assert task is not None
    features = Features(table, standard_of(table, task, 0), CPU, torch.float32)
    return Validation(features, task, config)


def test_kind_labels_count_alike(make_table: Make, quick: Quick) -> None:
    table = make_table()
    task = kind_task(table, 0)
    assert task is not None
    validation = made(table, task, quick())
    sums = torch.zeros(len(task.labels), dtype=torch.float64).index_add_(0, validation.answers, validation.weight)
    np.testing.assert_allclose(sums[sums > 0], 1.0 / int((sums > 0).sum()))
    assert len(set(torch.bincount(validation.answers).tolist())) > 1


@pytest.mark.parametrize(
    ("rows", "gains", "losses", "agree"),
    [
        (1000, 5, 0, True),  # half a point
        (1000, 6, 0, False),  # six rows of 1000: 0.6 points, of which one standard error is 0.24
        (1000, 20, 14, False),  # 0.6 points, of which one standard error is 0.58
        (1000, 30, 24, True),  # 0.6 points, of which one standard error is 0.73
        (100, 1, 0, True),  # a single row
        (100, 2, 0, False),
    ],
)
def test_half_a_point_or_one_standard_error(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch, rows: int, gains: int, losses: int, agree: bool
) -> None:
    table = make_table()
    validation = made(table, transformation_task(table, 0), quick())
    validation.weight = torch.full((rows,), 1 / rows, dtype=torch.float64)
    right = torch.zeros(1, rows, dtype=torch.bool)
    a, b = right.clone(), right.clone()
    a[0, :gains] = True
    b[0, gains : gains + losses] = True
    monkeypatch.setattr(validation, "right", lambda heads: heads)
    difference, found = validation.difference(a, b)  # type: ignore[arg-type]
    assert difference == pytest.approx((gains - losses) / rows)
    assert found is agree
