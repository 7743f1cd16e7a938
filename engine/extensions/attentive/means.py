"""Means over the tokens of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.table import I64, EmbeddingTable

_PIECE = 64 << 20  # bytes of tokens that are averaged at once


def averaged(table: EmbeddingTable, count: int) -> EmbeddingTable:
    """Return a table of the means over P = ``count`` tokens, rounded to the stored dtype.

    Means of a table in memory are computed at once, others when they are read.
    """
    means = replace(table, x_TND=TokenMeans(table, count))
    return means.in_memory() if isinstance(table.x_TND, np.ndarray) else means


class TokenMeans:
    """`LazyArray` of the means over the P tokens of the rows of a table."""

    def __init__(self, table: EmbeddingTable, count: int) -> None:
        self.table, self.count = table, count
        *outer, width = table.x_TND.shape
        self.shape, self.dtype = (*outer, width // count), table.x_TND.dtype

    def take(
        self, t_B: int | I64, n_B: I64, out_RD: NDArray[Any] | None = None, to_B: I64 | None = None
    ) -> NDArray[Any]:
        """Return means of images n in transformations t."""
        out = np.empty((len(n_B), self.shape[2]), self.dtype) if out_RD is None else out_RD
        t_B, rows_B = np.broadcast_to(t_B, n_B.shape), np.arange(len(n_B)) if to_B is None else to_B
        for own in self._pieces(len(n_B)):
            x_BD = self.table.take(t_B[own], n_B[own])
            out[rows_B[own]] = x_BD.reshape(len(x_BD), self.count, -1).mean(axis=1, dtype=np.float32)
        return out

    def _pieces(self, count: int) -> Iterator[slice]:
        """Slices of at most 64 MiB of tokens."""
        rows = max(1, _PIECE // (self.table.width * self.dtype.itemsize))
        return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
