"""Maps of embeddings: where points lie, and which they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from tests.engine.analysis.test_run import table

from substyle.engine.analysis import geometry
from substyle.engine.analysis.projection import SIDE, embedding_map
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
