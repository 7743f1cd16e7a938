"""Styles of unseen generators: what probes are trained on and scored on, and what intervals cover."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tests.conftest import slow_after
from tests.engine.report.real import drop, real_results
from tests.tables import table_of

from substyle.engine.extensions.generators import stage
from substyle.engine.extensions.generators.stage import GeneratorsConfig, contrast, unseen_styles
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.crossed import Crossed, jackknife, mean_over_pairs
from substyle.engine.probes.resampling import ACCURACY, BootstrapResult
from substyle.engine.stages.execution import folder_of
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.stage import Unit
from substyle.engine.store.layout import TEST, TRAIN, VAL, slug
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError

GENERATORS = {"net": [3, 4, 5], "ink": [6, 7, 8], "oil": [9, 10, 11], "dots": [12, 13, 14]}
NAMES = ("identity", "jpeg", "blur", *(f"{name}_{i}" for name in GENERATORS for i in range(3)))
WIDTH = 12


@pytest.fixture(autouse=True)
def four_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "by_generator", lambda names, recorded: GENERATORS if "net_0" in names else {})


def some(count: int = 60, seed: int = 0, alike: float = 1.0) -> EmbeddingTable:
    """Embeddings in which styles have a direction in common, and one of their own for each generator."""
    rng = np.random.default_rng(seed)
    x_TND = rng.normal(size=(len(NAMES), count, WIDTH)) * 0.7
    x_TND[1, :, 0] += 2
    x_TND[2, :, 1] += 2
    for number, own in enumerate(GENERATORS.values()):
        x_TND[own, :, 2] += 2 * alike
        x_TND[own, :, 4 + number] += 2
    return table_of(
        x_TND,
        NAMES,
        kind=("identity", "compression", "blur", *["style"] * 12),
        roles=("train", "train", *["held_out"] * 13),
        split_N=np.resize(np.array([TRAIN, VAL, TEST], np.int8), count),
    )


def test_each_generator_trains_in_turn_as_scikit_learn_does() -> None:
    table, config = some(), GeneratorsConfig(draws=1)
    found, crossed = unseen_styles(table, config, ProbeConfig(device="cpu"))
    train, test = table.rows(TRAIN), table.rows(TEST)
    seen = [0, 1]  # the held-out blur is not trained on
    rows = np.concatenate([table.x_TND[t, train] for t in seen])
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    expected = np.full((4, 4), np.nan)
    for g, own in enumerate(GENERATORS.values()):
        used = [*seen, *own]
        x = (np.concatenate([table.x_TND[t, train] for t in used]) - mean) / scale
        y = np.repeat([0, 1, 2, 2, 2], len(train))
        weight = np.repeat([1, 1, *[1 / 3] * 3], len(train))
        model = LogisticRegression(C=0.01 * len(weight) / weight.sum(), tol=1e-8, max_iter=10_000)
        model.fit(x, y, weight)
        for h, other in enumerate(GENERATORS.values()):
            if h != g:
                right = [model.predict((table.x_TND[t, test] - mean) / scale) == 2 for t in other]
                expected[g, h] = np.mean(right)
    np.testing.assert_allclose(crossed.score_GG, expected, atol=0.02)
    assert found["accuracy"]["value"] == pytest.approx(np.nanmean(expected), abs=0.01)
    assert found["matrix"][1][1] is None
    assert list(found["by_style"]) == list(NAMES[3:])
    assert (found["converged"], found["images"], found["generators"]) == (True, 20, list(GENERATORS))
    assert 0.5 < found["seen"] <= 1


@pytest.mark.parametrize(
    ("row", "column", "pair", "training", "most"),
    slow_after(
        1, [(3, 3, 1, 6, 0.975), (10, 10, 0, 1, 0.97), (3, 12, 6, 1, 0.99), (0, 0, 10, 1, 1.0), (12, 0, 3, 1, 0.97)]
    ),
)
def test_intervals_cover_with_generators_as_a_sample(
    row: float, column: float, pair: float, training: float, most: float
) -> None:
    """Standard deviations in points; photographs add 2. 1,000 samples of 12 generators, probes on 5 resamples."""
    rng = np.random.default_rng(7)
    covered, count = 0, 1000
    for _ in range(count):
        own = rng.normal(size=(2, 12))
        score_GG = 0.5 + 0.01 * (row * own[0][:, None] + column * own[1] + pair * rng.normal(size=(12, 12)))
        score_GG += 0.02 * rng.normal() + 0.01 * training * rng.normal()
        replicates_R = mean_over_pairs(score_GG) + 0.02 * rng.normal(size=200)
        training_S = mean_over_pairs(score_GG) + 0.01 * training * rng.normal(size=5)
        photographs = BootstrapResult(mean_over_pairs(score_GG), replicates_R, 100, bounds=ACCURACY)
        low, high = Crossed(score_GG, photographs, training_S).ci95(0, 1) or (1, 0)
        covered += low <= 0.5 <= high
    assert 0.93 * count <= covered <= most * count


def test_contrasts_are_of_what_was_stored(tmp_path: Path) -> None:
    results = drop(real_results(), "generators")
    names = [name for name, entry in results["backbones"].items() if not entry["control"]][:2]
    config, found, known = GeneratorsConfig(bootstrap=200), {}, {}
    run = stage.Run(None, tmp_path, {name: some(alike=i) for i, name in enumerate(names)})  # type: ignore[arg-type]
    for name in names:
        folder = folder_of(stage.STAGE, run, Unit(name, slug(name)))
        folder.mkdir(parents=True)
        stage.STAGE.compute(run, config, Unit(name, slug(name)), folder)
        found[name] = stage.STAGE.load(run, folder)
        _, known[name] = unseen_styles(run.tables[name], config, ProbeConfig(device="cpu"))
    run.results = {"generators": found}
    (row,) = stage.STAGE.of_document(run, validate_results(results))["generators"]["contrasts"]
    expected = contrast(*names, *known.values())
    assert {key: row[key] for key in expected} == expected
    assert (row["p_holm"], row["converged"]) == (row["p"], True)
    path = folder_of(stage.STAGE, run, Unit(names[0], slug(names[0]))) / "crossed.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SubstyleError, match=r"crossed\.npz: cannot read scores"):
        stage.STAGE.of_document(run, validate_results(results))


def test_the_jackknife_of_generators_that_differ_is_that_of_their_mean() -> None:
    rng = np.random.default_rng(1)
    a_G, b_G = rng.normal(size=(2, 9))
    score_GG = a_G[:, None] + b_G[None]
    score_GG[np.diag_indices(9)] = 1e9  # not used
    assert mean_over_pairs(score_GG) == pytest.approx((a_G + b_G).mean())
    assert jackknife(score_GG) == pytest.approx((a_G + b_G).std(ddof=1) / 3)
    assert math.isnan(jackknife(np.ones((2, 2))))
