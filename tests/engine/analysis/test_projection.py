"""Maps of embeddings: where points lie, and which they are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from tests.engine.analysis.test_run import table

from substyle.engine.analysis import geometry
from substyle.engine.analysis.projection import SIDE, embedding_map, project
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.table import EmbeddingTable


def drawn(table: EmbeddingTable, points: int = 600, seed: int = 0) -> dict[str, Any]:
    config = AnalysisConfig(seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("substyle.engine.analysis.projection.POINTS", points)
        return embedding_map(table, geometry.query_rows(table, config.max_queries, config.seed), config)


@pytest.fixture(scope="module")
def mapped() -> dict[str, list[int]]:
    return drawn(table(style=3.0), 100)["map"]


def test_neighbours_on_the_map_are_neighbours_among_the_embeddings(mapped: dict[str, list[int]]) -> None:
    place_R2 = np.stack([mapped["x"], mapped["y"]], axis=1)
    assert (place_R2.min(), place_R2.max()) == (0, SIDE)
    assert place_R2.min(axis=0) + place_R2.max(axis=0) == pytest.approx(SIDE, abs=1)
    rows = geometry.query_rows(table(style=3.0), 100, 0)
    assert trustworthiness(rows.x_RD, place_R2, n_neighbors=5) > 0.9


def test_points_are_variants_of_whole_test_photographs(mapped: dict[str, list[int]]) -> None:
    rows = geometry.query_rows(table(style=3.0), 100, 0)
    assert mapped["transformation"] == rows.transformation_R.tolist()
    assert mapped["class"] == rows.label_R.tolist()
    assert len(mapped["x"]) == 100
    assert mapped["transformations"] == ["identity", "t1", "t2", "t3", "t4"]
    assert mapped["kind"] == ["identity"] + ["blur"] * 4


@pytest.mark.parametrize(("images", "points"), [(90, 0), (90, 29), (10, 600)])
def test_too_few_points_make_no_map(images: int, points: int) -> None:
    assert drawn(table(images), points) == {}


def test_variants_with_equal_embeddings_and_a_large_seed_have_a_map() -> None:
    found = drawn(table(style=0.0, noise=0.0), 180, seed=2**40)["map"]
    assert len(found["x"]) == len(found["y"]) == 180


@pytest.mark.parametrize("rows", [1, 40])
def test_equal_embeddings_are_one_point_and_have_no_map(rows: int) -> None:
    assert project(np.ones((rows, 8), np.float32), "tsne", 0).tolist() == [[0, 0]] * rows
    same = table()
    assert drawn(replace(same, x_TND=np.ones_like(same.x_TND))) == {}


_CUML = """
class UMAP:
    def __init__(self, *, n_neighbors, random_state, output_type):
        assert (random_state, output_type) == (5, "numpy")
        self.n_neighbors = n_neighbors

    def fit_transform(self, x):
        return x[:, :2] + self.n_neighbors
"""


@pytest.mark.parametrize("gpu", [False, True])
def test_umap_runs_on_a_gpu_that_cuml_can_use(gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cuml").mkdir()
    (tmp_path / "cuml" / "__init__.py").touch()
    (tmp_path / "cuml" / "manifold.py").write_text(_CUML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setitem(
        sys.modules, "umap", SimpleNamespace(UMAP=lambda **options: SimpleNamespace(fit_transform=np.zeros_like))
    )
    x_RD = np.eye(6, 4, dtype=np.float32)
    made = project(x_RD, "umap", 5)
    monkeypatch.delitem(sys.modules, "cuml", raising=False)
    monkeypatch.delitem(sys.modules, "cuml.manifold", raising=False)
    assert np.array_equal(made, x_RD[:, :2] + 5 if gpu else np.zeros_like(x_RD))
