"""The journal: one record per finished (shard, backbone, transformations), and notes on images.

A record is a small JSON file, written durably after its chunks. During a run, `compaction` moves records into Parquet:
detail files, written once, and index segments, merged to stay few. A crash between writing a segment and removing the
files it replaces leaves both, with the same content. The name of each file ends in a digest of its content, which every
reader checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from substyle.engine.store import records
from substyle.engine.store.files import digest, make_folder, read_named, write_once
from substyle.engine.store.layout import StoreError
from substyle.engine.store.manifest import COLUMNS, ROWS, as_hex
from substyle.engine.store.records import (
    CONTENT_BYTES,
    THUMBNAIL_BYTES,
    ImageNote,
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
from substyle.pipelines.validation import brief

FOLDER = "journal"
DETAILS = "details"  # subfolder of the journal
T = TypeVar("T")


@dataclass(frozen=True)
class Files:
    """Files of a journal: loose records and index segments."""

    loose: tuple[Place, ...]
    segments: tuple[Place, ...]


def files(store: Place) -> Files:
    """List the files of a journal. Includes all records finished before the call; listed files may be gone after it.

    Compaction turns loose records into segments and merges segments, and writes the new file before it removes the old
    ones. Loose records are therefore listed first. A listing of segments may miss both a removed file and its
    replacement, so segments are listed until two listings agree.
    """
    folder = store / FOLDER
    loose = folder.files(".json")
    segments = _segments(folder)
    while (again := _segments(folder)) != segments:
        segments = again
    return Files(tuple(loose), segments)


def _segments(folder: Place) -> tuple[Place, ...]:
    return tuple(path for path in folder.files(".parquet") if path.name.startswith("segment-"))


def details_path(store: Place, name: str) -> Place:
    """Return the path of a detail file."""
    return store / FOLDER / DETAILS / name


def read_loose(path: Place) -> tuple[int, Record]:
    """Read a loose record and its identity. Raises FileNotFoundError, or StoreError if the file is damaged."""
    return _decoded(path, lambda data: (identity(data), Record.from_json(data.decode())))


def read_segment(path: Place) -> pa.Table:
    """Read rows of `INDEX_SCHEMA`. Raises FileNotFoundError, or StoreError if the file is damaged."""
    return _decoded(path, decode_index)


def read_details(path: Place) -> dict[int, Record]:
    """Read records by identity. Raises FileNotFoundError, or StoreError if the file is damaged."""
    return _decoded(path, decode_details)


def _decoded(path: Place, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(read_named(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, pa.ArrowException) as error:
        raise StoreError(f"{path}: invalid journal file: {brief(error)}; run substyle verify") from error


def read_index(store: Place) -> Index:
    """Read the index of finished records. Raises StoreError if a loose record or a segment is damaged."""

    def index(current: Files) -> Index:
        loose = index_rows(at_once(read_loose, current.loose), "")
        return Index.of_tables([loose, *at_once(read_segment, current.segments)])

    return _committed(store, index)


def read_records(store: Place) -> list[pa.Table]:
    """Read all records as tables of `DETAIL_SCHEMA` or `FILES_SCHEMA`; some may repeat.

    Raises StoreError if a file is damaged.
    """

    def tables(current: Files) -> list[pa.Table]:
        loose = details_table(at_once(read_loose, current.loose))
        named = together(at_once(read_segment, current.segments))["details"].unique().to_pylist()
        paths = (details_path(store, name) for name in named)
        return [loose, *at_once(lambda path: _read_committed(store, path, decode_table, current), paths)]

    return _committed(store, tables)


def read(store: Place) -> list[Record]:
    """Read all records, sorted by (shard, backbone, identity). Raises StoreError if a file is damaged."""
    return examine(store, _raise, lambda record: record)


def examine(store: Place, damaged: Callable[[Place, StoreError], None], of: Callable[[Record], T]) -> list[T]:
    """Map `of` over all readable records, sorted by (shard, backbone, identity), holding one file in memory at a time.

    Args:
        damaged: called for each file that is unreadable or inconsistent with its segment.
        of: maps a record to the value to return.
    """
    problems, found = _committed(store, lambda current: _records(store, current, of))
    for path, error in problems.items():
        damaged(path, error)
    return [found[key] for key in sorted(found)]


def _raise(_: Place, error: StoreError) -> None:
    raise error


def _committed(store: Place, of: Callable[[Files], T]) -> T:
    """Call `of` until no listed file is missing: a missing one was compacted in the meantime."""
    while True:
        current = files(store)
        try:
            return of(current)
        except FileNotFoundError:
            continue


def _records(
    store: Place, current: Files, of: Callable[[Record], T]
) -> tuple[dict[Place, StoreError], dict[tuple[int, str, int], T]]:
    """What is wrong with files, and values by shard, backbone and identity of a record."""
    problems: dict[Place, StoreError] = {}
    found: dict[tuple[int, str, int], T] = {}
    by_name: dict[str, list[pa.Table]] = {}
    for path in current.loose:
        try:
            number, record = read_loose(path)
            found[record.shard, record.backbone, number] = of(record)
        except StoreError as error:
            problems[path] = error
    for path in current.segments:
        try:
            table = read_segment(path)
        except StoreError as error:
            problems[path] = error
            continue
        for name, rows in by_details(table).items():
            by_name.setdefault(name, []).append(rows)
    for name, tables in by_name.items():
        path = details_path(store, name)
        try:
            records = _read_committed(store, path, decode_details, current)
            rows = index_rows(records.items(), name)
            if any(not table.equals(rows) for table in tables):
                raise StoreError(f"{path}: content does not match the journal index; run substyle verify")
        except StoreError as error:
            problems[path] = error
            continue
        found.update({(record.shard, record.backbone, number): of(record) for number, record in records.items()})
    return problems, found


def _read_committed(store: Place, path: Place, decode: Callable[[bytes], T], current: Files) -> T:
    """Decode a detail file. Raises FileNotFoundError if it was removed along with its segment, else StoreError."""
    try:
        return _decoded(path, decode)
    except FileNotFoundError as error:
        if files(store).segments != current.segments:
            raise
        raise StoreError(f"{path}: journal file is missing; run substyle verify") from error


def has_loose(store: Place) -> bool:
    """Return whether the journal has loose records."""
    return bool((store / FOLDER).files(".json"))


def write(store: Place, record: Record) -> int:
    """Write a record durably. Records of the same (shard, backbone) have different transformations.

    Returns:
        number of bytes written.
    """
    folder = store / FOLDER
    make_folder(folder)
    data = record.to_json().encode()
    write_once(folder / f"{record.shard:08d}-{record.backbone}-{digest(data)}.json", data)
    return len(data)


@dataclass(frozen=True)
class Notes:
    """Notes on N images as columns; see `records.ImageNote`.

    An image decoded in several passes is valid if it was valid in all, and has the indistinct transformations of all.
    So are files of real transformations.

    Attributes:
        known_N: whether an image has a note.
        ok_N: whether an image has a note and is valid; reasons: why not, by position.
        small_NRC: thumbnails (N, 8, 9) uint8; seen_N: whether an image has one.
        indistinct: bool (N,) for each transformation that barely changed at least one image.
        content_N2: content hashes, as two numbers each; zeros for unreadable files.
        mark_N: marks of the files when they were read; 0 if unknown.
        files: files of each real transformation.
    """

    known_N: NDArray[np.bool_]
    ok_N: NDArray[np.bool_]
    reasons: dict[int, str]
    small_NRC: NDArray[np.uint8]
    seen_N: NDArray[np.bool_]
    indistinct: dict[str, NDArray[np.bool_]]
    content_N2: NDArray[np.uint64]
    mark_N: NDArray[np.int64]
    files: Mapping[str, FileNotes]

    def again(self, images: slice, row_N: NDArray[np.int64]) -> list[ImageNote]:
        """Notes on consecutive images, for a record of embeddings for which no file was read."""
        numbers = zip(
            range(images.start, images.stop), row_N[images].tolist(), as_hex(self.small_NRC[images]), strict=True
        )
        return [
            ImageNote(row, 0, 0, self.reasons.get(n, ""), small if self.seen_N[n] else "", ())
            for n, row, small in numbers
        ]


@dataclass(frozen=True)
class FileNotes:
    """Notes on the files that show N images in a real transformation.

    Attributes:
        known_N: whether an image has a note; reasons: why its variant is left out, by position.
        content_N2, mark_N: as of `Notes`.
    """

    known_N: NDArray[np.bool_]
    reasons: dict[int, str]
    content_N2: NDArray[np.uint64]
    mark_N: NDArray[np.int64]

    @property
    def left_out_N(self) -> NDArray[np.bool_]:
        """Whether the variant of an image is left out. Shape: (N,)."""
        left_out_N = np.zeros(len(self.known_N), np.bool_)
        left_out_N[list(self.reasons)] = True
        return left_out_N


def read_notes(store: Place, row_N: NDArray[np.int64]) -> Notes:
    """Read the notes on the images in ascending rows. Raises StoreError if a file of the journal is damaged."""
    tables = read_records(store)
    columns = ["id", "backbone", "images"]
    table = pa.concat_tables([each.select(columns) for each in (records.DETAIL_SCHEMA.empty_table(), *tables)])
    # sorted, so that the last record of a row does not depend on how records are stored
    table = table.sort_by([("backbone", "ascending"), ("id", "ascending")])
    images = pc.list_flatten(table.combine_chunks()["images"]).combine_chunks()
    inside_I = pc.is_in(images.field("row"), pa.array(row_N))
    if not pc.all(inside_I).as_py():
        images = images.filter(inside_I)
    count, at_I = len(row_N), np.searchsorted(row_N, images.field("row").to_numpy(zero_copy_only=False))
    last_N = np.full(count, -1)
    np.maximum.at(last_N, at_I, np.arange(len(at_I)))
    known_N = last_N >= 0
    bad_I = np.flatnonzero(pc.not_equal(images.field("reason"), "").to_numpy(zero_copy_only=False))
    ok_N = known_N.copy()
    ok_N[at_I[bad_I]] = False
    reasons = images.field("reason").take(pa.array(bad_I)).to_pylist()
    content_N2 = np.zeros((count, 2), np.uint64)
    # equal in all passes that read the file
    np.maximum.at(content_N2, at_I, _fixed(images.field("content"), CONTENT_BYTES).view(">u8"))
    mark_N = np.zeros(count, np.int64)
    np.maximum.at(mark_N, at_I, images.field("mark").to_numpy(zero_copy_only=False))
    thumbnails = images.field("thumbnail").take(pa.array(last_N[known_N]))
    small_NX, seen_N = np.zeros((count, THUMBNAIL_BYTES), np.uint8), np.zeros(count, np.bool_)
    small_NX[known_N] = _fixed(thumbnails, THUMBNAIL_BYTES)
    seen_N[known_N] = _filled(thumbnails)
    return Notes(
        known_N=known_N,
        ok_N=ok_N,
        reasons=dict(zip(at_I[bad_I].tolist(), reasons, strict=True)),
        small_NRC=small_NX.reshape(-1, ROWS, COLUMNS),
        seen_N=seen_N,
        indistinct=_indistinct(images.field("indistinct"), at_I, count),
        content_N2=content_N2,
        mark_N=mark_N,
        files=_file_notes([pc.list_flatten(each["files"]) for each in tables if "files" in each.column_names], row_N),
    )


def _file_notes(notes: Sequence[pa.ChunkedArray], row_N: NDArray[np.int64]) -> dict[str, FileNotes]:
    """Notes on files by transformation, of the images in ascending rows."""
    chunks = [chunk for each in notes for chunk in each.chunks]
    if not chunks:
        return {}
    table = pa.Table.from_batches(map(pa.RecordBatch.from_struct_array, chunks)).combine_chunks()
    table = table.filter(pc.is_in(table["row"], pa.array(row_N)))
    found = {}
    for name in sorted(pc.unique(table["transformation"]).to_pylist()):
        own = table.filter(pc.equal(table["transformation"], name)).sort_by("reason").combine_chunks()
        at_I = np.searchsorted(row_N, own["row"].to_numpy())
        known_N, content_N2 = np.zeros(len(row_N), np.bool_), np.zeros((len(row_N), 2), np.uint64)
        mark_N = np.zeros(len(row_N), np.int64)
        known_N[at_I] = True
        np.maximum.at(content_N2, at_I, _fixed(own["content"].combine_chunks(), CONTENT_BYTES).view(">u8"))
        np.maximum.at(mark_N, at_I, own["mark"].to_numpy())
        reasons = {i: why for i, why in zip(at_I.tolist(), own["reason"].to_pylist(), strict=True) if why}
        found[name] = FileNotes(known_N, reasons, content_N2, mark_N)
    return found


def _filled(values: pa.LargeBinaryArray) -> NDArray[np.bool_]:
    filled: NDArray[np.bool_] = pc.greater(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    return filled


def _fixed(values: pa.LargeBinaryArray, size: int) -> NDArray[np.uint8]:
    """Convert values of ``size`` bytes or none to an array (I, size), with zeros for none."""
    filled_I = _filled(values)
    fixed = values.filter(pa.array(filled_I)).cast(pa.binary(size))
    bytes_IX = np.zeros((len(values), size), np.uint8)
    bytes_IX[filled_I] = np.frombuffer(fixed.buffers()[1], np.uint8, len(fixed) * size).reshape(-1, size)
    return bytes_IX


def hex_of(content_N2: NDArray[np.uint64]) -> list[str]:
    """Format content hashes in hex, empty for zeros."""
    return [f"{high:016x}{low:016x}" if high or low else "" for high, low in content_N2.tolist()]


def _indistinct(names: pa.ListArray, at_I: NDArray[np.int64], count: int) -> dict[str, NDArray[np.bool_]]:
    image_K = pc.list_parent_indices(names).to_numpy()
    coded = pc.list_flatten(names).dictionary_encode()
    code_K = coded.indices.to_numpy(zero_copy_only=False)
    found = {}
    for code, name in enumerate(coded.dictionary.to_pylist()):
        found[name] = np.zeros(count, np.bool_)
        found[name][at_I[image_K[code_K == code]]] = True
    return found
