"""Compaction of the journal, removal of leftovers, and notes of damage.

Detail files are written once. Index segments are merged like binary counters: a new segment absorbs all that are not
longer than itself. Each is then longer than all newer ones together, n records have about log2(n / 256) segments, and a
row is rewritten about as many times.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import pyarrow as pa

from substyle.engine.store import catalog, journal, lock, manifest
from substyle.engine.store.files import (
    clear_temporary,
    digest,
    encoded,
    make_folder,
    write_durably,
    write_once,
    writing,
)
from substyle.engine.store.layout import ARRAYS, METADATA, StoreError
from substyle.engine.store.records import (
    INDEX_SCHEMA,
    Record,
    by_details,
    encode_details,
    identity,
    index_rows,
    together,
)
from substyle.kernels.files import UnsafeFileError, relative
from substyle.pipelines.storage import Place, at_once

RECORDS = 256  # number of loose records that triggers compaction
BYTES = 64 << 20  # size of loose records that triggers compaction, and limit of a detail file, which is held in memory
_LOOK_RECORDS, _LOOK_BYTES = 16, BYTES // 4  # written by one process between two checks for compaction
SEGMENT = re.compile(r"segment-\d{5,}-\d+-[0-9a-f]{16}\.parquet")


class Upkeep:
    """Compacts the journal periodically while a run writes records.

    A check lists a folder under the store's mutex. Each process checks after 16 of its own records, so a run
    checks once per 16 records for any number of processes.
    """

    def __init__(self, store: Place, number: int) -> None:
        """Create with a number that differs between processes, to stagger their checks."""
        self._store = store
        self._records, self._bytes = number % _LOOK_RECORDS, 0

    def written(self, records: int, size: int) -> None:
        """Count records and bytes written, and compact if due."""
        self._records += records
        self._bytes += size
        if self._records >= _LOOK_RECORDS or self._bytes >= _LOOK_BYTES:
            self._records = self._bytes = 0
            with lock.mutex(self._store):
                compact(self._store)


def compact(store: Place, *, at: int = RECORDS) -> None:
    """Move loose records into detail files and the index if there are at least ``at`` of them, or 64 MB.

    The caller must hold the mutex. Raises StoreError if a file of the journal is damaged, or the disk fails.
    """
    paths = (store / journal.FOLDER).files(".json")
    if not paths or (len(paths) < at and sum(_sizes(paths)) < BYTES):
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
    """Remove transformations from the journal, so that they are embedded again. The caller must own the store.

    Args:
        broken: transformations to remove, by (shard, backbone).
        damaged: unreadable files of the journal, which are removed with all their records.
    """
    unreadable = set(damaged)
    listed = journal.files(store)
    loose = [path for path in listed.loose if path not in unreadable]
    segments = [path for path in listed.segments if path not in unreadable]
    rows = [_write_details(store, _without(dict(some), broken)) for some in _groups(loose)]
    for name, some in by_details(together(list(map(journal.read_segment, segments)))).items():
        path = journal.details_path(store, name)
        if path in unreadable:
            continue
        pairs = zip(some["shard"].to_pylist(), some["backbone"].to_pylist(), strict=True)
        if any(pair in broken for pair in pairs):
            some = _write_details(store, _without(journal.read_details(path), broken))  # noqa: PLW2901
        rows.append(some)
    _replace(store, rows, [*listed.loose, *listed.segments, *unreadable])
    clear_unnamed(store)


def clear_unnamed(store: Place) -> None:
    """Remove detail files without a segment, left by killed processes. The caller must hold the mutex."""
    for path in unnamed(store):
        path.remove()


def unnamed(store: Place) -> list[Place]:
    """List detail files that no segment refers to. Raises StoreError if a segment is damaged."""
    paths = (store / journal.FOLDER / journal.DETAILS).files(".parquet")
    if not paths:
        return []
    tables = map(journal.read_segment, journal.files(store).segments)
    named = {name for table in tables for name in table["details"].unique().to_pylist()}
    return [path for path in paths if path.name not in named]


def listed_segments(store: Place) -> list[Place]:
    """List segments with valid names. The caller must hold the mutex."""
    return [path for path in (store / journal.FOLDER).files(".parquet") if SEGMENT.fullmatch(path.name)]


def _length(path: Place) -> int:
    return int(path.name.split("-")[2])  # rows of a segment


def _sizes(paths: Iterable[Place]) -> list[int]:
    return at_once(lambda path: path.size(), paths)


def _groups(paths: Sequence[Place]) -> Iterator[list[tuple[int, Record]]]:
    """Loose records in groups of at most `BYTES`."""
    group: list[Place] = []
    total = 0
    for path, size in zip(paths, _sizes(paths), strict=True):
        total += size
        if group and total > BYTES:
            yield at_once(journal.read_loose, group)
            group, total = [], size
        group.append(path)
    if group:
        yield at_once(journal.read_loose, group)


def _without(records: Mapping[int, Record], broken: Mapping[tuple[int, str], Set[str]]) -> dict[int, Record]:
    """Remove broken transformations from records, and records left without any."""
    found = {}
    for number, record in records.items():
        gone = broken.get((record.shard, record.backbone), set())
        kept = {name: value for name, value in record.checksums.items() if name not in gone}
        if kept == record.checksums:
            found[number] = record
        elif kept:
            files = tuple(note for note in record.files if note.transformation in kept)
            changed = replace(record, checksums=kept, files=files)
            found[identity(changed.to_json().encode())] = changed
    return found


def _write_details(store: Place, records: Mapping[int, Record]) -> pa.Table:
    """Write records to a detail file; return their index rows."""
    if not records:
        return INDEX_SCHEMA.empty_table()
    data = encode_details(records.items())
    name = f"records-{digest(data)}.parquet"
    path = journal.details_path(store, name)
    make_folder(path.parent)
    write_once(path, data)
    return index_rows(records.items(), name)


def _replace(store: Place, tables: Sequence[pa.Table], paths: Iterable[Place]) -> None:
    """Write index rows to a new segment, then remove the files it replaces."""
    folder = store / journal.FOLDER
    table = together(tables)
    if len(table):
        data = encoded(table)
        number = max((int(path.name.split("-")[1]) for path in listed_segments(store)), default=-1) + 1
        write_once(folder / f"segment-{number:05d}-{len(table)}-{digest(data)}.parquet", data)
    with writing(folder):
        at_once(lambda path: path.remove(), paths)
        folder.flush()


def clear_leftovers(store: Place) -> None:
    """Remove temporary files and unreferenced detail files of killed processes. The caller must hold the mutex."""
    with writing(store):
        records = store / journal.FOLDER
        for folder in (store / manifest.FOLDER, records, records / journal.DETAILS, store):
            clear_temporary(folder)
        for half in _metadata(store):
            half.remove()
        clear_temporary(store.parent, store.name)  # a process killed while another created the store
        clear_unnamed(store)


def none(store: Place) -> bool:
    """Return whether a store has no lock, temporary file, unreferenced detail file or uncompacted record."""
    unfinished = store.parent.leftovers(f".{glob.escape(store.name)}.*.tmp")
    shallow = (f"{folder}.*.tmp" for folder in ("", "*/", f"{journal.FOLDER}/{journal.DETAILS}/"))
    left = [store.glob(lock.LOCKS), unfinished, *map(store.leftovers, shallow), _metadata(store)]
    return not any(map(any, left)) and not journal.has_loose(store) and not unnamed(store)


def _metadata(store: Place) -> Iterator[Place]:
    """Temporary metadata files of backbones and transformations. Temporary chunks are removed with their folders."""
    for depth in (ARRAYS, f"{ARRAYS}/*", f"{ARRAYS}/*/*"):
        yield from store.leftovers(f"{depth}/.*.tmp")


# Damage found by `verify`, stored until `embed` repairs it. `verify` changes nothing else in a store, so a second run
# finds the same. Readers refuse damaged backbones.
NAME = "damage.json"
# what the note may name; a store may be somebody else's, and `embed` removes what it names
_FILES = re.compile(
    rf"{catalog.FOLDER}/[^/.][^/]*\.json|{journal.FOLDER}/[^/.][^/]*\.(json|parquet)"
    rf"|{journal.FOLDER}/{journal.DETAILS}/[^/.][^/]*\.parquet"
)
_NODES = re.compile(rf"({ARRAYS}/([^/]+/){{0,2}})?{re.escape(METADATA)}")


@dataclass(frozen=True)
class Damage:
    """Damaged parts of a store.

    Attributes:
        chunks: transformations to embed again, by (shard, slug of the backbone).
        files: damaged files of journal and catalog, relative to the store. Their content is lost.
        metadata: ``zarr.json`` files to rewrite.
    """

    chunks: Mapping[tuple[int, str], set[str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chunks or self.files or self.metadata)


def read(store: Place) -> Damage | None:
    """Read the noted damage of a store, None if there is none. Raises StoreError if the note itself is damaged."""
    path = store / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        chunks = {(int(shard), str(slug)): {str(name) for name in names} for shard, slug, names in content["chunks"]}
        names = {kind: _named(content[kind], known) for kind, known in (("files", _FILES), ("metadata", _NODES))}
        return Damage(chunks, names["files"], names["metadata"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UnsafeFileError) as error:
        raise StoreError(f"{path}: invalid file: {error!r}; run substyle verify to rewrite it") from error


def _named(names: Iterable[object], known: re.Pattern[str]) -> tuple[str, ...]:
    """Names in the note of damage. Raises ValueError for one that is not of a file that `verify` may note."""
    found = tuple(map(str, names))
    for name in found:
        if known.fullmatch(name) is None:
            raise ValueError(f"{name[:200]!a} is not a file of a store")
        relative(name)
    return found


def write(store: Place, found: Damage) -> None:
    """Write a note of damage, replacing any previous one. Raises StoreError if the write fails."""
    content = {
        "chunks": [[shard, slug, sorted(names)] for (shard, slug), names in sorted(found.chunks.items())],
        "files": list(found.files),
        "metadata": list(found.metadata),
    }
    write_durably(store / NAME, json.dumps(content, indent=1).encode())


def clear_damage(store: Place) -> None:
    """Delete the note of damage."""
    with writing(store / NAME):
        (store / NAME).remove()


def require_none(store: Place, slug: str) -> None:
    """Raise StoreError if `verify` found damage in chunks of a backbone or in files of the store."""
    found = read(store)
    if found is not None and (found.files or found.metadata or any(name == slug for _, name in found.chunks)):
        raise StoreError(f"{store}: unrepaired damage found by verify ({NAME}); run embed to repair it")


def repair(store: Place, found: Damage) -> None:
    """Remove damaged chunks from the journal, and damaged files from the store. The caller must own the store.

    Raises StoreError before anything is removed if a damaged file is not a regular file of the store.
    """
    paths = [_regular(store, name) for name in found.files]
    for path in paths:
        if path.parent.name == catalog.FOLDER:
            path.remove()
    withdraw(store, found.chunks, [path for path in paths if path.parent.name != catalog.FOLDER])


def _regular(store: Place, name: str) -> Place:
    path = store.inside(name)
    if path.is_special():
        raise StoreError(f"{path}: named in {NAME}, but not a regular file; remove the note and run substyle verify")
    return path
