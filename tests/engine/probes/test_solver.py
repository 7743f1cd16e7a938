"""The solver compared with scikit-learn, with weights, starts, blocks and dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from tests.engine.probes.conftest import CPU
from tests.tables import table_of

from substyle.engine.probes import batches, training_rows
from substyle.engine.probes.batches import Features
from substyle.engine.probes.dataset import Resident, standard_of
from substyle.engine.probes.objective import Block, Objective, StoredObjective
from substyle.engine.probes.preconditioner import CovarianceBasis, CovarianceMetric
from substyle.engine.probes.solver import Fit, fit
from substyle.engine.probes.tasks import Task, class_task, transformation_task
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import split_products

NAMES = ("identity", "a", "b", "c")
# The objective is strongly convex: weights of two fits differ by both gradients over the penalty at most. Gradients of
# at most 1e-6 in each of 48 weights are 7e-6 together, and with a penalty of 1e-2 the weights agree to 1.4e-3.
PENALTY, AGREE = 1e-2, 1.5e-3


def make(images: int = 60, width: int = 12) -> EmbeddingTable:
    """Embeddings with transformation and class signal, and features of very different variance."""
    rng = np.random.default_rng(0)
    label_N = np.arange(images) % 3
    x_TND = rng.normal(size=(len(NAMES), images, width)) + 0.8 * rng.normal(size=(len(NAMES), 1, width))
    x_TND += rng.normal(size=(3, width))[label_N]
    x_TND *= np.logspace(0, -2, width)
    return table_of((x_TND @ rng.normal(size=(width, width))).astype(np.float16), NAMES, (36, 12, 12))


def features_of(table: EmbeddingTable, task: Task, dtype: torch.dtype = torch.float32) -> Features:
    return Features(table, standard_of(table, task, 0), CPU, dtype)


def transformation(table: EmbeddingTable) -> Task:
    task = transformation_task(table, 0)
    assert task is not None
    return task


def reference(
    features: Features, task: Task, C: float, weight_R: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and intercepts by scikit-learn, whose C is relative to the sum of weights."""
    t, n = task.rows(task.train_T, task.train_N)
    x = features(t, n).double().numpy()
    model = LogisticRegression(C=C, tol=1e-9, max_iter=100_000)
    share = None if weight_R is None else weight_R * len(t) / weight_R.sum()
    model.fit(x, task.answers(t, n), sample_weight=share)
    return model.coef_, model.intercept_ - model.intercept_.mean()


