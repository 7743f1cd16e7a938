"""Extractability on embeddings whose answers are known, and compared with scikit-learn."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tests.conftest import slow_after
from tests.engine.probes.conftest import Make, Quick, features_of
from torch import nn

from substyle.engine.extensions.extractability import control_tasks
from substyle.engine.extensions.extractability.codelength import Growing, code_sizes, grow
from substyle.engine.extensions.extractability.complexity import LINEAR, selected
from substyle.engine.extensions.extractability.config import ComplexityConfig
from substyle.engine.extensions.extractability.control_tasks import control, shuffled
from substyle.engine.extensions.extractability.stage import complexity
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.linear import Linear, fit_heads, fit_linear, training_rows_of
from substyle.engine.probes.mlp import train_mlp
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.tasks import Task
from substyle.engine.store.table import EmbeddingTable

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


TWO = ("transformation", "class")


def mlp(inputs: int, depth: int, width: int, outputs: int) -> int:
    """Parameters of torch's MLP."""
    sizes = [inputs, *[width] * depth, outputs]
    layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    return sum(p.numel() for p in layers.parameters())


def test_depth_0_is_the_linear_probe_and_depth_1_the_mlp(make_table: Make, quick: Quick) -> None:
    """Equal numbers for equal architectures; parameters are those of torch's modules."""
    table = make_table(images=200, style=1.0)
    probes, config = quick(tasks=TWO), ComplexityConfig(depths=(0, 1, 3), widths=(8, 32))
    results = run_probes(table, probes, out_dir=None, quiet=True).results
    rows = json.loads(json.dumps(complexity(table, probes, config), allow_nan=False))
    assert list(rows) == [LINEAR, "1x8", "1x32", "3x8", "3x32"]
    for name, head in ((LINEAR, "linear"), ("1x32", "mlp")):
        for end in ("value", "low", "high"):
            assert rows[name]["transformation"][end] == results["transformation"][head]["accuracy"][end]
        assert rows[name]["class"]["value"] == results["class"][head]["original"]["value"]
        transformed = results["class"][head]["transformed"]["value"]
        assert rows[name]["transformed"]["value"] == pytest.approx(transformed)
        assert rows[name]["transformation_converged"] == results["transformation"][head]["converged"]
    for name, row in rows.items():
        assert row["transformation_parameters"] == mlp(20, row["depth"], row["width"] or 0, 8)
        assert row["class_parameters"] == mlp(20, row["depth"], row["width"] or 0, 3)
        assert ("transformation_difference" in row) == (name != LINEAR)
        if name != LINEAR:
            apart = row["transformation"]["value"] - rows[LINEAR]["transformation"]["value"]
            assert row["transformation_difference"]["value"] == pytest.approx(apart, abs=1e-6)
            assert row["transformation"]["value"] > 0.25  # twice chance
    for task in ("transformation", "class", "both"):
        assert sum(task in row["selected"] for row in rows.values()) <= 1


def test_validation_selects_the_smallest_of_the_best() -> None:
    rows = {
        name: {"transformation_validation": transformation, "class_validation": class_,
               "transformation_parameters": size, "class_parameters": size}
        for name, transformation, class_, size in (("a", 0.9, 0.2, 9), ("b", 0.9, 0.1, 5), ("c", 0.1, 0.9, 7))
    }  # fmt: skip
    assert selected(rows, list(rows), ["transformation"]) == "b"
    assert selected(rows, list(rows), ["class"]) == "c"
    assert selected(rows, list(rows), ["transformation", "class"]) == "a"
    assert selected(rows, ["b"], ["class"]) == "b"


def photographs_only(table: EmbeddingTable) -> EmbeddingTable:
    """Embeddings that are one-hot vectors of the photograph, whatever the transformation."""
    variants, images, _ = table.x_TND.shape
    return replace(table, x_TND=np.broadcast_to(np.eye(images, dtype=np.float16), (variants, images, images)).copy())


def weakly_regularised(features: Features, task: Task, config: ProbeConfig) -> Linear:
    fit = fit_heads(training_rows_of(features, task), config, [100.0])
    return replace(fit_linear(features, task, config), C=100.0, fit=fit)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_memorised_photographs_are_not_selective(make_table: Make, quick: Quick, head: str) -> None:
    """Any label of a photograph can be read from its one-hot vector, at random or not."""
    features, task = features_of(photographs_only(make_table(images=60)), "class")
    config = quick(mlp_steps=150)
    made = weakly_regularised(features, task, config) if head == "linear" else train_mlp(features, task, config)
    found = control(features, task, made, config, None)
    assert found["control"]["value"] == pytest.approx(1.0, abs=0.02)
    assert found["task"]["value"] == pytest.approx(1.0, abs=0.02)
    assert abs(found["selectivity"]["value"]) <= 0.02
    assert "memorised" not in found


@pytest.mark.parametrize("name", ["transformation", "class"])
def test_shuffled_labels_are_at_chance_and_true_ones_are_not(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    features, task = features_of(make_table(images=200, style=4.0), name)
    config = quick()
    made = fit_linear(features, task, config)
    found = shuffled(features, task, made, config)
    low, high = found["range95"]
    assert low <= found["accuracy"] <= high
    assert found["at_chance"]
    assert low < found["expected"] < high
    monkeypatch.setattr(control_tasks, "shuffled_task", lambda task, seed: task)
    assert not shuffled(features, task, made, config)["at_chance"]
