"""The journal: one record for every finished (shard, backbone, transformations), and notes on images.

A record is a small JSON file, written durably after the chunks it speaks of. As a run goes on, `compaction` moves
records into Parquet: into files of details, which are written once, and an index of them in few segments. A crash
between writing a segment and removing what it stands for leaves both: they say the same. Names of all these files end
in a digest of their content, which every reader checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from substyle.engine.store import records
from substyle.engine.store.files import digest, listed, make_folder, read_named, write_durably
from substyle.engine.store.layout import StoreError
from substyle.engine.store.manifest import COLUMNS, ROWS
from substyle.engine.store.records import (
    CONTENT_BYTES,
    THUMBNAIL_BYTES,
    Index,
    Record,
    by_details,
    decode_details,
    decode_index,
    decode_table,
    details_table,
    identity,
    index_rows,
    together,
)
from substyle.pipelines.storage import Place, at_once

FOLDER = "journal"
DETAILS = "details"  # in the journal's folder
T = TypeVar("T")


@dataclass(frozen=True)
class Files:
    """The journal's files: loose records, and segments of the index."""

    loose: tuple[Place, ...]
    segments: tuple[Place, ...]


def files(store: Place) -> Files:
    """All that was there at one moment, or has come since; of what was replaced meanwhile some may be gone.

    What is compacted goes from loose records to segments, and from segments to a segment, the new file being there
    before the old ones go. So loose records are listed first. A list of segments may lack an old one that went while
    it was made, and the new one that came; the next list then has the new one, and differs.
    """
    folder = store / FOLDER
    loose = listed(folder, ".json")
    segments = _segments(folder)
    while (again := _segments(folder)) != segments:
        segments = again
    return Files(tuple(loose), segments)


def _segments(folder: Place) -> tuple[Place, ...]:
    return tuple(path for path in listed(folder, ".parquet") if path.name.startswith("segment-"))


def details_path(store: Place, name: str) -> Place:
    """The file of details of that name."""
    return store / FOLDER / DETAILS / name


# --- one file ---------------------------------------------------------------------------------------------------------


def read_loose(path: Place) -> tuple[int, Record]:
    """A record that stands alone, and its identity. Raises FileNotFoundError, or StoreError when it is damaged."""
    return _decoded(path, lambda data: (identity(data), Record.from_json(data.decode())))


def read_segment(path: Place) -> pa.Table:
    """Rows of `INDEX_SCHEMA`. Raises FileNotFoundError, or StoreError when the file is damaged."""
    return _decoded(path, decode_index)


def read_details(path: Place) -> dict[int, Record]:
    """Records by identity. Raises FileNotFoundError, or StoreError when the file is damaged."""
    return _decoded(path, decode_details)


def _decoded(path: Place, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(read_named(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise StoreError(f"{path}: this file of the journal cannot be read: {error} (run substyle verify)") from error


# --- all of it --------------------------------------------------------------------------------------------------------


def read_index(store: Place) -> Index:
    """What is finished. Raises StoreError when a loose record or a segment is damaged."""
    return _settled(store, lambda there: Index.of_tables(_tables(there)))


def read_records(store: Place) -> list[pa.Table]:
    """All records as tables of `DETAIL_SCHEMA`, some perhaps twice. Raises StoreError when a file is damaged."""

    def tables(there: Files) -> list[pa.Table]:
        loose = details_table(at_once(read_loose, there.loose))
        named = together(at_once(read_segment, there.segments))["details"].unique().to_pylist()
        paths = (details_path(store, name) for name in named)
        return [loose, *at_once(lambda path: _held(store, path, decode_table, there), paths)]

    return _settled(store, tables)


def read(store: Place) -> list[Record]:
    """All records, in the order of (shard, backbone, identity). Raises StoreError when a file of them is damaged."""
    return examine(store, _raise, lambda record: record)


def examine(store: Place, damaged: Callable[[Place, StoreError], None], of: Callable[[Record], T]) -> list[T]:
    """Something of all records that can be read, in that order. Whole records are in memory for one file at a time.

    Args:
        damaged: told of every file that cannot be, or that does not say what its segment says.
        of: what is kept of a record.
    """

    def records(there: Files) -> list[T]:
        problems: dict[Place, StoreError] = {}
        found = _records(store, there, problems, of)
        for path, error in problems.items():
            damaged(path, error)
        return [found[key] for key in sorted(found)]

    return _settled(store, records)


def _raise(_: Place, error: StoreError) -> None:
    raise error


def _settled(store: Place, of: Callable[[Files], T]) -> T:
    """The answer from files that were all there: where one is gone, it was compacted meanwhile; all is read anew."""
    while True:
        there = files(store)
        try:
            return of(there)
        except FileNotFoundError:
            continue


def _tables(there: Files) -> list[pa.Table]:
    loose = index_rows(at_once(read_loose, there.loose), "")
    return [loose, *at_once(read_segment, there.segments)]


def _records(
    store: Place, there: Files, problems: dict[Place, StoreError], of: Callable[[Record], T]
) -> dict[tuple[int, str, int], T]:
    found: dict[tuple[int, str, int], T] = {}
    said: dict[str, list[pa.Table]] = {}
    for path in there.loose:
        try:
            number, record = read_loose(path)
            found[record.shard, record.backbone, number] = of(record)
        except StoreError as error:
            problems[path] = error
    for path in there.segments:
        try:
            table = read_segment(path)
        except StoreError as error:
            problems[path] = error
            continue
        for name, rows in by_details(table).items():
            said.setdefault(name, []).append(rows)
    for name, tables in said.items():
        path = details_path(store, name)
        try:
            records = _held(store, path, decode_details, there)
            rows = index_rows(records.items(), name)
            if any(not table.equals(rows) for table in tables):
                raise StoreError(f"{path}: does not hold what a segment says of it (run substyle verify)")
        except StoreError as error:
            problems[path] = error
            continue
        found.update({(record.shard, record.backbone, number): of(record) for number, record in records.items()})
    return found


def _held(store: Place, path: Place, decode: Callable[[bytes], T], there: Files) -> T:
    """What a file of details holds. Raises FileNotFoundError where it went with its segment, else StoreError."""
    try:
        return _decoded(path, decode)
    except FileNotFoundError as error:
        if files(store).segments != there.segments:
            raise
        raise StoreError(f"{path}: this file of the journal is missing (run substyle verify)") from error


# --- writing ----------------------------------------------------------------------------------------------------------


def has_loose(store: Place) -> bool:
    """Whether some records stand in files of their own."""
    return bool(listed(store / FOLDER, ".json"))


def write(store: Place, record: Record) -> int:
    """Write one record durably. Several records of one (shard, backbone) speak of different transformations.

    Returns:
        bytes written.
    """
    folder = store / FOLDER
    make_folder(folder)
    data = record.to_json().encode()
    write_durably(folder / f"{record.shard:08d}-{record.backbone}-{digest(data)}.json", data)
    return len(data)


# What decoding learned of a store's images, as columns: of millions of images there are no objects each.


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


def read_notes(store: Place) -> Notes:
    """All notes of a store. Raises StoreError when a file of the journal is damaged."""
    return _of_tables(read_records(store))


def _of_tables(tables: Sequence[pa.Table]) -> Notes:
    """Notes from tables of whole records, `records.DETAIL_SCHEMA`."""
    table = pa.concat_tables([records.DETAIL_SCHEMA.empty_table(), *tables]).select(["id", "backbone", "images"])
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
