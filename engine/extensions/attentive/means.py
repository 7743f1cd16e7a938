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
    means = TokenMeans(table, count)
    return replace(table, x_TND=means.whole() if isinstance(table.x_TND, np.ndarray) else means)


class TokenMeans:
    """`LazyArray` of the means over the P tokens of the rows of a table."""

    def __init__(self, table: EmbeddingTable, count: int) -> None:
        self.table, self.count = table, count
        *outer, width = table.x_TND.shape
        self.shape, self.dtype = (*outer, width // count), table.x_TND.dtype

    def _mean(self, x_BD: NDArray[Any], out_BD: NDArray[Any]) -> None:
        out_BD[...] = x_BD.reshape(len(x_BD), self.count, -1).mean(axis=1, dtype=np.float32)

    def take(self, t_B: int | I64, n_B: I64, out_BD: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return means of images n in transformations t."""
        out = np.empty((len(n_B), self.shape[2]), self.dtype) if out_BD is None else out_BD
        t_B = np.broadcast_to(t_B, n_B.shape)
        for own in self._pieces(len(n_B)):
            self._mean(self.table.take(t_B[own], n_B[own]), out[own])
        return out

    def part(self, t: int, first: int, last: int, out_BD: NDArray[Any]) -> None:
        """Compute means of images [first, last) of one transformation into ``out_BD``."""
        for own in self._pieces(last - first):
            rows = np.empty((own.stop - own.start, self.table.width), self.dtype)
            self.table.part(t, first + own.start, first + own.stop, rows)
            self._mean(rows, out_BD[own])

    def whole(self) -> NDArray[Any]:
        """Compute all means. Shape: (T, N, D)."""
        x_TND = np.empty(self.shape, self.dtype)
        for t in range(len(x_TND)):
            self.part(t, 0, x_TND.shape[1], x_TND[t])
        return x_TND

    def _pieces(self, count: int) -> Iterator[slice]:
        """Slices of at most 64 MiB of tokens."""
        rows = max(1, _PIECE // (self.table.width * self.dtype.itemsize))
        return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
