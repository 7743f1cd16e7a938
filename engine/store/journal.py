"""The journal: one record per finished (shard, backbone, transformations), and notes on images.

A record is a small JSON file, written durably after its chunks. `compaction` gathers such loose records in Parquet
files, during a run and at its end. A crash between writing a Parquet file and removing what it replaces leaves both,
with the same content. The name of each file ends in a digest of its content, which every reader checks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.store import manifest, records
from substyle.engine.store.files import digest, read_named, write_once
from substyle.engine.store.layout import StoreError
from substyle.engine.store.manifest import COLUMNS, ROWS, as_hex
from substyle.engine.store.records import (
    CONTENT_BYTES,
    INDEX_SCHEMA,
    THUMBNAIL_BYTES,
    ImageNote,
    Index,
    Record,
    as_table,
    identity,
)
from substyle.files import UnsafeFileError
from substyle.pipelines.storage import Place, at_once
from substyle.pipelines.validation import brief

FOLDER = "journal"
TABLES = "tables"  # subfolder of the journal
T = TypeVar("T")


@dataclass(frozen=True)
class Files:
    """Files of a journal: loose records and Parquet files."""

    loose: tuple[Place, ...]
    tables: tuple[Place, ...]


def files(store: Place) -> Files:
    """List the files of a journal. Includes all records finished before the call; listed files may be gone after it.

    Compaction writes new files before it removes old ones. Loose records are therefore listed first. A listing of
    tables may miss both a removed file and its replacement, so tables are listed until two listings agree.
    """
    loose = (store / FOLDER).files(".json")
    tables = _tables(store)
    while (again := _tables(store)) != tables:
        tables = again
    return Files(tuple(loose), tables)


def _tables(store: Place) -> tuple[Place, ...]:
    return tuple((store / FOLDER / TABLES).files(".parquet"))


def read_file(path: Place) -> dict[int, Record]:
    """Read records by identity. Raises FileNotFoundError, or StoreError if the file is damaged."""
    if path.suffix == ".json":
        return _decoded(path, lambda data: {identity(data): Record.from_json(data)})
    return _decoded(path, records.decode)


def read_loose(paths: Iterable[Place]) -> dict[int, Record]:
    """`read_file` for several files."""
    return {number: record for some in at_once(read_file, paths) for number, record in some.items()}


def _decoded(path: Place, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(read_named(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, pa.ArrowException) as error:
        raise StoreError(f"{path}: invalid journal file: {brief(error)}; run substyle verify") from error


def read_rows(path: Place) -> pa.Table:
    """Read the rows of `INDEX_SCHEMA` of a Parquet file. Raises FileNotFoundError, or StoreError if it is damaged."""
    return _decoded(path, records.decode_index)


def read_index(store: Place) -> Index:
    """Read the index of finished records. Raises StoreError if a file is damaged."""

    def index(current: Files) -> Index:
        loose = as_table(read_loose(current.loose).items(), INDEX_SCHEMA)
        return Index.of_tables([loose, *at_once(read_rows, current.tables)])

    return _committed(store, index)


def read(store: Place) -> list[Record]:
    """Read all records, sorted by (shard, backbone, identity). Raises StoreError if a file is damaged."""
    found, problems = examine(store, lambda record: record)
    for error in problems.values():
        raise error
    return found


def examine(store: Place, of: Callable[[Record], T]) -> tuple[list[T], dict[Place, StoreError]]:
    """Map `of` over all readable records, sorted by (shard, backbone, identity), holding one file in memory at a time.

    Returns what it maps them to, and what is wrong with unreadable files.
    """
    found, problems = _committed(store, lambda current: _examined((*current.loose, *current.tables), of))
    return [found[key] for key in sorted(found)], problems


def _committed(store: Place, of: Callable[[Files], T]) -> T:
    """Call `of` until no listed file is missing: a missing one was compacted in the meantime."""
    while True:
        current = files(store)
        try:
            return of(current)
        except FileNotFoundError:
            continue


def _examined(
    paths: Iterable[Place], of: Callable[[Record], T]
) -> tuple[dict[tuple[int, str, int], T], dict[Place, StoreError]]:
    found: dict[tuple[int, str, int], T] = {}
    problems: dict[Place, StoreError] = {}
    for path in paths:
        try:
            found.update({(r.shard, r.backbone, number): of(r) for number, r in read_file(path).items()})
        except StoreError as error:
            problems[path] = error
    return found, problems


def has_loose(store: Place) -> bool:
    """Return whether the journal has loose records."""
    return bool((store / FOLDER).files(".json"))


def write(store: Place, record: Record) -> int:
    """Write a record durably. Records of the same (shard, backbone) have different transformations.

    Returns:
        number of bytes written.
    """
    folder = store / FOLDER
    data = record.to_json().encode()
    write_once(folder / f"{record.shard:08d}-{record.backbone}-{digest(data)}.json", data)
    return len(data)


@dataclass(frozen=True)
class FileNotes:
    """Notes on the files that show N images in a real transformation.

    Attributes:
        known_N: whether an image has a note; reasons: why its variant is left out, by position.
        content_N2: content hashes, as two numbers each; zeros for unreadable files.
        mark_N: marks of the files when they were read; 0 if unknown.
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

    @cached_property
    def ok_N(self) -> NDArray[np.bool_]:
        """Whether an image has a note and is valid. Shape: (N,)."""
        return self.known_N & ~self.left_out_N


