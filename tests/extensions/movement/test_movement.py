"""How far variants move: measures against references, and what predicts the loss of accuracy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity
from tests.engine.report.real import real_results

from substyle.engine.extensions.movement.section import MEASURES
from substyle.engine.extensions.movement.stage import STAGE, MovementConfig, movement, radius
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.results.statistics import correlation_interval
from substyle.engine.stages import registry
from substyle.engine.stages.results import validate_results
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study.report import sections_of

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
    table = EmbeddingTable(
        backbone="b",
        x_TND=x_TND.astype(np.float32),
        transformations=names,
        kind=names,
        roles=("train",) * len(names),
        keys=tuple(f"{i % 7}/{i}.jpg" for i in range(count)),
        label_N=np.arange(count) % 2,
        class_names=("a", "b"),
        split_N=np.repeat(np.array([TRAIN, TEST], np.int8), [20, test]),
        distinct_TN=np.ones((len(names), count), np.bool_),
    )
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


def test_severities_and_styles_of_a_generator_count_as_one() -> None:
    table, outcome = some()
    names = ("identity", "a@1", "a@2", "a@3", "b", "c", "d", "e", "f", *(f"s{i}" for i in range(4)))
    generators = ("",) * 9 + ("x", "x", "y", "y")
    table = replace(table, transformations=names, generators=generators)
    outcome = replace(outcome, transformations=names)
    found = movement(table, outcome, QUICK)
    assert (found["transformations"], found["units"]) == (12, 8)
    own, units = found["measures"]["sensitivity"], [[1, 2, 3], [4], [5], [6], [7], [8], [9, 10], [11, 12]]
    sides = [[np.mean([each["by_transformation"][names[t]] for t in unit]) for unit in units] for each in (own, found)]
    assert own["spearman"]["value"] == pytest.approx(float(spearmanr(*sides).statistic))
    low, _ = correlation_interval(own["spearman"]["value"], 8)
    assert own["spearman"]["low"] <= low


def test_generators_are_known_without_a_record() -> None:
    table, outcome = some()
    names = ("identity", *NAMES[1:9], "style_starry", "style_glass", "style_arbitrary", "style_bricks")
    found = movement(replace(table, transformations=names), replace(outcome, transformations=names), QUICK)
    assert (found["transformations"], found["units"]) == (12, 10)


def test_what_does_not_predict_has_no_correlation() -> None:
    spearman = movement(*some(by=0.0, seed=3), QUICK)["measures"]["sensitivity"]["spearman"]
    assert spearman["low"] < 0 < spearman["high"]


def test_differences_are_from_the_default() -> None:
    measures = movement(*some(), QUICK)["measures"]
    assert "difference" not in measures["sensitivity"]
    for name in MEASURES[1:]:
        own, expected = (measures[each]["spearman"]["value"] for each in (name, "sensitivity"))
        difference = measures[name]["difference"]
        assert difference["value"] == pytest.approx(own - expected)
        assert difference["low"] <= 0 <= difference["high"]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_radius_is_that_of_the_smallest_ball(count: int) -> None:
    points = np.random.default_rng(count).normal(size=(count, 4))
    best = minimize(lambda c: np.linalg.norm(points - c, axis=1).max(), points.mean(axis=0), method="Nelder-Mead")
    assert radius(points) == pytest.approx(best.fun, rel=0.02)
    assert radius(points[:1]) == 0.0


def test_only_test_photographs_that_are_scored_count(monkeypatch: pytest.MonkeyPatch) -> None:
    table, outcome = some()
    score_TN = outcome.scores["class/linear"].copy()
    score_TN[:, :30] = np.nan  # without a class
    some_of = replace(outcome, scores={"class/linear": score_TN})
    assert movement(table, some_of, QUICK)["images"] == 90
    monkeypatch.setattr(MovementConfig, "max_images", 50)
    assert movement(table, outcome, QUICK)["images"] == 50


def test_variants_that_equal_the_original_are_left_out() -> None:
    table, outcome = some()
    distinct = table.distinct_TN.copy()
    distinct[3] = False
    found = movement(replace(table, distinct_TN=distinct), outcome, QUICK)
    assert found["transformations"] == 11
    assert "t2" not in found["by_transformation"]


@pytest.mark.slow
def test_intervals_cover_the_correlation_over_all_transformations() -> None:
    """The transformations of a study are a sample, and the loss is measured on enough photographs."""

    def found(count: int, seed: int) -> dict[str, Any]:
        names = ("identity", *(f"t{i}" for i in range(count)))
        table, outcome = some(test=500, seed=seed, by=0.5, names=names)
        return dict(movement(table, outcome, QUICK)["measures"]["sensitivity"])

    truth, covered = found(150, 99)["spearman"]["value"], 0
    assert 0.4 < truth < 0.9
    for seed in range(30):
        spearman = found(12, seed)["spearman"]
        covered += spearman["low"] <= truth <= spearman["high"]
    assert covered >= 27


def test_the_section_and_what_is_compared() -> None:
    results = real_results()
    names = list(results["backbones"])
    for seed, name in enumerate(names):
        results["backbones"][name]["movement"] = movement(*some(seed=seed), QUICK)
    document = validate_results(results)
    (section,) = [each for each in sections_of(document) if each.key == "movement"]
    text, table, plots, *_ = section.blocks
    assert "over 12 transformations, on 120 test photographs" in text.text  # type: ignore[union-attr]
    assert f"for 0 of {len(names)} backbones and worse for 0" in text.text  # type: ignore[union-attr]
    rows: Any = table.table.rows  # type: ignore[union-attr]
    assert rows[0][:2] == (names[0], "Sensitivity")
    own = results["backbones"][names[0]]["movement"]["measures"]["sensitivity"]["spearman"]
    assert rows[0][3] == (own["value"], own["low"], own["high"])
    assert [panel.name for panel in plots.panels] == names  # type: ignore[union-attr]
    compared = list(registry.scores_of(STAGE, document.backbones[names[0]]))
    assert [score.key for score in compared] == [f"movement_{name}" for name in MEASURES]
    assert next(iter(STAGE.lines(results["backbones"][names[0]]["movement"]))).startswith("sensitivity  Spearman")
