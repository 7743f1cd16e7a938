"""Compaction of the journal, removal of leftovers, and notes of damage.

A file of details is written once. The index is merged as binary numbers are counted: a new segment takes in all that
are no longer than itself. So each is longer than all newer ones together, n records have about log2(n / 256) segments,
and a row is written again about as often in the life of a store.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from substyle.engine.store import journal, lock, manifest
from substyle.engine.store.files import (
    clear_temporary,
    digest,
    flush,
    listed,
    make_folder,
    remove,
    sizes,
    write_durably,
    writing,
)
from substyle.engine.store.layout import ARRAYS, StoreError
from substyle.engine.store.records import (
    INDEX_SCHEMA,
    Record,
    by_details,
    encode_details,
    encode_index,
    identity,
    index_rows,
    together,
)
from substyle.pipelines.storage import ObjectPlace, Place, at_once

RECORDS = 256  # loose ones that are gathered
BYTES = 64 << 20  # of loose ones that are gathered, and that go into one file of details: they are in memory at once
_LOOK_RECORDS, _LOOK_BYTES = 16, BYTES // 4  # written by one process before it looks whether all have written enough
SEGMENT = re.compile(r"segment-(\d{5,})-(\d+)-[0-9a-f]{16}\.parquet")


class Upkeep:
    """Compacts now and then as a run writes records.

    To look is to list a folder under the store's mutex. If each of the run's processes looks after every 16th of its
    records, then one of them looks after every 16th record of all, however many they are.
    """

    def __init__(self, store: Place, number: int) -> None:
        """For a process of any number that others have not: they begin together, and should not look together."""
        self._store = store
        self._records, self._bytes = number % _LOOK_RECORDS, 0

    def written(self, records: int, size: int) -> None:
        """So many records of so many bytes have been written."""
        self._records += records
        self._bytes += size
        if self._records >= _LOOK_RECORDS or self._bytes >= _LOOK_BYTES:
            self._records = self._bytes = 0
            with lock.mutex(self._store):
                compact(self._store)


def compact(store: Place, *, at: int = RECORDS) -> None:
    """Take loose records into details and index when there are at least ``at`` of them, or 64 MB.

    The caller has the mutex. Raises StoreError when a file of the journal is damaged, or the disk fails.
    """
    paths = listed(store / journal.FOLDER, ".json")
    if not paths or (len(paths) < at and sum(sizes(paths)) < BYTES):
        return
    rows = [_write_details(store, dict(some)) for some in _groups(paths)]
    segments = listed_segments(store)
    length = sum(map(len, rows))
    merged = []
    for path in sorted(segments, key=_length):
        if _length(path) > length:
            break
        length += _length(path)
        merged.append(path)
    _replace(store, [*rows, *at_once(journal.read_segment, merged)], [*paths, *merged])


def withdraw(store: Place, broken: Mapping[tuple[int, str], Set[str]], damaged: Iterable[Place] = ()) -> None:
    """Take back what records say of some transformations, so that they are embedded again; the caller owns the store.

    Args:
        broken: transformations by (shard, backbone).
        damaged: files of the journal that cannot be read; they are removed, and with them all that they said.
    """
    unreadable = set(damaged)
    there = journal.files(store)
    loose = [path for path in there.loose if path not in unreadable]
    segments = [path for path in there.segments if path not in unreadable]
    rows = [_write_details(store, _without(dict(some), broken)) for some in _groups(loose)]
    for name, some in by_details(together(list(map(journal.read_segment, segments)))).items():
        path = journal.details_path(store, name)
        if path in unreadable:
            continue
        pairs = zip(some["shard"].to_pylist(), some["backbone"].to_pylist(), strict=True)
        if any(pair in broken for pair in pairs):
            some = _write_details(store, _without(journal.read_details(path), broken))  # noqa: PLW2901
        rows.append(some)
    _replace(store, rows, [*there.loose, *there.segments, *unreadable])
    clear_unnamed(store)


def clear_unnamed(store: Place) -> None:
    """Remove details that no segment names: a process was killed before it wrote one. The caller has the mutex."""
    for path in unnamed(store):
        remove(path)


def unnamed(store: Place) -> list[Place]:
    """Files of details that no segment names. Raises StoreError when a segment is damaged."""
    paths = listed(store / journal.FOLDER / journal.DETAILS, ".parquet")
    if not paths:
        return []
    tables = map(journal.read_segment, journal.files(store).segments)
    named = {name for table in tables for name in table["details"].unique().to_pylist()}
    return [path for path in paths if path.name not in named]


def listed_segments(store: Place) -> list[Place]:
    """Segments of the index that a run wrote, while the caller has the mutex."""
    return [path for path in listed(store / journal.FOLDER, ".parquet") if SEGMENT.fullmatch(path.name)]


def _length(path: Place) -> int:
    """Rows of a segment, as its name says."""
    match = SEGMENT.fullmatch(path.name)
    return int(match[2]) if match else 0


def _groups(paths: Sequence[Place]) -> Iterator[list[tuple[int, Record]]]:
    """Loose records in groups that one file of details can take."""
    group: list[Place] = []
    total = 0
    for path, size in zip(paths, sizes(paths), strict=True):
        total += size
        if group and total > BYTES:
            yield at_once(journal.read_loose, group)
            group, total = [], size
        group.append(path)
    if group:
        yield at_once(journal.read_loose, group)


def _without(records: Mapping[int, Record], broken: Mapping[tuple[int, str], Set[str]]) -> dict[int, Record]:
    """Records that say nothing of broken transformations; those that are left with none are gone."""
    found = {}
    for number, record in records.items():
        gone = broken.get((record.shard, record.backbone), set())
        kept = {name: value for name, value in record.checksums.items() if name not in gone}
        if kept == record.checksums:
            found[number] = record
        elif kept:
            changed = replace(record, checksums=kept)
            found[identity(changed.to_json().encode())] = changed
    return found


def _write_details(store: Place, records: Mapping[int, Record]) -> pa.Table:
    """Write records as one file of details; returns their rows of the index."""
    if not records:
        return INDEX_SCHEMA.empty_table()
    data = encode_details(records.items())
    name = f"records-{digest(data)}.parquet"
    path = journal.details_path(store, name)
    make_folder(path.parent)
    write_durably(path, data)
    return index_rows(records.items(), name)


def _replace(store: Place, tables: Sequence[pa.Table], paths: Iterable[Place]) -> None:
    """Write rows of the index as one new segment, then remove the files that it stands for."""
    folder = store / journal.FOLDER
    table = together(tables)
    if len(table):
        data = encode_index(table)
        number = max((int(path.name.split("-")[1]) for path in listed_segments(store)), default=-1) + 1
        write_durably(folder / f"segment-{number:05d}-{len(table)}-{digest(data)}.parquet", data)
    with writing(folder):
        at_once(remove, paths)
        flush(folder)


# What killed processes left of a store.


def clear_leftovers(store: Place) -> None:
    """Remove what is half written, and what nothing speaks of yet; the caller has the mutex."""
    if isinstance(store, Path):  # objects are written whole or not at all
        with writing(store):
            for folder in (manifest.FOLDER, journal.FOLDER, f"{journal.FOLDER}/{journal.DETAILS}", ""):
                clear_temporary(store / folder)
            for half in _metadata(store):
                half.unlink(missing_ok=True)
            clear_temporary(store.parent, store.name)  # a part that was killed while another made the store
    with writing(store):
        clear_unnamed(store)


def none(store: Place) -> bool:
    """Whether no killed process left a lock, something half written, or records that nobody has compacted."""
    left: list[Iterator[Place]] = [store.glob(lock.LOCKS)]
    if isinstance(store, Path):
        beside = store.parent.glob(f".{glob.escape(store.name)}.*.tmp")
        deep = store.glob(f"{journal.FOLDER}/{journal.DETAILS}/.*.tmp")
        left += [beside, store.glob(".*.tmp"), store.glob("*/.*.tmp"), deep, _metadata(store)]
    return not any(map(any, left)) and not journal.has_loose(store) and not unnamed(store)


def _metadata(store: Path) -> Iterator[Path]:
    """Metadata of backbones and transformations under temporary names; such chunks go with their shards' folders."""
    for depth in (ARRAYS, f"{ARRAYS}/*", f"{ARRAYS}/*/*"):
        yield from store.glob(f"{depth}/.*.tmp")


