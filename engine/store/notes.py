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
from substyle.engine.store.record import CONTENT_BYTES, THUMBNAIL_BYTES
from substyle.pipelines.places import Place


@dataclass(frozen=True)
class Notes:
    """Notes of N images in the order of their rows; see `record.ImageNote`.

    A row that was decoded in several passes is fine where it was in each of them, and has the indistinct
    transformations of all of them.

    Attributes:
        row_N: their rows.
        ok_N: whether they are fine; reasons: why they are not, by row.
        small_NRC: thumbnails (N, 8, 9) uint8; seen_N: whether there is one.
        indistinct: for each transformation that hardly changed some image: bool (N,).
        content_N2: content hashes, as two numbers each; zeros where nothing could be read.
        mark_N: marks of the files when they were read; 0 where unknown.
    """

    row_N: NDArray[np.int64]
    ok_N: NDArray[np.bool_]
    reasons: dict[int, str]
    small_NRC: NDArray[np.uint8]
    seen_N: NDArray[np.bool_]
    indistinct: dict[str, NDArray[np.bool_]]
    content_N2: NDArray[np.uint64]
    mark_N: NDArray[np.int64]

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
    fine_I = pc.equal(images.field("reason"), "").to_numpy(zero_copy_only=False)
    bad_I = np.flatnonzero(~fine_I)
    ok_N = np.ones(len(row_N), np.bool_)
    ok_N[row_of_I[bad_I]] = False
    reasons_B = images.field("reason").take(pa.array(bad_I)).to_pylist()
    content_I2 = _pairs(images.field("content"))
    content_N2 = np.zeros((len(row_N), 2), np.uint64)
    np.maximum.at(content_N2, row_of_I, content_I2)  # where several passes read it, they read the same
    mark_N = np.zeros(len(row_N), np.int64)
    np.maximum.at(mark_N, row_of_I, images.field("mark").to_numpy(zero_copy_only=False))
    thumbnail_N = images.field("thumbnail").take(pa.array(last_N))
    seen_N = pc.greater(pc.binary_length(thumbnail_N), 0).to_numpy(zero_copy_only=False)
    small_NX = np.zeros((len(row_N), THUMBNAIL_BYTES), np.uint8)
    fixed = thumbnail_N.filter(pa.array(seen_N)).cast(pa.binary(THUMBNAIL_BYTES))
    values_X = np.frombuffer(fixed.buffers()[1], np.uint8, len(fixed) * THUMBNAIL_BYTES)
    small_NX[seen_N] = values_X.reshape(-1, THUMBNAIL_BYTES)
    return Notes(
        row_N=row_N,
        ok_N=ok_N,
        reasons=dict(zip(row_I[bad_I].tolist(), reasons_B, strict=True)),
        small_NRC=small_NX.reshape(-1, ROWS, COLUMNS),
        seen_N=seen_N,
        indistinct=_indistinct(images.field("indistinct"), row_of_I, len(row_N)),
        content_N2=content_N2,
        mark_N=mark_N,
    )


def _pairs(contents: pa.LargeBinaryArray) -> NDArray[np.uint64]:
    """Content hashes as two big-endian numbers each, zeros for empty ones. Shape: (I, 2)."""
    pair_I2 = np.zeros((len(contents), 2), np.uint64)
    known_I = pc.greater(pc.binary_length(contents), 0).to_numpy(zero_copy_only=False)
    fixed = contents.filter(pa.array(known_I)).cast(pa.binary(CONTENT_BYTES))
    pair_I2[known_I] = np.frombuffer(fixed.buffers()[1], ">u8", 2 * len(fixed)).reshape(-1, 2)
    return pair_I2


def hex_of(content_N2: NDArray[np.uint64]) -> list[str]:
    """Content hashes as texts, empty for zeros."""
    return [f"{high:016x}{low:016x}" if high or low else "" for high, low in content_N2.tolist()]


def _indistinct(names: pa.ListArray, row_of_I: NDArray[np.int64], count: int) -> dict[str, NDArray[np.bool_]]:
    image_K = pc.list_parent_indices(names).to_numpy()
    coded = pc.list_flatten(names).dictionary_encode()
    code_K = coded.indices.to_numpy(zero_copy_only=False)
    found = {}
    for code, name in enumerate(coded.dictionary.to_pylist()):
        found[name] = np.zeros(count, np.bool_)
        found[name][row_of_I[image_K[code_K == code]]] = True
    return found
