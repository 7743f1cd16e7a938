"""Few-shot class accuracy: which photographs are drawn, what is scored, and what the interval covers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tests.tables import table_of

from substyle.engine.stages import few_shot as few_shot_module
from substyle.engine.stages.few_shot import FewShotConfig, few_shot
from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable

CLASSES, WIDTH = 3, 6


def drawn(label_N: np.ndarray, rng: np.random.Generator, spread: float = 1.0) -> np.ndarray:
    """Embeddings of photographs: a direction for each class, and noise."""
    x_ND = rng.normal(size=(len(label_N), WIDTH)) * spread
    x_ND[np.arange(len(label_N)), label_N] += 2
    return x_ND.astype(np.float32)


def some(train: int = 60, test: int = 40, seed: int = 0) -> EmbeddingTable:
    """Photographs of three classes in two variants."""
    rng = np.random.default_rng(seed)
    count = train + 10 + test
    label_N = np.arange(count) % CLASSES
    x_ND = drawn(label_N, rng)
    return table_of(np.stack([x_ND + 50, x_ND]), ("jpeg", "identity"), (train, 10, test))


def test_features_of_unlike_scale_converge() -> None:
    """Compared with exact Newton steps; L-BFGS takes more than 1,000 here."""
    table = some(train=90, test=300)
    scale_D = np.logspace(-2, 2, WIDTH).astype(np.float32)
    x_TND = np.asarray(table.x_TND) * scale_D + 10 * scale_D  # far from zero, as statistics of pictures
    table = replace(table, x_TND=x_TND)
    found = few_shot(table, FewShotConfig(shots=1000, draws=2))
    train, test = table.rows(TRAIN), table.rows(TEST)
    exact = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000)
    exact.fit(x_TND[1, train].astype(np.float64), table.label_N[train])
    assert found["converged"]
    right = exact.score(x_TND[1, test].astype(np.float64), table.label_N[test])
    assert found["accuracy"]["value"] == pytest.approx(right, abs=1 / 300)


def test_few_separable_photographs_reach_the_optimum() -> None:
    """Where the loss is small, gradients are small far from the optimum."""
    rng = np.random.default_rng(0)
    table = some(train=30, test=600)
    x_TND = 3 * np.concatenate([np.asarray(table.x_TND), rng.normal(size=(2, 640, 300))], axis=2)
    table = replace(table, x_TND=x_TND.astype(np.float32))
    train, test = table.rows(TRAIN), table.rows(TEST)
    exact = LogisticRegression(tol=1e-10, max_iter=10_000)
    exact.fit(table.x_TND[1, train].astype(np.float64), table.label_N[train])
    found = few_shot(table, FewShotConfig(shots=1000, draws=2))
    right = exact.score(table.x_TND[1, test].astype(np.float64), table.label_N[test])
    assert found["accuracy"]["value"] == pytest.approx(right, abs=0.001)


def test_too_few_iterations_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shot_module, "ITERATIONS", 1)
    assert not few_shot(some(), FewShotConfig(shots=1000, draws=2))["converged"]


def permuted(table: EmbeddingTable, order: np.ndarray) -> EmbeddingTable:
    assert isinstance(table.x_TND, np.ndarray)
    return replace(
        table,
        x_TND=table.x_TND[:, order],
        keys=tuple(table.keys[i] for i in order),
        label_N=table.label_N[order],
        split_N=table.split_N[order],
        distinct_TN=table.distinct_TN[:, order],
    )


def test_with_all_photographs_it_is_logistic_regression() -> None:
    table = some()
    found = few_shot(table, FewShotConfig(shots=1000, draws=2))
    x_ND, train, test = table.x_TND[1], table.rows(TRAIN), table.rows(TEST)
    model = LogisticRegression(max_iter=1000).fit(x_ND[train], table.label_N[train])
    assert found["accuracy"]["value"] == pytest.approx(model.score(x_ND[test], table.label_N[test]))
    assert found["accuracies"] == [found["accuracy"]["value"]] * 2
    assert (found["fewest"], found["images"], found["classes"], found["converged"]) == (20, 40, 3, True)


def test_draws_are_of_training_photographs_by_key() -> None:
    table = some()
    found = few_shot(table, FewShotConfig(shots=2, draws=8))
    assert len(set(found["accuracies"])) > 1
    assert found["accuracy"]["value"] == pytest.approx(np.mean(found["accuracies"]))
    order = np.random.default_rng(1).permutation(len(table.keys))
    assert few_shot(permuted(table, order), FewShotConfig(shots=2, draws=8)) == found
    assert few_shot(table, FewShotConfig(shots=2, draws=8, seed=1))["accuracies"] != found["accuracies"]
    spoilt = table.x_TND.copy()
    spoilt[0], spoilt[1, table.rows(VAL)] = np.nan, np.nan  # neither other variants nor validation photographs are read
    assert few_shot(replace(table, x_TND=spoilt), FewShotConfig(shots=2, draws=8)) == found


@pytest.mark.slow
def test_the_interval_covers_the_mean_over_photographs_and_draws() -> None:
    """200 tables from one population; most of the spread is due to draws."""
    rng = np.random.default_rng(5)
    truth, every = [], np.arange(30_000) % CLASSES
    x_ND = drawn(every, rng)
    for _ in range(200):
        label = np.arange(CLASSES)
        model = LogisticRegression(max_iter=1000).fit(drawn(label, rng), label)
        truth.append(model.score(x_ND, every))
    covered, photographs_alone = 0, 0
    for seed in range(200):
        found = few_shot(some(train=600, test=600, seed=seed + 10), FewShotConfig(shots=1, seed=seed))
        low, high = found["accuracy"]["low"], found["accuracy"]["high"]
        covered += low <= np.mean(truth) <= high
        half = 1.96 * np.sqrt(found["accuracy"]["value"] * (1 - found["accuracy"]["value"]) / 600)
        photographs_alone += abs(found["accuracy"]["value"] - np.mean(truth)) <= half
    assert covered >= 186  # of 200, 93 %
    assert photographs_alone < 150  # what an interval over photographs alone would cover
