"""Temperatures and calibration errors, compared with plain references."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from tests.engine.probes.conftest import Make, Quick

from substyle.engine.probes.calibration import (
    TEMPERATURES,
    at_temperature,
    calibration_error,
    fit_temperature,
    log_probabilities,
)
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.run import run_probes


def plain_error(confidence: Sequence[float], right: Sequence[bool], weight: Sequence[float]) -> float:
    """Naeini et al.: over bins ((m - 1) / 15, m / 15], the difference of accuracy and mean confidence."""
    total = 0.0
    for m in range(15):
        members = [i for i, p in enumerate(confidence) if m / 15 < p <= (m + 1) / 15]
        if mass := sum(weight[i] for i in members):
            accuracy = sum(weight[i] * right[i] for i in members) / mass
            mean = sum(weight[i] * confidence[i] for i in members) / mass
            total += mass / sum(weight) * abs(accuracy - mean)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_that_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, weight = 1 - rng.random(300), rng.random(300) + 0.1
    right = rng.random(300) < confidence**2
    expected = plain_error(confidence.tolist(), right.tolist(), weight.tolist())
    assert calibration_error(confidence, right, weight) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def test_the_error_at_the_ends() -> None:
    one = np.ones(1)
    assert calibration_error(one, np.array([True]), one) == 0.0
    assert calibration_error(one, np.array([False]), one) == 1.0
    assert calibration_error(np.array([1e-9]), np.array([True]), one) == pytest.approx(1.0)
    pair = np.array([0.61, 0.65])  # of one bin: 0.6 of the weight is right, of 0.626 that was said
    assert calibration_error(pair, np.array([True, False]), np.array([0.6, 0.4])) == pytest.approx(0.026)


def reference(logits_SBC: np.ndarray, answer_B: np.ndarray, weight_B: np.ndarray) -> float:
    """Smallest weighted negative log likelihood, with one more row whose runner-up is right."""
    mean_BC = np.log(softmax(logits_SBC, axis=2).mean(0))
    rows = 1 / (weight_B**2).sum()

    def loss(temperature: float) -> float:
        log_p_BC = log_softmax(mean_BC / temperature, axis=1)
        total = 0.0
        for b, label in enumerate(answer_B):
            second = np.argsort(-mean_BC[b])[1]
            total -= weight_B[b] * (rows * log_p_BC[b, label] + log_p_BC[b, second]) / (rows + 1)
        return total

    grid = np.geomspace(*TEMPERATURES, 200)
    best = grid[np.argmin([loss(temperature) for temperature in grid])]
    found = minimize_scalar(loss, bounds=(best / 1.1, min(best * 1.1, TEMPERATURES[1])), method="bounded")
    return float(found.x)


def fitted(logits_SBC: np.ndarray, answer_B: np.ndarray, weight_B: np.ndarray) -> float:
    log_p_CB = log_probabilities(torch.from_numpy(logits_SBC).transpose(1, 2))
    return fit_temperature(log_p_CB, torch.from_numpy(answer_B), torch.from_numpy(weight_B))


@pytest.mark.parametrize(("seeds", "scale"), [(1, 0.2), (1, 1.0), (1, 6.0), (3, 2.0)])
def test_the_temperature_is_that_of_a_plain_reference(seeds: int, scale: float) -> None:
    """Labels are drawn from the softmax of the logits, which are then multiplied: the temperature undoes it."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(1, 400, 6))
    answer = np.array([rng.choice(6, p=p) for p in softmax(logits[0], axis=1)])
    given = scale * logits + 0.1 * rng.normal(size=(seeds, 400, 6))
    weight = rng.random(400) + 0.5
    weight /= weight.sum()
    temperature = fitted(given, answer, weight)
    assert temperature == pytest.approx(reference(given, answer, weight), rel=1e-3)
    assert temperature == pytest.approx(scale, rel=0.2)


def test_few_rows_without_a_mistake_are_not_certain() -> None:
    """Their likelihood alone is highest at temperature 0. After n right rows, one of n + 1 is expected to be wrong."""
    logits, weight = np.zeros((1, 30, 4)), np.full(30, 1 / 30)
    logits[..., 2] = 3.0
    right = np.full(30, 2)
    temperature = fitted(logits, right, weight)
    confidence = at_temperature(log_probabilities(torch.from_numpy(logits).transpose(1, 2)), temperature)[2]
    assert float(confidence[0]) == pytest.approx(30 / 31, abs=0.002)
    assert fitted(-logits, right, weight) == pytest.approx(TEMPERATURES[1], rel=1e-2)  # all wrong
    assert fitted(0 * logits, right, weight) == 1.0  # no temperature changes anything


def test_predictions_stay_the_same() -> None:
    log_p_CB = log_probabilities(torch.randn(2, 31, 500, generator=torch.Generator().manual_seed(0)))
    for temperature in (*TEMPERATURES, 0.7, 3.0):
        p_CB = at_temperature(log_p_CB, temperature)
        assert torch.equal(p_CB.argmax(0), log_p_CB.argmax(0))
        torch.testing.assert_close(p_CB.sum(0), torch.ones(500, dtype=torch.float64))


def test_saved_probes_are_calibrated(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    """Errors in results are those of the saved probe on test rows; without its temperature they are as before."""
    table = make_table(images=200, style=0.5)
    outcome = run_probes(table, quick(mlp_steps=10, multitask_steps=5), out_dir=tmp_path, quiet=True)
    results: dict[str, Any] = json.loads(json.dumps(outcome.results, allow_nan=False))
    test_N, base = table.rows(2), table.transformations.index("identity")
    labels = {"transformation": table.families, "kind": table.kind}
    train_T = [t for t, role in enumerate(table.roles) if role == "train"]
    for path in tmp_path.glob("*.safetensors"):
        task, _, head = path.stem.partition("-")
        entry = results[task] if task == "multitask" else results[task][head]
        probe = Probe.load(path)
        assert probe.calibration == entry["calibration"]
        bare = replace(probe, metadata={**probe.metadata, "outputs": [
            {"name": name, "labels": own} for name, own in probe.labels.items()
        ]})  # fmt: skip
        for name, own in probe.labels.items():
            stated, rows_T = entry["calibration"][name], {"class": [base], "kind": train_T}.get(name, range(8))
            assert TEMPERATURES[0] <= stated["temperature"] <= TEMPERATURES[1]
            x = np.concatenate([table.x_TND[t, test_N] for t in rows_T])
            if name == "class":
                truth = [table.class_names[label] for label in table.label_N[test_N]]
            else:
                truth = [labels[name][t] for t in rows_T for _ in test_N]
            weight = [1 / truth.count(label) if name == "kind" else 1.0 for label in truth]
            for key, applied in (("ece", probe), ("ece_before", bare)):
                p = applied.predict_all(x)[name]
                right = [own[c] == label for c, label in zip(p.argmax(1), truth, strict=True)]
                expected = plain_error(p.max(1).tolist(), right, weight)
                assert stated[key] == pytest.approx(expected, abs=0.01)
                assert math.isfinite(stated[key])
