"""Tables of made-up embeddings, for tests of stages and analyses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable


def table_of(x_TND: np.ndarray, names: Sequence[str], counts: Sequence[int] = (), **changes: object) -> EmbeddingTable:
    """Of classes a, b and c in turn, in splits of these counts or all in training; each transformation is a kind."""
    variants, images = x_TND.shape[:2]
    table = EmbeddingTable(
        backbone="b",
        x_TND=x_TND if x_TND.dtype == np.float16 else x_TND.astype(np.float32),
        transformations=tuple(names),
        kind=tuple(names),
        roles=("train",) * variants,
        keys=tuple(f"{i % 5}/{i}.jpg" for i in range(images)),
        label_N=np.arange(images) % 3,
        class_names=("a", "b", "c"),
        split_N=np.repeat(np.array([TRAIN, VAL, TEST], np.int8), counts or (images, 0, 0)),
        distinct_TN=np.ones((variants, images), np.bool_),
    )
    return replace(table, **changes)  # type: ignore[arg-type]


def with_copies(table: EmbeddingTable, count: int) -> EmbeddingTable:
    """So many copies of each photograph, in a folder of its own."""
    images = range(len(table.keys))
    return replace(
        table,
        x_TND=np.repeat(np.asarray(table.x_TND), count, axis=1),
        keys=tuple(f"{n:02d}/{copy}.jpg" for n in images for copy in range(count)),
        label_N=np.repeat(table.label_N, count),
        split_N=np.repeat(table.split_N, count),
        distinct_TN=np.repeat(table.distinct_TN, count, axis=1),
    )
