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
from substyle.engine.probes.tasks import Task, kind_task, transformation_task
from substyle.engine.probes.trainer import AGREEMENT, Validation
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError
from substyle.kernels.probe_heads import Heads


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


def test_without_a_row_there_is_an_error(make_table: Make, quick: Quick) -> None:
    table = make_table()
    task = transformation_task(table, 0)
    assert task is not None
    with pytest.raises(SubstyleError):
        made(table, replace(task, val_N=np.empty(0, np.int64)), quick())
