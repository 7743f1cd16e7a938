"""Scores on validation rows, and agreement of two trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick

from substyle.engine.probes import trainer as module
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.heads import initial
from substyle.engine.probes.tasks import Task, class_task, kind_task, transformation_task
from substyle.engine.probes.trainer import AGREEMENT, Validation, agreement_rows, compare
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError
from substyle.kernels.probe_heads import Heads

pytestmark = pytest.mark.usefixtures("one_thread")


def made(table: EmbeddingTable, task: Task | None, config: ProbeConfig) -> Validation:
    assert task is not None
    features = Features(table, standard_of(table, task, 0), CPU, torch.float32)
    return Validation(features, task, config)


def logits(heads: Heads, validation: Validation) -> np.ndarray:
    """Logits in numpy. Shape: (K, B, C)."""
    x_BD, w_KCD = validation.x_BD.numpy().astype(np.float64), heads.w1.numpy()
    return np.einsum("kcd,bd->kbc", w_KCD, x_BD) + heads.b1.numpy()[:, None]


def test_judging_is_a_weighted_share_of_right_rows(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with counting, on a subset of rows."""
    table = make_table()
    monkeypatch.setattr(ProbeConfig, "validation_rows", 100)
    validation = made(table, transformation_task(table, 0), quick())
    assert validation.x_BD.shape[0] == 100
    heads = initial(0, 20, 8, 1, [0, 1], CPU)
    expected = (logits(heads, validation).argmax(2) == validation.answers.numpy()).mean(1)
    accuracy, loss = validation.judge(heads)
    np.testing.assert_allclose(accuracy, expected, atol=1e-12)
    per_head = [
        torch.nn.functional.cross_entropy(torch.from_numpy(own), validation.answers).item()
        for own in logits(heads, validation)
    ]
    np.testing.assert_allclose(loss, per_head, rtol=1e-5)


def test_kind_labels_count_alike(make_table: Make, quick: Quick) -> None:
    table = make_table()
    task = kind_task(table, 0)
    assert task is not None
    validation = made(table, task, quick())
    sums = torch.zeros(len(task.labels), dtype=torch.float64).index_add_(0, validation.answers, validation.weight)
    np.testing.assert_allclose(sums[sums > 0], 1.0 / int((sums > 0).sum()))
    assert len(set(torch.bincount(validation.answers).tolist())) > 1


def test_without_a_row_there_is_an_error(make_table: Make, quick: Quick) -> None:
    table = make_table()
    task = transformation_task(table, 0)
    assert task is not None
    with pytest.raises(SubstyleError):
        made(table, replace(task, val_N=np.empty(0, np.int64)), quick())


def test_classes_without_training_photographs_are_left_out(make_table: Make, quick: Quick) -> None:
    table = make_table()
    label_N = table.label_N.copy()
    label_N[(table.split_N == 0) & (label_N == 1)] = -1  # no training photograph is of class 1
    table = replace(table, label_N=label_N)
    task = class_task(table, 0)
    assert task is not None
    assert task.labels == ("class-0", "class-2")
    validation = made(table, task, quick())
    known = [n for n in table.rows(1) if label_N[n] != 1]
    assert 0 < len(validation.answers) == len(known) < len(table.rows(1))
    assert validation.answers.tolist() == [(0, -1, 1)[label_N[n]] for n in known]
    assert float(validation.weight.sum()) == pytest.approx(1.0)
    only_unknown = [n for n in table.rows(1) if label_N[n] == 1]
    with pytest.raises(SubstyleError):
        made(table, replace(task, val_N=np.array(only_unknown)), quick())


@pytest.mark.parametrize("kind", [transformation_task, kind_task])
@pytest.mark.parametrize("heads", [1, 3])
def test_difference_is_paired_by_row(
    make_table: Make, quick: Quick, kind: Callable[..., Task | None], heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weighted mean over rows of the mean over heads, and its standard error."""
    table = make_table()
    monkeypatch.setattr(module, "_PIECE", 33)
    validation = made(table, kind(table, 0), quick())
    outputs = validation.outputs.stop
    a, b = (initial(0, 20, outputs, 1, range(seed, seed + heads), CPU) for seed in (0, 10))
    right_a, right_b = (logits(h, validation).argmax(2) == validation.answers.numpy() for h in (a, b))
    value = variance = 0.0
    for row, weight in enumerate(validation.weight.tolist()):
        gain = sum(int(right_a[k, row]) - int(right_b[k, row]) for k in range(heads)) / heads
        value += weight * gain
        variance += (weight * gain) ** 2
    difference, agree = validation.difference(a, b)
    assert difference == pytest.approx(value, abs=1e-12)
    assert agree is (abs(value) <= max(AGREEMENT, variance**0.5))
    assert validation.difference(b, a) == (pytest.approx(-value, abs=1e-12), agree)
    assert validation.difference(a, a) == (0.0, True)


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


def test_what_is_asked_of_two_fits(make_table: Make, quick: Quick) -> None:
    """Validation sets of training and of other scored transformations; all must agree."""
    table = make_table()
    kind, transformation = kind_task(table, 0), transformation_task(table, 0)
    assert kind is not None
    assert transformation is not None
    features = Features(table, standard_of(table, transformation, 0), CPU, torch.float32)
    both = agreement_rows(features, kind, quick())
    val = len(table.rows(1))
    assert [len(v.answers) for v in both] == [6 * val, 2 * val]
    assert sorted(set(both[1].answers.tolist())) == sorted({int(kind.answer[3]), int(kind.answer[5])})
    assert len(agreement_rows(features, transformation, quick())) == 1
    hidden = table.distinct_TN.copy()
    hidden[np.ix_([3, 5], table.rows(1))] = False  # no validation row of what is held out
    assert len(agreement_rows(features, replace(kind, distinct_TN=hidden), quick())) == 1
    a, b = (initial(0, 20, 4, 1, [seed], CPU) for seed in (0, 1))
    each = [v.difference(a, b) for v in both]
    assert compare(both, a, b) == (max((d for d, _ in each), key=abs), all(agree for _, agree in each))
