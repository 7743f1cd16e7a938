"""The journal: one record for every finished (shard, backbone, transformations). What has no record is not there.

A record is a small JSON file, written durably after the chunks it speaks of. As a run goes on, `compaction` moves
records into Parquet: into files of details, which are written once, and an index of them in few segments. A crash
between writing a segment and removing what it stands for leaves both: they say the same. Names of all these files end
in a digest of their content, which every reader checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from substyle.engine.store import details, index
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import digest, listed, make_folder, read_named, write_durably
from substyle.engine.store.index import Index
from substyle.engine.store.record import Record, identity
from substyle.pipelines.places import Place, at_once

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
    """Rows of `index.SCHEMA`. Raises FileNotFoundError, or StoreError when the file is damaged."""
    return _decoded(path, index.decode)


def read_details(path: Place) -> dict[int, Record]:
    """Records by identity. Raises FileNotFoundError, or StoreError when the file is damaged."""
    return _decoded(path, details.decode)


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
    """All records as tables of `details.SCHEMA`, some perhaps twice. Raises StoreError when a file is damaged."""

    def tables(there: Files) -> list[pa.Table]:
        loose = details.table(at_once(read_loose, there.loose))
        named = index.together(at_once(read_segment, there.segments))["details"].unique().to_pylist()
        paths = (details_path(store, name) for name in named)
        return [loose, *at_once(lambda path: _held(store, path, details.decode_table, there), paths)]

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
    loose = index.rows(at_once(read_loose, there.loose), "")
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
        for name, rows in index.by_details(table).items():
            said.setdefault(name, []).append(rows)
    for name, tables in said.items():
        path = details_path(store, name)
        try:
            records = _held(store, path, details.decode, there)
            rows = index.rows(records.items(), name)
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
