"""The probe benchmark, on few and narrow embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from benchmarks import harness, probes
from benchmarks.peers import probes_data
from scipy.special import softmax

from substyle.engine.probes.batches import Features
from substyle.engine.probes.linear import resampled_images
from substyle.kernels.probe_heads import Heads

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Iterator[probes_data.Problem]:
    for module in (probes_data, probes):
        monkeypatch.setattr(module, "IMAGES", 100)
        monkeypatch.setattr(module, "WIDTH", 96)
    probes_data.table.cache_clear()
    yield probes_data.problem(2)
    probes_data.table.cache_clear()


@pytest.mark.slow
def test_ours_and_scikit_learn_are_measured_on_one_scale(problem: probes_data.Problem) -> None:
    times_SN = resampled_images(problem.task, np.arange(100), 2, 0)
    row = probes.fitted("two probes", problem, [0.1, 0.1], times_SN, repeats=1)
    harness.check(harness.document("probes", "how fast?", [row], quick=True))
    assert list(row.timings) == [harness.OURS, harness.CEILING, probes.SKLEARN]
    facts = row.facts
    assert max(facts["gradient"]) <= probes.TOLERANCE
    assert max(facts["gradient_sklearn"]) <= 1.5 * probes.TOLERANCE  # its own is that of its own rounding
    assert facts["accuracy"] == pytest.approx(facts["accuracy_sklearn"], abs=0.02)
    assert min(facts["passes"] + facts["iterations_sklearn"]) > 1
    assert sum(facts["gemms"].values()) == sum(facts["passes"])  # all rows are one block here


@pytest.mark.parametrize("resampled", [False, True])
def test_the_gradient_of_given_heads_is_relative_to_the_penalised_loss(
    problem: probes_data.Problem, *, resampled: bool
) -> None:
    task, rng, C = problem.task, np.random.default_rng(1), 0.1
    weight_CD, bias_C = rng.normal(size=(31, 96)) * 0.1, rng.normal(size=31) * 0.1
    times_SN = resampled_images(task, np.arange(100), 1, 0) if resampled else None
    t, n = task.rows(task.train_T, task.train_N)
    share_R = np.ones(len(t)) if times_SN is None else times_SN[0][n]
    x_RD = problem.x_RD[t * 100 + n].double().numpy()
    p_RC = softmax(x_RD @ weight_CD.T + bias_C, axis=1)
    error_RC = (p_RC - np.eye(31)[t]) * share_R[:, None] / share_R.sum()
    loss = -(share_R * np.log(p_RC[np.arange(len(t)), t])).sum() / share_R.sum() + (weight_CD**2).sum() / (
        2 * C * len(t)
    )
    expected = max(np.abs(error_RC.T @ x_RD + weight_CD / (C * len(t))).max(), np.abs(error_RC.sum(axis=0)).max())
    heads = probes.as_heads(weight_CD[None], bias_C[None])
    assert probes.judged(problem, heads, [C], times_SN)["gradient"] == [pytest.approx(expected / loss, rel=0.05)]


def test_the_products_of_a_fit_are_recorded(problem: probes_data.Problem) -> None:
    features = Features(problem.table, problem.standard, probes.CPU, torch.float32)
    start = Heads(torch.zeros(3, 31, 96), torch.zeros(3, 31))
    gemms = probes.recorded(lambda: probes.fit(problem, features, [0.1] * 3, None, start, most=1))
    assert gemms == {(3, 65 * 31, torch.float32): 1}
    assert probes.products(gemms)() > 0


@pytest.mark.slow
def test_mlps_learn_the_same_from_the_same_batches(
    problem: probes_data.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "HIDDEN", 32)
    monkeypatch.setattr(probes, "MLP_HEADS", 8)
    for module in (probes_data, probes):
        monkeypatch.setattr(module, "BATCH", 128)
    row = probes._mlps(probes_data.problem(100), separate=2, repeats=1)
    harness.check(harness.document("probes", "how fast?", [row], quick=True))
    assert row.facts["mean_over_heads"] == pytest.approx(row.facts["mean_over_heads_separate"], abs=0.05)
    assert row.facts["accuracy"] > 0.1