def centred(fitted: Fit, k: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights and centred intercepts, since a common offset has no effect."""
    bias = fitted.heads.b1[k].numpy()
    return fitted.heads.w1[k].numpy(), bias - bias.mean()


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["gathered", "kept"])
def test_as_scikit_learn(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "KEPT", kept)
    table = make()
    task = transformation(table)
    features = features_of(table, task)
    rows = len(task.train_T) * len(task.train_N)
    Cs = [1e-3, 0.1, 10.0]
    made = fit(TrainingRows(features, task, np.ones((3, 4))), [1 / (C * rows) for C in Cs], tolerance=1e-6, most=2000)
    assert made.converged_K.all()
    assert (made.gradient_K <= 1e-6).all()
    for k, C in enumerate(Cs):
        weight, bias = reference(features, task, C)
        found = centred(made, k)
        assert np.abs(found[0] - weight).max() < 2e-3 * max(np.abs(weight).max(), 0.1)
        assert np.abs(found[1] - bias).max() < 2e-3 * max(np.abs(bias).max(), 0.1)


def test_float64_goes_on_where_float32_stalls() -> None:
    table = make()
    task = transformation(table)
    features = features_of(table, task)
    rows = TrainingRows(features, task, np.ones((1, 4)))
    strength = [1 / (10.0 * len(task.train_T) * len(task.train_N))]
    exact = fit(rows, strength, tolerance=1e-9, most=5000)
    assert exact.converged_K.all()
    assert exact.heads.w1.dtype == torch.float32
    kind = fit(rows, strength, tolerance=1e-4, most=5000)
    assert 1e-9 < kind.gradient_K[0] <= 1e-4
    weight, _ = reference(features, task, 10.0)
    far, near = (np.abs(centred(made)[0] - weight).max() for made in (kind, exact))
    assert near < 0.1 * far


def test_a_head_with_weights_is_a_fit_to_repeated_rows() -> None:
    table = make()
    task = transformation(table)
    features = features_of(table, task)
    rng = np.random.default_rng(1)
    variant_T, image_N = np.array([1.0, 0.5, 0.0, 2.0]), rng.integers(0, 4, len(table.keys)).astype(float)
    t, n = task.rows(task.train_T, task.train_N)
    weight_R = variant_T[t] * image_N[n]
    rows = TrainingRows(features, task, np.stack([variant_T, np.ones(4)]), np.stack([image_N, np.ones(len(image_N))]))
    made = fit(rows, [1 / (0.5 * len(t))] * 2, tolerance=1e-6, most=2000)
    for k, weights in enumerate((weight_R, None)):
        weight, bias = reference(features, task, 0.5, weights)
        assert np.abs(centred(made, k)[0] - weight).max() < 2e-3
        seen = bias > bias.min() + 1.0 if k == 0 else np.ones(4, bool)  # that of an absent class goes to -inf
        assert np.allclose(np.diff(centred(made, k)[1][seen]), np.diff(bias[seen]), atol=5e-3)


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fits read rows as stored, on the CPU too. Collects the number of rows of each block."""
    monkeypatch.setattr(split_products, "available", lambda _device: True)
    blocks: list[int] = []
    slices = StoredObjective._blocks

    def watched(own: StoredObjective) -> Iterator[Block]:
        for block in slices(own):
            blocks.append(len(block[0]))
            yield block

    monkeypatch.setattr(StoredObjective, "_blocks", watched)
    return blocks


def test_stored_rows_compute_the_objective(tensor_cores: list[int]) -> None:
    table = make()
    task = transformation(table)
    features = features_of(table, task, torch.float64)
    rows = TrainingRows(features, task, np.array([[1.0, 0.5, 2.0, 1.0], [1.0, 1.0, 0.0, 1.0]]))
    metric = CovarianceMetric.of(CovarianceBasis.of(rows), 4, np.array([0.1, 1e-3]))
    u_KP = torch.randn(2, 4 * 13, generator=torch.Generator().manual_seed(0))
    heads = torch.arange(2)
    exact = Objective(rows, features, metric.double())(u_KP.double(), heads)
    stored = StoredObjective(rows, features.full(), metric)(u_KP, heads)
    for found, expected in zip(stored, exact, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)
    assert sum(tensor_cores) == rows.span.stop - rows.span.start


def test_heads_do_not_depend_on_their_company_or_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make()
    task = transformation(table)
    features = features_of(table, task)
    strengths = [PENALTY, 0.1, 1.0]
    together = fit(TrainingRows(features, task, np.ones((3, 4))), strengths, tolerance=1e-6, most=2000)
    monkeypatch.setattr(training_rows, "_ON_CPU", (64 << 20, 1))  # blocks of 256 rows at least
    monkeypatch.setattr(training_rows, "rows_of_width", lambda _width, _device: 37)
    for k, strength in enumerate(strengths):
        alone = fit(TrainingRows(features, task, np.ones((1, 4))), [strength], tolerance=1e-6, most=2000)
        assert torch.allclose(alone.heads.w1[0], together.heads.w1[k], atol=AGREE)


def test_rows_that_do_not_count_may_have_no_answer_and_any_values(tensor_cores: list[int]) -> None:
    table = make()
    task = class_task(table, 0)
    assert task is not None
    answer, distinct_TN = task.answer.copy(), table.distinct_TN.copy()
    distinct_TN[0, 5], answer[5] = False, -1
    task = replace(task, answer=answer, distinct_TN=distinct_TN)
    features = features_of(table, task, torch.bfloat16)
    u_KP, found = torch.randn(1, 3 * 13, generator=torch.Generator().manual_seed(0)), []
    for value in (1.0, 100.0, np.nan):
        x_TND = np.array(table.x_TND)
        x_TND[0, 5] = value
        features.held = Resident.of(replace(table, x_TND=x_TND), CPU)
        rows = TrainingRows(features, task, np.eye(4)[:1])
        metric = CovarianceMetric.of(CovarianceBasis.of(rows), 3, np.array([PENALTY]))
        found.append(StoredObjective(rows, features.full(), metric)(u_KP, torch.arange(1)))
        tensor_cores.clear()
        made = fit(rows, [PENALTY], tolerance=1e-6, most=2000)
        assert made.converged_K.all()
        assert tensor_cores
    for first, second in zip(found[0], found[1], strict=True):
        assert torch.equal(first, second)
    # what is not finite is of no use to them, and float32 gathers only rows that count
    assert not found[2][0].isfinite().all()
