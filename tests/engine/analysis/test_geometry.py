"""Geometry of embeddings, maps, clusters, and the photographs that they are of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.pairwise import paired_cosine_distances
from tests.tables import table_of, with_copies

from substyle.engine.analysis import geometry, neighbors, run
from substyle.engine.analysis.projection import SIDE, embedding_map
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, strength: float) -> np.ndarray:
    """Ridge regression with an intercept from the normal equations in float64."""
    x, y, new = (a.astype(np.float64) for a in (x, y, new))
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a = (x - mean_x).T @ (x - mean_x) + strength * np.eye(x.shape[1])
    return (new - mean_x) @ np.linalg.solve(a, (x - mean_x).T @ (y - mean_y)) + mean_y


def test_sensitivity_equals_scikit_learn_and_does_not_see_a_cone() -> None:
    identity = normal(0, 40, 9)
    variant = identity + 0.5 * normal(1, 40, 9)
    mean = identity.mean(axis=0)
    found = geometry.sensitivity(identity, variant, mean)
    assert found == pytest.approx(paired_cosine_distances(identity - mean, variant - mean), abs=1e-5)
    cone = 30 * np.abs(normal(2, 1, 9))
    moved = geometry.sensitivity(2 * identity + cone, 2 * variant + cone, 2 * mean + cone[0])
    assert moved == pytest.approx(found, abs=1e-3)
    assert paired_cosine_distances(identity + cone, variant + cone).mean() < 0.05 * found.mean()


def test_sensitivity_is_nought_for_the_same_and_one_for_another_photograph() -> None:
    identity = normal(0, 500, 32)
    mean = identity.mean(axis=0)
    assert geometry.sensitivity(identity, identity, mean) == pytest.approx(np.zeros(500), abs=1e-5)
    assert geometry.sensitivity(identity, np.roll(identity, 1, axis=0), mean).mean() == pytest.approx(1.0, abs=0.02)
    assert np.isnan(geometry.sensitivity(identity[:1], identity[1:2], identity[0])).all()


def test_equivariance_is_the_root_of_the_mean_cosine_of_pairs() -> None:
    identity, variant = normal(2, 15, 6), normal(3, 15, 6) + 2
    moved = (variant - identity).astype(np.float64)
    direction = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    pairs = [direction[i] @ direction[j] for i in range(15) for j in range(15) if i != j]
    value, ends, count = geometry.equivariance(identity, variant, np.arange(15), 0)
    assert count == 15
    assert value == pytest.approx(np.sqrt(np.mean(pairs)), abs=1e-5)
    assert ends is not None
    assert 0 <= ends[0] < value < ends[1] <= 1


def steer(x: np.ndarray, y: np.ndarray, fit: slice, choose: slice, score: slice) -> float | None:
    ridge = geometry.Ridge.of(x[fit])
    return geometry.steerability(
        ridge,
        y[fit],
        val_z_VK=ridge.coordinates(x[choose]),
        val_y_VD=y[choose],
        test_z_MK=ridge.coordinates(x[score]),
        test_y_MD=y[score],
    )


@pytest.mark.parametrize("train", [15, 80], ids=["dual", "primal"])
def test_steerability_equals_choosing_a_strength_by_hand(train: int) -> None:
    x = normal(12, train + 40, 30)
    y = x @ normal(13, 30, 30) * 0.3 + normal(14, train + 40, 30)
    fit, choose, score = slice(0, train), slice(train, train + 20), slice(train + 20, train + 40)
    strengths = geometry.Ridge.of(x[fit]).strengths()
    errors = [np.square(plain_ridge(x[fit], y[fit], x[choose], s) - y[choose]).sum() for s in strengths]
    predicted = plain_ridge(x[fit], y[fit], x[score], strengths[int(np.argmin(errors))])
    spread = np.square(y[score] - y[fit].mean(axis=0)).sum()
    expected = 1 - np.square(predicted - y[score]).sum() / spread
    assert steer(x, y, fit, choose, score) == pytest.approx(expected, abs=1e-3)


def test_unrelated_labelings_have_no_ami_however_many_clusters() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 60, 300), rng.integers(0, 60, 300)
    assert normalized_mutual_info_score(a, b) > 0.5
    assert abs(neighbors.adjusted_mutual_information(a, b)) < 0.05


def test_of_near_duplicates_one_is_drawn() -> None:
    t = table_of(np.zeros((1, 60, 4)), ["identity"], first_N=np.arange(60) // 3 * 3, label_N=np.zeros(60, np.int64))
    assert geometry.draw_images(t, np.arange(60)[::-1], 60, 0).tolist() == list(range(0, 60, 3))
    assert geometry.draw_images(t, np.array([4, 5, 8]), 60, 0).tolist() == [4, 8]
    drawn = geometry.draw_images(t, np.arange(60), 7, 0)
    assert len(drawn) == len(set((drawn // 3).tolist())) == 7
    labelled = replace(t, label_N=np.arange(60) % 3 // 2)  # the third of each group has another label
    assert geometry.draw_images(labelled, np.arange(60), 60, 0).tolist() == [n for n in range(60) if n % 3 != 1]


def table(images: int = 90, style: float = 1.0, variants: int = 5, width: int = 16) -> EmbeddingTable:
    """Embedding = class + photograph + style + noise, each a random direction."""
    rng = np.random.default_rng(0)
    label = np.arange(images) % 3
    photograph = rng.normal(size=(3, width))[label] + 0.5 * rng.normal(size=(images, width))
    styles = style * rng.normal(size=(variants, 1, width))
    styles[0] = 0
    x_TND = photograph + styles + 0.3 * rng.normal(size=(variants, images, width))
    split_N = np.array([TRAIN, TRAIN, VAL, TEST, TEST])[np.arange(images) % 5].astype(np.int8)
    return table_of(x_TND, ["identity", *(f"t{i}" for i in range(1, variants))], split_N=split_N)


def test_neighbours_on_the_map_are_neighbours_among_the_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("substyle.engine.analysis.projection.POINTS", 100)
    drawn, config = table(style=3.0), AnalysisConfig()
    found = embedding_map(drawn, geometry.query_rows(drawn, config.max_queries, 0), config)["map"]
    place_R2 = np.stack([found["x"], found["y"]], axis=1)
    assert (place_R2.min(), place_R2.max()) == (0, SIDE)
    assert place_R2.min(axis=0) + place_R2.max(axis=0) == pytest.approx(SIDE, abs=1)
    assert trustworthiness(geometry.query_rows(drawn, 100, 0).x_RD, place_R2, n_neighbors=5) > 0.9


def analyze(t: EmbeddingTable, **settings: object) -> dict[str, Any]:
    return run.analyze(t, AnalysisConfig(**settings), quiet=True)


@pytest.mark.slow
def test_intervals_over_folders_are_wider_where_photographs_of_one_are_alike() -> None:
    """Ten copies of each photograph per folder: same estimates, wider intervals."""
    t = table()
    apart, together = (analyze(with_copies(t, 10), resample_by=by) for by in ("photograph", "folder"))
    assert together["sampled"]["resample_by"] == "folder"
    for measure in ("steerability", "retrieval"):
        assert together[measure] == apart[measure]
    for name in ("same_image", "same_transformation", "both", "neither"):
        assert together["balance"][name]["value"] == apart["balance"][name]["value"]
    for measure in ("sensitivity", "equivariance"):
        assert together[measure].keys() == apart[measure].keys() == set(t.transformations[1:])
        for wide, narrow in zip(together[measure].values(), apart[measure].values(), strict=True):
            assert wide["value"] == narrow["value"]
            assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
            assert (wide["unit"], narrow["unit"]) == ("folder", "photograph")
            assert narrow["n"] == 10 * wide["n"]


@pytest.mark.parametrize("split", [TRAIN, TEST])
def test_one_photograph_has_no_distances(split: int) -> None:
    answer = analyze(replace(table(images=1), split_N=np.array([split], np.int8)))
    assert [answer[name]["t1"] for name in ("steerability", "equivariance", "sensitivity")] == [None] * 3


@pytest.mark.parametrize(("images", "width"), [(12, 40), (40, 12), (20, 20)], ids=["dual", "primal", "square"])
def test_ridge_predictions_equal_the_normal_equations(images: int, width: int) -> None:
    x, y, new = normal(9, images, width) + 3, normal(10, images, 5) - 2, normal(11, 7, width) + 3
    ridge = geometry.Ridge.of(x)
    target = ridge.basis_NK.T @ (y - y.mean(axis=0))
    for strength in ridge.strengths()[2:]:
        found = (ridge.coordinates(new) / (ridge.eigenvalue_K + strength)) @ target + y.mean(axis=0)
        assert found == pytest.approx(plain_ridge(x, y, new, strength), abs=2e-3)


def test_unchanged_r2_equals_the_formula() -> None:
    train, identity, variant = normal(20, 9, 5), normal(21, 6, 5), normal(22, 6, 5)
    spread = np.square(variant - train.mean(axis=0)).sum()
    expected = 1 - np.square(variant - identity).sum() / spread
    assert geometry.unchanged_r2(train, identity, variant) == pytest.approx(expected, rel=1e-4)
    assert geometry.unchanged_r2(train[:0], identity, variant) is None


def test_steerability_without_images_or_spread_is_unknown() -> None:
    x, constant = normal(18, 10, 4), np.ones((10, 4), np.float32)
    assert steer(x, x, slice(0, 8), slice(8, 10), slice(10, 10)) is None
    assert steer(x, x, slice(0, 8), slice(8, 8), slice(8, 10)) is None
    assert steer(constant, constant, slice(0, 6), slice(6, 8), slice(8, 10)) is None
