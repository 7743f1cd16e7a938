import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from substyle.engine.analysis import geometry, run
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError

KEYS = {
    "knn",
    "balance",
    "retrieval",
    "clusters",
    "sensitivity",
    "equivariance",
    "steerability",
    "steerability_unchanged",
    "map",
    "sampled",
}


@pytest.mark.parametrize("split", [TRAIN, TEST])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(split: int, bad: float) -> None:
    t = table()
    t.x_TND[2, t.rows(split)[3], 5] = bad
    with pytest.raises(SubstyleError, match="toy contain NaN"):
        run.analyze(t, AnalysisConfig(), quiet=True)


def table(
    images: int = 90,
    variants: int = 5,
    width: int = 16,
    *,
    style: float = 1.0,
    substance: float = 1.0,
    noise: float = 0.3,
) -> EmbeddingTable:
    """Embedding = class + photograph + style + noise, each a random direction."""
    rng = np.random.default_rng(0)
    label = np.arange(images) % 3
    photograph = substance * rng.normal(size=(3, width))[label] + 0.5 * rng.normal(size=(images, width))
    styles = style * rng.normal(size=(variants, 1, width))
    styles[0] = 0
    x = photograph + styles + noise * rng.normal(size=(variants, images, width))
    return EmbeddingTable(
        backbone="toy",
        x_TND=x.astype(np.float16),
        transformations=("identity", *(f"t{i}" for i in range(1, variants))),
        kind=("identity",) + ("blur",) * (variants - 1),
        roles=("train",) * variants,
        keys=tuple(f"image {i}" for i in range(images)),
        label_N=label,
        class_names=("a", "b", "c"),
        split_N=np.array([TRAIN, TRAIN, VAL, TEST, TEST])[np.arange(images) % 5].astype(np.int8),
        distinct_TN=np.ones((variants, images), bool),
    )


def analyze(t: EmbeddingTable, **settings: object) -> dict:
    return run.analyze(t, AnalysisConfig(**settings), quiet=True)


def test_all_keys_plain_json_and_the_same_again() -> None:
    t = table()
    answer = analyze(t)
    assert set(answer) == KEYS
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert analyze(t) == answer
    for measure in ("sensitivity", "equivariance", "steerability", "steerability_unchanged"):
        assert list(answer[measure]) == list(t.transformations[1:])
    assert answer["sampled"] == {
        "queries": 180,
        "query_images": 36,
        "bank": 180,
        "bank_images": 36,
        "ridge_train": 36,
        "ridge_val": 18,
        "test_images": 36,
        "resample_by": "photograph",
    }


@pytest.mark.slow
def test_intervals_over_folders_are_wider_where_photographs_of_one_are_alike() -> None:
    """Ten copies of each photograph per folder: same estimates, wider intervals."""
    t = table()
    copies = replace(
        t,
        x_TND=np.repeat(t.x_TND, 10, axis=1),
        keys=tuple(f"{n:02d}/{copy}.jpg" for n in range(len(t.keys)) for copy in range(10)),
        label_N=np.repeat(t.label_N, 10),
        split_N=np.repeat(t.split_N, 10),
        distinct_TN=np.repeat(t.distinct_TN, 10, axis=1),
    )
    apart, together = (analyze(copies, resample_by=by) for by in ("photograph", "folder"))
    assert together["sampled"]["resample_by"] == "folder"
    for measure in ("steerability", "retrieval"):
        assert together[measure] == apart[measure]
    for name in ("same_image", "same_transformation", "both", "neither"):
        assert together["balance"][name]["value"] == apart["balance"][name]["value"]
    assert together["balance"]["queries"] == apart["balance"]["queries"]
    for measure in ("sensitivity", "equivariance"):
        assert together[measure].keys() == apart[measure].keys() == set(t.transformations[1:])
        for wide, narrow in zip(together[measure].values(), apart[measure].values(), strict=True):
            assert wide["value"] == narrow["value"]
            assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
            assert (wide["unit"], narrow["unit"]) == ("folder", "photograph")
            assert narrow["n"] == 10 * wide["n"]


def test_style_and_substance_show_where_they_are() -> None:
    styled, plain = analyze(table(style=3.0, substance=0.2)), analyze(table(style=0.1, substance=3.0))
    assert styled["knn"]["transformation"]["1"]["value"] > 0.95
    assert plain["knn"]["transformation"]["1"]["value"] < 0.5
    assert plain["knn"]["class"]["1"]["value"] > 0.95 > styled["knn"]["class"]["1"]["value"]
    less, more = (answer["balance"]["same_transformation"]["value"] for answer in (plain, styled))
    assert less < more
    assert styled["sensitivity"]["t1"]["value"] > plain["sensitivity"]["t1"]["value"]
    assert styled["equivariance"]["t1"]["value"] > 0.9 > plain["equivariance"]["t1"]["value"]


