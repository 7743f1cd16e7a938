"""Embeddings of a backbone where they lie in a store: rows are read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.store import plain
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.layout import BackboneEntry
from substyle.kernels import memory
from substyle.pipelines.objects import REQUESTS, ObjectPlace

I64 = NDArray[np.int64]
_READERS = 2  # transformations read at once: one is copied while the disk is asked for the next
_TAKERS = 4  # files that rows are taken from at once


class StoredRows:
    """Rows of some transformations; see ``engine.table.Elsewhere``.

    Args:
        store: the store, and ``entry``, a backbone of it.
        names: T transformations.
        row_N: rows of the store that the N images stand in, ascending; every one of their chunks is finished.
    """

    def __init__(self, store: EmbeddingStore, entry: BackboneEntry, names: Sequence[str], row_N: I64) -> None:
        self.store, self.entry, self.names, self.row_N = store, entry, tuple(names), row_N

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, N, D)."""
        return len(self.names), len(self.row_N), self.entry.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The store's."""
        return np.dtype(self.store.settings.dtype)

    def take(self, t_B: int | I64, n_B: I64, out_BD: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows of images n in transformations t, read in the order in which they lie in the files.

        Raises:
            StoreError: a chunk is missing, cut short or cannot be read.
        """
        out = np.empty((len(n_B), self.entry.dim), self.dtype) if out_BD is None else out_BD
        t_B = np.broadcast_to(t_B, n_B.shape)
        shard_B, at_B = np.divmod(self.row_N[n_B], self.store.settings.shard_rows)
        order = np.lexsort((at_B, shard_B, t_B))
        changes = (np.diff(t_B[order]) != 0) | (np.diff(shard_B[order]) != 0)
        files = [own for own in np.split(order, np.flatnonzero(changes) + 1) if len(own)]

        def one(own: I64) -> None:
            t, shard = int(t_B[own[0]]), int(shard_B[own[0]])
            plain.take(self.store.chunk_path(self.entry.slug, self.names[t], shard), at_B[own], out, own)

        with ThreadPoolExecutor(REQUESTS if isinstance(self.store.path, ObjectPlace) else _TAKERS) as readers:
            list(readers.map(one, files))
        return out

    def part(self, t: int, first: int, last: int, out_BD: NDArray[Any]) -> None:
        """Images [first, last) of one transformation into memory."""
        row = self.row_N[first:last]
        start, stop = int(row[0]), int(row[-1]) + 1
        if len(row) == stop - start:
            self.store.read(self.entry, self.names[t], start, stop, out_RD=out_BD)
        else:  # whole chunks are read and gathered in memory: reading single rows is hundreds of times slower
            np.take(self.store.read(self.entry, self.names[t], start, stop), row - start, axis=0, out=out_BD)

    def whole(self) -> NDArray[Any]:
        """All rows in memory. Shape: (T, N, D)."""
        x_TND = memory.empty(self.shape, getattr(torch, str(self.dtype)), torch.device("cpu")).numpy()
        with ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(lambda t: self.part(t, 0, len(self.row_N), x_TND[t]), range(len(self.names))))
        return x_TND
