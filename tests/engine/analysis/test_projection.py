"""Maps of embeddings: where points lie, and which they are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.engine.analysis.test_run import table

from substyle.engine.analysis import geometry
from substyle.engine.analysis.projection import embedding_map, project
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.table import EmbeddingTable


def drawn(table: EmbeddingTable, points: int = 600, seed: int = 0) -> dict[str, Any]:
    config = AnalysisConfig(seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("substyle.engine.analysis.projection.POINTS", points)
        return embedding_map(table, geometry.query_rows(table, config.max_queries, config.seed), config)


_CUML = """
class UMAP:
    def __init__(self, *, n_neighbors, random_state, output_type):
        assert (random_state, output_type) == (5, "numpy")
        self.n_neighbors = n_neighbors

    def fit_transform(self, x):
        return x[:, :2] + self.n_neighbors
"""


@pytest.mark.parametrize("rows", [1, 40])
def test_equal_embeddings_are_one_point_and_have_no_map(rows: int) -> None:
    assert project(np.ones((rows, 8), np.float32), "tsne", 0).tolist() == [[0, 0]] * rows
    same = table()
    assert drawn(replace(same, x_TND=np.ones_like(same.x_TND))) == {}


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
