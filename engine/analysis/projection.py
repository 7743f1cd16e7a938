"""Two-dimensional maps of embeddings."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from substyle.engine.analysis import geometry
from substyle.engine.analysis.geometry import F32, SampledRows
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable

PROJECTIONS = {"umap": "umap", "pacmap": "pacmap", "tsne": "sklearn"}
"""Methods, and the module that each requires."""

SIDE = 1000
"""Coordinates of a map are whole numbers from 0 to this."""

POINTS, _FEWEST = 600, 30  # rows of a map: at most, and at least
_PERPLEXITY = 30.0
_STEPS = 500  # as good as the default of 1000 for up to some thousand points, in half the time


def project(x_RD: F32, method: str, seed: int) -> F32:
    """Place unit rows in two dimensions by ``umap``, ``pacmap`` or ``tsne``. Shape: (R, D) to (R, 2).

    UMAP runs on the GPU if there is one and cuML is installed.
    """
    seed %= 2**32  # larger ones are refused
    if method == "umap":
        nearest = min(15, len(x_RD) - 1)
        if torch.cuda.is_available() and find_spec("cuml") is not None:
            from cuml.manifold import UMAP as CumlUMAP

            made = CumlUMAP(random_state=seed, n_neighbors=nearest, output_type="numpy").fit_transform(x_RD)
        else:
            from umap import UMAP

            made = UMAP(random_state=seed, n_jobs=1, n_neighbors=nearest).fit_transform(x_RD)
    elif method == "pacmap":
        from pacmap import PaCMAP

        made = PaCMAP(random_state=seed).fit_transform(x_RD)
    elif (x_RD == x_RD[0]).all():  # scikit-learn crashes
        made = np.zeros((len(x_RD), 2))
    else:
        from sklearn.manifold import TSNE

        perplexity = min(_PERPLEXITY, (len(x_RD) - 1) / 3)
        made = TSNE(random_state=seed, perplexity=perplexity, max_iter=_STEPS).fit_transform(x_RD)
    return np.asarray(made, np.float32)


def embedding_map(table: EmbeddingTable, queries: SampledRows, config: AnalysisConfig) -> dict[str, Any]:
    """Map variants of test photographs by t-SNE (van der Maaten and Hinton, JMLR 9, 2008), of unit embeddings.

    Distances between clusters and their sizes have no meaning. All backbones show the same photographs.

    Args:
        queries: `geometry.query_rows` of the table, of which as many whole photographs are shown as fit in
            `POINTS`.

    Returns:
        ``{"map": {"x", "y", "transformation", "class", "transformations", "kind"}}``: coordinates from 0 to `SIDE`,
        index of the transformation and of the class (-1: none) of each point; names and kinds of the
        transformations. Empty if there are fewer than 30 variants with different embeddings.
    """
    count = max(POINTS // len(table.transformations), 1)
    images = geometry.draw_images(table, table.rows(TEST), count, config.seed)
    rows = queries.take(np.isin(queries.image_R, images))
    if len(np.unique(rows.x_RD, axis=0)) < _FEWEST:
        return {}
    place_R2 = project(rows.x_RD, "tsne", config.seed)
    low_2, high_2 = place_R2.min(axis=0), place_R2.max(axis=0)
    place_R2 = SIDE * (0.5 + (place_R2 - (low_2 + high_2) / 2) / max(float((high_2 - low_2).max()), 1e-12))
    kind = dict(zip(table.families, table.kind, strict=True))
    columns = {
        "x": np.rint(place_R2[:, 0]).astype(int),
        "y": np.rint(place_R2[:, 1]).astype(int),
        "transformation": rows.transformation_R,
        "class": rows.label_R,
    }
    named = {"transformations": list(kind), "kind": list(kind.values())}
    return {"map": {**{name: column.tolist() for name, column in columns.items()}, **named}}
