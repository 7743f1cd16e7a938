"""Compaction of the journal, removal of leftovers, and notes of damage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from substyle.engine.store import catalog, journal, lock, manifest
from substyle.engine.store.files import clear_temporary, digest, write_durably, write_once, writing
from substyle.engine.store.layout import ARRAYS, METADATA, StoreError
from substyle.engine.store.records import Record, encode, identity
from substyle.files import UnsafeFileError, relative, temporaries
from substyle.pipelines.storage import LocalPlace, Place, at_once

RECORDS = 4096  # number of loose records that triggers compaction
BYTES = 64 << 20  # size of loose records that triggers compaction, and of those in one Parquet file, held in memory
LOOK_RECORDS, LOOK_BYTES = 256, BYTES // 4  # written by one process between two checks for compaction


class Upkeep:
    """Compacts the journal periodically while a run writes records.

    A check lists a folder under the store's mutex. Each process checks after 256 of its own records, so a run checks
    once per 256 records for any number of processes.
    """

    def __init__(self, store: Place, number: int) -> None:
        """Create with a number that differs between processes, to stagger their checks."""
        self._store = store
        self._records, self._bytes = number % LOOK_RECORDS, 0

    def written(self, records: int, size: int) -> None:
        """Count records and bytes written, and compact if due."""
        self._records += records
        self._bytes += size
        if self._records >= LOOK_RECORDS or self._bytes >= LOOK_BYTES:
            self._records = self._bytes = 0
            with lock.mutex(self._store):
                compact(self._store, at=RECORDS)


def compact(store: Place, *, at: int = 1) -> None:
    """Gather loose records in Parquet files if there are at least ``at`` of them, or 64 MB.

    The caller must hold the mutex. Raises StoreError if a file of the journal is damaged, or the disk fails.
    """
    paths = (store / journal.FOLDER).files(".json")
    sizes = (store / journal.FOLDER).sizes() if paths else {}
    if not paths or (len(paths) < at and sum(sizes.get(path, 0) for path in paths) < BYTES):
        return
    for records in _groups(paths, sizes):
        _write(store, records)
    _remove(store, paths)


def withdraw(store: Place, broken: Mapping[tuple[int, str], Set[str]], damaged: Iterable[Place] = ()) -> None:
    """Remove transformations from the journal, so that they are embedded again. The caller must own the store.

    Args:
        broken: transformations to remove, by (shard, backbone).
        damaged: unreadable files of the journal, which are removed with all their records.
    """
    replaced = list(damaged)
    listed = journal.files(store)
    sizes = (store / journal.FOLDER).sizes()
    for records in _groups([path for path in listed.loose if path not in replaced], sizes):
        _write(store, _without(records, broken))
    for path in listed.tables:
        if path in replaced:
            continue
        rows = journal.read_rows(path)
        if broken.keys() & zip(rows["shard"].to_pylist(), rows["backbone"].to_pylist(), strict=True):
            records = journal.read_file(path)
            if (left := _without(records, broken)) != records:  # else the file would be written again, and removed
                _write(store, left)
                replaced.append(path)
    _remove(store, [*listed.loose, *replaced])


RecordKey = tuple[int, str, tuple[str, ...]]  # shard, backbone and transformations


def record_key(record: Record) -> RecordKey:
    """Key of a record. Records with the same key are copies, or versions before and after an exchange."""
    return record.shard, record.backbone, tuple(sorted(record.checksums))


def exchange(store: Place, new: Mapping[RecordKey, Record | None]) -> None:
    """Replace records of the journal, or remove them: None. The caller must own the store."""
    listed, replaced = journal.files(store), list[Place]()
    sizes = (store / journal.FOLDER).sizes()
    for records in _groups(listed.loose, sizes):
        _write(store, _exchanged(records, new))
    for path in listed.tables:
        records = journal.read_file(path)
        if (left := _exchanged(records, new)) != records:
            _write(store, left)
            replaced.append(path)
    _remove(store, [*listed.loose, *replaced])


def _exchanged(records: Mapping[int, Record], new: Mapping[RecordKey, Record | None]) -> dict[int, Record]:
    found = {}
    for number, record in records.items():
        if (other := new.get(record_key(record), record)) is not None:
            found[number if other == record else identity(other.to_json().encode())] = other
    return found


def _groups(paths: Sequence[Place], sizes: Mapping[Place, int]) -> Iterator[dict[int, Record]]:
    """Records of files in groups of at most `BYTES`."""
    group: list[Place] = []
    total = 0
    for path in paths:
        size = sizes.get(path, 0)
        total += size
        if group and total > BYTES:
            yield journal.read_loose(group)
            group, total = [], size
        group.append(path)
    if group:
        yield journal.read_loose(group)


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


def _write(store: Place, records: Mapping[int, Record]) -> None:
    """Write records to a Parquet file, if there are any."""
    if records:
        data = encode(records.items())
        path = store / journal.FOLDER / journal.TABLES / f"records-{digest(data)}.parquet"
        write_once(path, data)


def _remove(store: Place, paths: Iterable[Place]) -> None:
    folder = store / journal.FOLDER
    with writing(folder):
        at_once(lambda path: path.remove(), paths)
        folder.flush()


def clear_leftovers(store: Place) -> None:
    """Remove temporary files of killed processes, and files of the manifest that were replaced.

    The caller must hold the mutex.
    """
    with writing(store):
        for path in manifest.replaced(store):
            path.remove()
        for folder in _folders(store):
            clear_temporary(folder)
        clear_temporary(store.parent, store.name)  # a process killed while another created the store


def none(store: Place) -> bool:
    """Return whether a store has no lock, uncompacted record, or temporary file of this host."""
    temporary = [temporaries(folder) for folder in _folders(store)]
    if isinstance(store, LocalPlace):
        temporary.append(temporaries(store.parent, store.name))
    left = (store.glob(lock.LOCKS), manifest.replaced(store), *temporary)
    return not any(map(any, left)) and not journal.has_loose(store)


def _folders(store: Place) -> list[LocalPlace]:
    """Folders of a store on a disk in which files are written."""
    if not isinstance(store, LocalPlace):
        return []
    nodes = [store / ARRAYS, *store.glob(f"{ARRAYS}/*/"), *store.glob(f"{ARRAYS}/*/*/")]
    records = store / journal.FOLDER
    return [store, store / manifest.FOLDER, store / catalog.FOLDER, records, records / journal.TABLES, *nodes]


# Damage found by `verify`, stored until `embed` repairs it. `verify` changes nothing else in a store, so a second run
# finds the same. Readers refuse damaged backbones.
NAME = "damage.json"
# what the note may name; a store may be somebody else's, and `embed` removes what it names
_FILES = re.compile(
    rf"{catalog.FOLDER}/[^/.][^/]*\.json|{journal.FOLDER}/[^/.][^/]*\.json"
    rf"|{journal.FOLDER}/{journal.TABLES}/[^/.][^/]*\.parquet"
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

    Raises StoreError before anything is removed if a damaged file is a folder.
    """
    paths = [store.inside(name) for name in found.files]
    for path in paths:
        if isinstance(path, LocalPlace) and path.is_dir():
            raise StoreError(f"{path}: named in {NAME}, but a folder; remove the note and run substyle verify")
    with writing(store):
        for path in paths:
            if path.parent.name == catalog.FOLDER:
                path.remove()
    withdraw(store, found.chunks, [path for path in paths if path.parent.name != catalog.FOLDER])