def test_geometry_is_over_test_images_and_fits_on_train_images() -> None:
    t = table()
    answer = analyze(t)
    identity, variant = (t.x_TND[i].astype(np.float32) for i in (0, 3))
    test, train, val = t.rows(TEST), t.rows(TRAIN), t.rows(VAL)
    mean = identity[test].mean(axis=0)
    assert answer["sensitivity"]["t3"]["value"] == pytest.approx(
        1 - np.diag(cosine_similarity(variant[test] - mean, identity[test] - mean)).mean(), abs=1e-5
    )
    ridge = geometry.Ridge.of(identity[train])
    expected = geometry.steerability(
        ridge,
        variant[train],
        val_z_VK=ridge.coordinates(identity[val]),
        val_y_VD=variant[val],
        test_z_MK=ridge.coordinates(identity[test]),
        test_y_MD=variant[test],
    )
    assert answer["steerability"]["t3"] == pytest.approx(expected, abs=1e-5)


def test_indistinct_rows_count_for_nothing() -> None:
    t = table()
    hidden = t.distinct_TN.copy()
    hidden[2, ::3] = False
    wild = t.x_TND.copy()
    wild[2, ::3] = 1000.0  # what they hold must not matter
    answer = analyze(replace(t, distinct_TN=hidden))
    assert answer == analyze(replace(t, distinct_TN=hidden, x_TND=wild))
    assert answer != analyze(t)
    assert answer["knn"]["queries"] == 180 - 12
    assert answer["sensitivity"]["t1"] == analyze(t)["sensitivity"]["t1"]


def test_samples_are_of_the_stated_size() -> None:
    answer = analyze(table(), max_queries=50, max_bank=70, max_images=12)
    sampled = answer["sampled"]
    assert (sampled["queries"], sampled["query_images"]) == (50, 10)
    assert (sampled["bank"], sampled["bank_images"]) == (36, 36)
    assert (sampled["ridge_train"], sampled["ridge_val"], sampled["test_images"]) == (12, 12, 12)
    assert answer["knn"]["queries"] == answer["balance"]["queries"] == 50
    assert answer["knn"]["transformation"]["50"] is None  # more than the 36 in the bank


@pytest.mark.parametrize("threads", [0, 1])
def test_threads_are_limited_only_meanwhile(threads: int) -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    assert set(analyze(table(), threads=threads)) == KEYS
    assert faiss.omp_get_max_threads() == before


def without_labels(t: EmbeddingTable) -> EmbeddingTable:
    return replace(t, label_N=np.full(len(t.keys), -1), class_names=())


def test_no_labels_no_class_scores() -> None:
    answer = analyze(without_labels(table()))
    assert answer["knn"]["class"] is None
    assert answer["clusters"]["ami_class"] is None
    assert answer["knn"]["transformation"]["1"] is not None


def test_without_validation_images_training_images_stand_in() -> None:
    t = table()
    answer = analyze(replace(t, split_N=np.where(t.split_N == VAL, TRAIN, t.split_N).astype(np.int8)))
    assert answer["sampled"]["ridge_train"] + answer["sampled"]["ridge_val"] == 54
    assert answer["sampled"]["ridge_val"] == 11
    assert answer["steerability"]["t1"] is not None


@pytest.mark.parametrize("split", [TRAIN, VAL, TEST])
def test_one_photograph_only(split: int) -> None:
    t = replace(table(images=1), split_N=np.array([split], np.int8))
    answer = analyze(t)
    assert set(answer) == KEYS - {"map"}
    json.dumps(answer, allow_nan=False)
    assert answer["steerability"]["t1"] is None
    assert answer["equivariance"]["t1"] is None
    assert answer["sensitivity"]["t1"] is None  # among one photograph there is no distance


def test_one_photograph_of_each_split() -> None:
    answer = analyze(replace(table(images=3), split_N=np.array([TRAIN, VAL, TEST], np.int8)))
    assert answer["knn"]["transformation"]["5"] is not None
    assert answer["knn"]["transformation"]["10"] is None
    assert answer["knn"]["transformation"]["1"].keys().isdisjoint(("low", "high"))  # no interval over one image


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_embeddings_tell_nothing(value: float) -> None:
    t = table()
    answer = analyze(replace(t, x_TND=np.full_like(t.x_TND, value)))
    json.dumps(answer, allow_nan=False)
    assert answer["knn"]["transformation"]["1"]["value"] <= 0.5
    assert answer["sensitivity"]["t1"] is None
    assert answer["equivariance"]["t1"] is None
    assert answer["steerability"]["t1"] is None


def test_only_identity() -> None:
    answer = analyze(table(variants=1))
    assert answer["sensitivity"] == {}
    assert answer["clusters"]["ami_transformation"] is None
    assert answer["balance"]["same_image"]["value"] == 0.0