@dataclass(frozen=True)
class Notes(FileNotes):
    """Notes on N images as columns; see `records.ImageNote`.

    An image decoded in several passes is valid if it was valid in all, and has the indistinct transformations of all.
    So are files of real transformations.

    Attributes:
        small_NRC: thumbnails (N, 8, 9) uint8; seen_N: whether an image has one.
        indistinct: bool (N,) for each transformation that barely changed at least one image.
        files: files of each real transformation.
    """

    small_NRC: NDArray[np.uint8]
    seen_N: NDArray[np.bool_]
    indistinct: dict[str, NDArray[np.bool_]]
    files: Mapping[str, FileNotes]

    @cached_property
    def first_N(self) -> NDArray[np.int64]:
        """First near-duplicate of each image, the image itself if there is none or it is not valid. Shape: (N,).

        Kept in the user's cache: a million images take five seconds.
        """
        first_N = np.arange(len(self.known_N))
        own = np.flatnonzero(self.ok_N & self.seen_N)  # imported embeddings have no thumbnails
        first_N[own] = own[_groups(self.small_NRC[own])]
        return first_N

    def again(
        self,
        images: slice,
        row_N: NDArray[np.int64],
        indistinct: Iterable[tuple[str, ...]] = repeat(()),
        contents: Iterable[str] = repeat(""),
    ) -> list[ImageNote]:
        """Notes on consecutive images, for a record of embeddings for which no file was read."""
        rows, seen = row_N[images].tolist(), self.seen_N[images].tolist()
        small = [text if there else "" for text, there in zip(as_hex(self.small_NRC[images]), seen, strict=True)]
        reasons = [self.reasons.get(n, "") for n in range(images.start, images.stop)]
        return [*map(ImageNote, rows, repeat(0), repeat(0), reasons, small, indistinct, contents)]


def _groups(small_NRC: NDArray[np.uint8]) -> NDArray[np.int64]:
    rule = {"version": manifest.GROUPING, "bits": manifest.MAX_BITS, "levels": manifest.MAX_LEVELS}
    name = f"near-duplicates/{cache.key({**rule, 'thumbnails': hashlib.sha256(small_NRC.data).hexdigest()})}"
    with suppress(OSError, UnsafeFileError):  # of a cache that is not this user's, or not writable
        return np.frombuffer(cache.fetch(name, lambda: manifest.groups(small_NRC).tobytes()), np.int64)
    return manifest.groups(small_NRC)


def read_notes(store: Place, row_N: NDArray[np.int64]) -> Notes:
    """Read the notes on the images in ascending rows. Raises StoreError if a file of the journal is damaged."""
    return _committed(store, lambda current: _notes(current, row_N))


