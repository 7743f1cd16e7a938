"""How far variants move: measures against references, and what predicts the loss of accuracy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity
from tests.tables import table_of

from substyle.engine.extensions.movement.stage import MovementConfig, movement
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.results.statistics import correlation_interval
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable

NAMES = ("identity", *(f"t{i}" for i in range(12)))
WIDTH = 10
QUICK = MovementConfig(bootstrap=200)


def some(
    test: int = 120, seed: int = 0, by: float = 1.0, names: tuple[str, ...] = NAMES
) -> tuple[EmbeddingTable, ProbeOutcome]:
    """Variants that move further from one transformation to the next, of which more are wrong if ``by`` is 1."""
    rng, count = np.random.default_rng(seed), 20 + test
    plain = rng.normal(size=(count, WIDTH)) + 1.5
    far_T = np.linspace(0.0, 2.0, len(names))
    x_TND = plain + far_T[:, None, None] * rng.normal(size=(len(names), count, WIDTH))
    table = table_of(x_TND, names, (20, 0, test))
    wrong = 0.05 + 0.4 * (by * far_T / 2 + (1 - by) * rng.permutation(far_T) / 2)
    score_TN = (rng.random((len(names), test)) > wrong[:, None]).astype(np.float32)
    own = {name: getattr(table, name) for name in ("transformations", "kind", "roles")}
    return table, ProbeOutcome({}, {"class/linear": score_TN}, table.keys[20:], **own)


def units(table: EmbeddingTable, t: int) -> np.ndarray:
    x_ND = np.asarray(table.x_TND)[t][table.rows(TEST)].astype(np.float64)
    return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True))


def test_measures_agree_with_references() -> None:
    table, outcome = some()
    found = movement(table, outcome, QUICK)
    plain, test = units(table, 0), table.rows(TEST)
    x_TND = np.asarray(table.x_TND).astype(np.float64)[:, test]
    distance = np.sqrt(2 - 2 * cosine_similarity(plain)[np.triu_indices(len(plain), 1)])
    scale = np.sqrt((distance**2).mean()) / 2

    def hub(x_ND: np.ndarray) -> np.ndarray:
        near = cosine_similarity(x_ND, plain)
        np.fill_diagonal(near, -np.inf)
        return np.asarray(np.sort(near, axis=1)[:, -10:].mean(axis=1))

    for t in (1, 5, 12):
        varied, centre = units(table, t), x_TND[0].mean(axis=0)
        pair = zip(x_TND[0] - centre, x_TND[t] - centre, strict=True)
        expected = {
            "sensitivity": np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pair]),
            "radius": np.linalg.norm(plain - varied, axis=1).mean() / 2 / scale,
            "csls": ((hub(plain) + hub(varied)) / 2 - (plain * varied).sum(axis=1)).mean(),
        }
        for name, value in expected.items():
            assert found["measures"][name]["by_transformation"][NAMES[t]] == pytest.approx(value, abs=1e-4), name
    assert found["by_transformation"]["t11"] == pytest.approx(
        float((outcome.scores["class/linear"][0] - outcome.scores["class/linear"][12]).mean())
    )


def test_correlations_agree_with_scipy_and_intervals_are_the_wider() -> None:
    table, outcome = some()
    found = movement(table, outcome, QUICK)
    for own in found["measures"].values():
        sides = [list(each["by_transformation"].values()) for each in (own, found)]
        rho = float(spearmanr(*sides).statistic)
        assert own["spearman"]["value"] == pytest.approx(rho)
        low, high = correlation_interval(rho, 12)
        assert own["spearman"]["low"] <= low
        assert own["spearman"]["high"] >= high
    assert found["measures"]["sensitivity"]["spearman"]["value"] > 0.8
    assert (found["images"], found["transformations"], found["units"]) == (120, 12, 12)


def test_variants_that_equal_the_original_are_left_out() -> None:
    table, outcome = some()
    distinct = table.distinct_TN.copy()
    distinct[3] = False
    found = movement(replace(table, distinct_TN=distinct), outcome, QUICK)
    assert found["transformations"] == 11
    assert "t2" not in found["by_transformation"]
