"""Online codelength and learning curves, compared with scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tests.conftest import slow_after
from tests.engine.probes.conftest import Make, Quick, features_of

from substyle.engine.extensions.extractability.codelength import Growing, code_sizes, grow
from substyle.engine.probes.batches import Features
from substyle.engine.probes.linear import fit_linear, training_rows_of
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.tasks import Task

pytestmark = pytest.mark.usefixtures("one_thread")


def basis_of(features: Features, task: Task) -> CovarianceBasis:
    return CovarianceBasis.of(training_rows_of(features, task))


@pytest.mark.parametrize("name", slow_after(1, ["transformation", "class"]))
def test_codelength_and_curve_against_scikit_learn(make_table: Make, quick: Quick, name: str) -> None:
    """The same blocks, orders and values of C, fitted block by block; some variants are indistinct."""
    table = make_table(images=100, style=1.0)
    distinct = table.distinct_TN.copy()
    distinct[2, ::3] = False
    features, task = features_of(replace(table, distinct_TN=distinct), name)
    config = quick(tolerance=1e-6)
    made = fit_linear(features, task, config)
    test_N = np.flatnonzero(table.split_N == 2)
    found = grow(features, task, made, config, test_N, None, basis_of(features, task), 2)
    blocks, points = found["codelength"]["blocks"], found["curve"]["points"]
    assert list(blocks) == [str(size) for size in code_sizes(60)]
    classes, rows = len(task.labels), len(task.rows(task.train_T, task.train_N)[0])

    def fitted(images: np.ndarray, C: float) -> LogisticRegression:
        t, n = task.rows(task.train_T, images)
        y = task.answers(t, n)
        C *= 1 + (len(np.unique(y)) == 2)  # of two classes scikit-learn penalises the difference of their weights
        return LogisticRegression(C=C, tol=1e-7, max_iter=20_000).fit(features(t, n).numpy(), y)

    total = 0.0
    for order_N in Growing(features, task, made, config, basis_of(features, task), 2).order_ON:
        sizes = code_sizes(60)
        total += math.log2(classes) * len(task.rows(task.train_T, order_N[: sizes[0]])[0])
        for size, end in pairwise(sizes):
            seen = len(task.rows(task.train_T, order_N[:size])[0])
            t, n = task.rows(task.train_T, order_N[size:end])
            q = np.zeros((len(t), classes))
            known = np.unique(task.answers(*task.rows(task.train_T, order_N[:size])))
            if len(known) == 1:
                q[:, known] = 1.0
            else:
                head = fitted(order_N[:size], blocks[str(size)]["C"])
                q[:, head.classes_] = head.predict_proba(features(t, n).numpy())
            own = (seen * q[np.arange(len(t)), task.answers(t, n)] + 1 / classes) / (seen + 1)
            total -= np.log2(own).sum()
    assert found["codelength"]["labels"] == rows
    bits = found["codelength"]["bits"]["value"]
    assert bits == pytest.approx(total / 2 / rows, rel=2e-3)
    assert found["codelength"]["compression"]["value"] == pytest.approx(math.log2(classes) / bits)
    assert found["codelength"]["converged"]
    score_T = task.train_T if name == "class" else task.score_T
    for size in (16, 32):
        accuracies = []
        for order_N in Growing(features, task, made, config, basis_of(features, task), 2).order_ON:
            head = fitted(order_N[:size], points[str(size)]["C"])
            for each in score_T:
                t, n = task.rows(np.array([each]), test_N)
                accuracies.append((head.predict(features(t, n).numpy()) == task.answers(t, n)).mean())
        assert points[str(size)]["accuracy"]["value"] == pytest.approx(np.mean(accuracies), abs=0.011)
