"""Control tasks and shuffled labels on embeddings whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.engine.probes.conftest import Make, Quick, features_of

from substyle.engine.extensions.extractability import control_tasks
from substyle.engine.extensions.extractability.control_tasks import (
    by_chance,
    control,
    controls_of,
    shuffled,
    shuffled_task,
)
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.linear import Linear, fit_heads, fit_linear, training_rows_of
from substyle.engine.probes.mlp import train_mlp
from substyle.engine.probes.tasks import Task
from substyle.engine.store.table import EmbeddingTable

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_one_hot_photographs_say_nothing_of_the_transformation(make_table: Make, quick: Quick) -> None:
    features, task = features_of(photographs_only(make_table(images=60)), "transformation")
    config = quick()
    found = control(features, task, weakly_regularised(features, task, config), config, None)
    assert found["control"]["value"] == pytest.approx(1.0, abs=0.02)
    assert found["task"]["value"] < 0.2
    assert found["memorised"]["value"] < 0.5  # four variants of a photograph are one vector with four labels
    assert found["selectivity"]["value"] == pytest.approx(found["task"]["value"] - found["control"]["value"])


@pytest.mark.parametrize("name", ["transformation", "class"])
def test_near_duplicates_have_the_same_random_label(make_table: Make, name: str) -> None:
    table = make_table(images=120)
    pairs = np.arange(120) // 2 * 2
    split_N, label_N = np.repeat(table.split_N[::2], 2), np.repeat(table.label_N[::2], 2)
    _, task = features_of(replace(table, split_N=split_N, label_N=label_N, first_N=pairs), name)
    answer_N = controls_of(task, 0).photographs.answer
    assert np.array_equal(answer_N[task.train_N], answer_N[pairs[task.train_N]])
    assert len(np.unique(answer_N[task.train_N])) > 1
    if name == "class":  # a permutation
        assert np.array_equal(np.sort(answer_N[task.train_N]), np.sort(task.answer[task.train_N]))


def test_a_direction_per_transformation_is_selective(make_table: Make, quick: Quick) -> None:
    features, task = features_of(make_table(style=4.0), "transformation")
    config = quick()
    found = control(features, task, fit_linear(features, task, config), config, None)
    assert found["task"]["value"] > 0.97
    assert found["selectivity"]["value"] > 0.6
    selectivity = found["selectivity"]
    assert selectivity["low"] < selectivity["value"] < selectivity["high"]
    assert found["converged"]
    assert found["memorised"]["value"] < 0.4


@pytest.mark.slow
def test_a_wide_probe_memorises_more(make_table: Make, quick: Quick) -> None:
    """Trained for long enough, the MLP recovers more random labels than the linear probe."""
    features, task = features_of(make_table(width=8), "transformation")
    config = quick(mlp_steps=300, widths=(128,))
    linear, mlp = (
        control(features, task, made, config, None)
        for made in (fit_linear(features, task, config), train_mlp(features, task, config))
    )
    assert mlp["memorised"]["value"] > linear["memorised"]["value"] + 0.1
    assert mlp["control"]["value"] > linear["control"]["value"]


def test_rows_are_halved_per_photograph(make_table: Make) -> None:
    table = make_table()
    distinct = table.distinct_TN.copy()
    distinct[3, :20] = False
    _, task = features_of(replace(table, distinct_TN=distinct), "transformation")
    found = controls_of(task, 0)
    train, others = task.train_N, np.setdiff1d(np.arange(120), task.train_N)
    both = found.task.distinct_TN[:, train].astype(int) + found.held_TN[:, train]
    np.testing.assert_array_equal(both, distinct[:, train])
    for trained, held in zip(found.task.distinct_TN[:, train].sum(0), found.held_TN[:, train].sum(0), strict=True):
        assert trained - held in (0, 1)
    np.testing.assert_array_equal(found.task.distinct_TN[:, others], distinct[:, others])
    assert not found.held_TN[:, others].any()
    assert len({tuple(column) for column in found.task.distinct_TN[:, train].T}) > 10
    assert found.rows is not None
    np.testing.assert_array_equal(found.rows.distinct_TN, found.task.distinct_TN)
    np.testing.assert_array_equal(found.photographs.distinct_TN, found.task.distinct_TN)


def test_labels_of_other_photographs_have_the_same_counts(make_table: Make) -> None:
    _, task = features_of(make_table(), "class")
    found = controls_of(task, 0)
    assert found.rows is None
    assert found.task is task
    own, given = (t.answer[task.train_N] for t in (found.photographs, task))
    np.testing.assert_array_equal(np.bincount(own), np.bincount(given))
    assert (own != given).any()
    assert not found.held_TN[task.train_T].any()


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


@pytest.mark.parametrize("name", ["transformation", "class"])
def test_labels_are_shuffled_within_splits(make_table: Make, name: str) -> None:
    _, task = features_of(make_table(), name)
    own = shuffled_task(task, 0)
    for split in (task.train_N, task.val_N, task.test_N):
        rows = task.rows(task.train_T, split)
        given, made = task.answers(*rows), own.answers(*rows)
        np.testing.assert_array_equal(np.bincount(made), np.bincount(given))
        assert (made != given).mean() > 0.3


@pytest.mark.parametrize("margins", [((5, 3, 2), (4, 4, 2)), ((1, 1), (2, 0)), ((30, 1, 9), (0, 35, 5))])
def test_moments_of_a_random_permutation(margins: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    labels, predictions = (np.repeat(np.arange(len(m)), m) for m in margins)
    counts: Any = np.zeros((len(margins[0]),) * 2, np.int64)
    np.add.at(counts, (labels, predictions), 1)
    rng = np.random.default_rng(0)
    accuracies = [float((rng.permutation(labels) == predictions).mean()) for _ in range(20_000)]
    mean, sd = by_chance(counts)
    assert mean == pytest.approx(np.mean(accuracies), abs=0.01)
    assert sd == pytest.approx(np.std(accuracies), rel=0.05, abs=1e-9)