def _notes(current: Files, row_N: NDArray[np.int64]) -> Notes:
    """Notes of some files, of which one is in memory at a time."""
    count = len(row_N)
    noted, last_N = _blank(count), np.zeros(count, np.uint64)
    small_NX, seen_N = np.zeros((count, THUMBNAIL_BYTES), np.uint8), np.zeros(count, np.bool_)
    indistinct: dict[str, NDArray[np.bool_]] = {}
    files: dict[str, FileNotes] = {}

    def add(table: pa.Table) -> None:
        # the last record of a row must not depend on how records are stored
        table = table.select(["id", "images", "files"]).sort_by("id")
        images, of_files = (_of_rows(table, name, row_N) for name in ("images", "files"))
        at_I = np.searchsorted(row_N, images["row"].to_numpy())
        _add(noted, images, at_I)
        thumbnails, id_I = images["thumbnail"].combine_chunks(), images["id"].to_numpy()
        newer = np.flatnonzero(id_I >= last_N[at_I])
        small_NX[at_I[newer]] = _fixed(thumbnails, THUMBNAIL_BYTES)[newer]
        seen_N[at_I[newer]] = _filled(thumbnails)[newer]
        last_N[at_I[newer]] = id_I[newer]
        for name, there_N in _indistinct(images["indistinct"].combine_chunks(), at_I, count).items():
            indistinct[name] = indistinct.get(name, False) | there_N
        for name in pc.unique(of_files["transformation"]).to_pylist():
            own = of_files.filter(pc.equal(of_files["transformation"], name))
            _add(files.setdefault(name, _blank(count)), own, np.searchsorted(row_N, own["row"].to_numpy()))

    add(as_table(read_loose(current.loose).items()))
    for path in current.tables:
        add(_decoded(path, records.decode_table))
    return Notes(
        **vars(noted),
        small_NRC=small_NX.reshape(-1, ROWS, COLUMNS),
        seen_N=seen_N,
        indistinct=dict(sorted(indistinct.items())),
        files=dict(sorted(files.items())),
    )


def _of_rows(table: pa.Table, name: str, row_N: NDArray[np.int64]) -> pa.Table:
    """Notes on the images in these rows in a column of lists, each with the ``id`` of its record."""
    notes = pa.Table.from_struct_array(pc.list_flatten(table[name]))
    record_I = pc.list_parent_indices(table[name].combine_chunks())
    notes = notes.append_column("id", table["id"].combine_chunks().take(record_I))
    row_I = notes["row"].to_numpy()
    inside_I = np.searchsorted(row_N, row_I, side="right") > np.searchsorted(row_N, row_I)  # pc.is_in would hash row_N
    return notes if inside_I.all() else notes.filter(pa.array(inside_I))


def _blank(count: int) -> FileNotes:
    """No note on any of N images."""
    return FileNotes(np.zeros(count, np.bool_), {}, np.zeros((count, 2), np.uint64), np.zeros(count, np.int64))


def _add(noted: FileNotes, notes: pa.Table, at_I: NDArray[np.int64]) -> None:
    """Add notes on the images at these positions."""
    noted.known_N[at_I] = True
    # equal in all passes that read the file
    np.maximum.at(noted.content_N2, at_I, _fixed(notes["content"].combine_chunks(), CONTENT_BYTES).view(">u8"))
    np.maximum.at(noted.mark_N, at_I, notes["mark"].to_numpy())
    bad_I = np.flatnonzero(pc.not_equal(notes["reason"], "").to_numpy())
    for at, reason in zip(at_I[bad_I].tolist(), notes["reason"].take(pa.array(bad_I)).to_pylist(), strict=True):
        noted.reasons[at] = max(reason, noted.reasons.get(at, ""))  # of several passes, in any order


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
    contents = content_N2.astype(">u8").view(f"V{CONTENT_BYTES}")[:, 0].tolist()
    return [content.hex() if any(content) else "" for content in contents]


def _indistinct(names: pa.ListArray, at_I: NDArray[np.int64], count: int) -> dict[str, NDArray[np.bool_]]:
    image_K = pc.list_parent_indices(names).to_numpy()
    coded = pc.list_flatten(names).dictionary_encode()
    code_K = coded.indices.to_numpy(zero_copy_only=False)
    found = {}
    for code, name in enumerate(coded.dictionary.to_pylist()):
        found[name] = np.zeros(count, np.bool_)
        found[name][at_I[image_K[code_K == code]]] = True
    return found
