"""Curves of accuracy against severity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from substyle.engine.analysis.geometry import query_rows
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.resampling import resample
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.single_task import by_severity, halfway
from substyle.engine.probes.tasks import transformation_task
from substyle.engine.store.table import EmbeddingTable

SUITE = (
    ("identity", "identity", "train"),
    *((f"blur_a@{severity}", "blur", "train") for severity in (1, 2, 3)),
    ("noise_a", "noise", "train"),
)


def test_halfway_against_a_dense_search() -> None:
    rng = np.random.default_rng(0)
    level_L = np.array([1.0, 2.0, 4.0, 5.0])
    accuracy_RL = rng.random((200, 4))
    found = halfway(level_L, accuracy_RL, 0.1)
    x = np.linspace(0, 5, 500_001)
    for row, value in zip(accuracy_RL, found, strict=True):
        curve = np.interp(x, [0, *level_L], [0.1, *row])
        expected = x[np.argmax(curve >= 0.1 + (row.max() - 0.1) / 2)] if row.max() > 0.1 else 5.0
        np.testing.assert_allclose(value, expected, atol=2e-5)


def test_accuracies_at_chance_have_no_halfway() -> None:
    """Noise has a maximum too, and a severity at which it is halfway to it."""
    rng, names, found = np.random.default_rng(3), tuple(f"fog@{severity}" for severity in range(1, 6)), 0
    for i in range(200):
        score_TN = (rng.random((5, 100)) < 0.05).astype(np.float32)
        curve = by_severity(names, resample(score_TN, 200, i), 0.05)["fog"]
        assert curve["halfway"] is None or {"low", "high"} <= curve["halfway"].keys()
        found += curve["halfway"] is not None
    assert found <= 15
    clear = by_severity(names, resample((rng.random((5, 100)) < 0.9).astype(np.float32), 200, 0), 0.05)["fog"]
    assert clear["halfway"]["value"] == pytest.approx(0.5, abs=0.1)


def test_severities_are_one_class(make_table: Callable[..., EmbeddingTable], quick: Callable[..., ProbeConfig]) -> None:
    table = make_table(suite=SUITE)
    task = transformation_task(table, 0)
    assert task is not None
    assert task.labels == ("identity", "blur_a", "noise_a")
    assert task.answer.tolist() == [0, 1, 1, 1, 2]
    assert len(np.unique(query_rows(table, 1000, 0).transformation_R)) == 3
    results = run_probes(
        table, quick(tasks=("transformation", "class"), heads=("linear",)), out_dir=None, quiet=True
    ).results
    transformation = results["transformation"]["linear"]
    assert transformation["chance"] == pytest.approx(3 / 5)  # three of five rows are blur_a
    assert set(transformation["by_transformation"]) == set(table.transformations)
    by_severity = [one["value"] for one in transformation["by_severity"]["blur_a"]["accuracy"]]
    assert by_severity == [transformation["by_transformation"][f"blur_a@{s}"] for s in (1, 2, 3)]
    assert set(results["class"]["linear"]["by_severity"]) == {"blur_a"}
    assert len(transformation["confusion"]["labels"]) == 3
