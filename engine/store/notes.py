"""What decoding learned of a store's images, as columns: of millions of images there are no objects each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from substyle.engine.store import details, journal
from substyle.engine.store.duplicates import COLUMNS, ROWS
from substyle.engine.store.record import THUMBNAIL_BYTES
from substyle.pipelines.places import Place


@dataclass(frozen=True)
class Notes:
    """Notes of N images in the order of their rows; see `record.ImageNote`.

    A row that was decoded in several passes has what the last backbone's record says of it, and the indistinct
    transformations of all of them.

    Attributes:
        row_N: their rows.
        ok_N: whether they are fine; reasons: why they are not, by row.
        small_NRC: thumbnails (N, 8, 9) uint8; seen_N: whether there is one.
        indistinct: for each transformation that hardly changed some image: bool (N,).
    """

    row_N: NDArray[np.int64]
    ok_N: NDArray[np.bool_]
    reasons: dict[int, str]
    small_NRC: NDArray[np.uint8]
    seen_N: NDArray[np.bool_]
    indistinct: dict[str, NDArray[np.bool_]]

    def at(self, row_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of rows, -1 where nothing is noted. Shape: (M,) to (M,)."""
        at_M = np.searchsorted(self.row_N, row_M)
        there_M = at_M < len(self.row_N)
        there_M[there_M] = self.row_N[at_M[there_M]] == row_M[there_M]
        return np.where(there_M, at_M, -1)


def read(store: Place) -> Notes:
    """All notes of a store. Raises StoreError when a file of the journal is damaged."""
    return _of_tables(journal.read_records(store))


def _of_tables(tables: Sequence[pa.Table]) -> Notes:
    """Notes from tables of whole records, `details.SCHEMA`."""
    table = pa.concat_tables([details.SCHEMA.empty_table(), *tables]).select(["id", "backbone", "images"])
    # records in the order of their backbones, so that the last one is the same however they are filed
    table = table.sort_by([("backbone", "ascending"), ("id", "ascending")]).combine_chunks()
    images = pc.list_flatten(table["images"]).combine_chunks()
    row_I = images.field("row").to_numpy(zero_copy_only=False)
    # np.unique tells of a value's first place: of the last one, when all are turned round
    row_N, back_N, back_I = np.unique(row_I[::-1], return_index=True, return_inverse=True)
    last_N, row_of_I = len(row_I) - 1 - back_N, back_I.reshape(-1)[::-1]
    reason_N = images.field("reason").take(pa.array(last_N))
    ok_N = pc.equal(reason_N, "").to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~ok_N)
    thumbnail_N = images.field("thumbnail").take(pa.array(last_N))
    seen_N = pc.greater(pc.binary_length(thumbnail_N), 0).to_numpy(zero_copy_only=False)
    small_NX = np.zeros((len(row_N), THUMBNAIL_BYTES), np.uint8)
    fixed = thumbnail_N.filter(pa.array(seen_N)).cast(pa.binary(THUMBNAIL_BYTES))
    values_X = np.frombuffer(fixed.buffers()[1], np.uint8, len(fixed) * THUMBNAIL_BYTES)
    small_NX[seen_N] = values_X.reshape(-1, THUMBNAIL_BYTES)
    return Notes(
        row_N=row_N,
        ok_N=ok_N,
        reasons=dict(zip(row_N[bad].tolist(), reason_N.take(pa.array(bad)).to_pylist(), strict=True)),
        small_NRC=small_NX.reshape(-1, ROWS, COLUMNS),
        seen_N=seen_N,
        indistinct=_indistinct(images.field("indistinct"), row_of_I, len(row_N)),
    )


def _indistinct(names: pa.ListArray, row_of_I: NDArray[np.int64], count: int) -> dict[str, NDArray[np.bool_]]:
    image_K = pc.list_parent_indices(names).to_numpy()
    coded = pc.list_flatten(names).dictionary_encode()
    code_K = coded.indices.to_numpy(zero_copy_only=False)
    found = {}
    for code, name in enumerate(coded.dictionary.to_pylist()):
        found[name] = np.zeros(count, np.bool_)
        found[name][row_of_I[image_K[code_K == code]]] = True
    return found
