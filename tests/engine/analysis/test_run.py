import json
from dataclasses import replace

import numpy as np
import pytest

from substyle.engine.analysis import run
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable

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


@pytest.mark.parametrize("split", [TRAIN, VAL, TEST])
def test_one_photograph_only(split: int) -> None:
    t = replace(table(images=1), split_N=np.array([split], np.int8))
    answer = analyze(t)
    assert set(answer) == KEYS - {"map"}
    json.dumps(answer, allow_nan=False)
    assert answer["steerability"]["t1"] is None
    assert answer["equivariance"]["t1"] is None
    assert answer["sensitivity"]["t1"] is None  # among one photograph there is no distance