# What `verify` found damaged, kept in ``damage.json`` until `embed` has repaired it.
#
# `verify` changes nothing else in a store: run twice, it finds the same. Readers refuse backbones that it names.

NAME = "damage.json"


@dataclass(frozen=True)
class Damage:
    """Damaged parts of a store.

    Attributes:
        chunks: transformations by (shard, slug of the backbone) that must be embedded again.
        files: damaged files of journal and catalog, relative to the store; what they say is lost.
        metadata: ``zarr.json`` files to be written again.
    """

    chunks: Mapping[tuple[int, str], set[str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chunks or self.files or self.metadata)


def read(store: Place) -> Damage | None:
    """What is noted of a store; None where nothing is. Raises StoreError when the note itself is damaged."""
    path = store / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        chunks = {(int(shard), str(slug)): {str(name) for name in names} for shard, slug, names in content["chunks"]}
        return Damage(chunks, tuple(map(str, content["files"])), tuple(map(str, content["metadata"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: cannot be read: {error!r}; run substyle verify, which writes it again") from error


def write(store: Place, found: Damage) -> None:
    """Note what is damaged, in place of what was noted before. Raises StoreError where it cannot be written."""
    content = {
        "chunks": [[shard, slug, sorted(names)] for (shard, slug), names in sorted(found.chunks.items())],
        "files": list(found.files),
        "metadata": list(found.metadata),
    }
    data = json.dumps(content, indent=1).encode()
    path = store / NAME
    if isinstance(path, ObjectPlace):
        with writing(path):
            path.put(data)
    else:
        write_durably(path, data)


def clear_damage(store: Place) -> None:
    """Forget what was noted."""
    with writing(store / NAME):
        remove(store / NAME)


def require_none(store: Place, slug: str) -> None:
    """Raise StoreError where `verify` found chunks of a backbone, or files of the store, damaged."""
    found = read(store)
    if found is not None and (found.files or found.metadata or any(there == slug for _, there in found.chunks)):
        raise StoreError(f"{store}: verify found damage that is not repaired yet ({NAME}); run embed, which repairs it")


def repair(store: Place, found: Damage) -> None:
    """Take damaged chunks and records out of the journal and remove damaged files; the caller owns the store."""
    inside = [store / name for name in found.files]
    for path in inside:
        if path.parent.name == "catalog":
            remove(path)
    withdraw(store, found.chunks, [path for path in inside if path.parent.name != "catalog"])
