"""Does a store hold what its journal says? Manifest, journal, metadata and the checksum of every finished chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from substyle.engine.progress import stage
from substyle.engine.store import compaction, journal, lock, manifest, metadata, strangers
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import remove
from substyle.engine.store.layout import ARRAYS, METADATA, chunk_path
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.record import Record
from substyle.pipelines.object_errors import ObjectError
from substyle.pipelines.objects import REQUESTS, ObjectPlace
from substyle.pipelines.places import Place, relative


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written.

    Attributes:
        kind: ``manifest``, ``journal``, ``metadata``, ``chunk`` or ``foreign``.
        path: of the file, relative to the store.
        problem: what is wrong with it.
        remedy: what mends it.
    """

    kind: str
    path: str
    problem: str
    remedy: str


@dataclass
class Verdict:
    """What `verify` found.

    Attributes:
        findings: everything that is wrong, in the order of the checks.
        images, records, chunks, chunk_bytes: what was checked.
        unfinished: chunk files without a record, left by an interrupted run or being written now; they are redone.
        broken: transformations by (shard, slug of the backbone) whose embeddings must be made again.
        damaged: files of the journal that cannot be read; metadata: zarr.json files that cannot be used.
        marked: whether broken work was taken out of the journal, so that embed redoes it.
        unmarked_because: why not, where it could not be.
    """

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    records: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    unfinished: int = 0
    broken: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    damaged: list[Place] = field(default_factory=list)
    metadata: list[Place] = field(default_factory=list)
    marked: bool = False
    unmarked_because: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def redo(self) -> bool:
        """Whether something must be embedded again."""
        return bool(self.broken or self.damaged or self.metadata)


REDO = "embed makes it again"


@dataclass(frozen=True)
class _Said:
    """What a record says, but of its images their rows I alone: a store has millions of them."""

    shard: int
    start: int
    backbone: str
    checksums: dict[str, str]
    row_I: NDArray[np.int64]

    @staticmethod
    def of(record: Record) -> _Said:
        rows = np.array([note.row for note in record.images], np.int64)
        return _Said(record.shard, record.start, record.backbone, record.checksums, np.sort(rows))


def verify(path: Place, *, mark: bool = True, threads: int = 2, quiet: bool = False) -> Verdict:
    """Check a store; what is broken is taken out of the journal, so that `embed` redoes it and nothing else.

    Args:
        mark: False only looks.
        threads: threads that read and hash.

    Raises:
        StoreError: no store, or one whose own header cannot be read: nothing can be said of it.
    """
    store = EmbeddingStore.open(path)
    verdict = Verdict()
    images = _manifest(store, verdict)
    known = metadata.check(store)
    for file, problem in known.problems.items():
        verdict.findings.append(Finding("metadata", _relative(store, file), problem, REDO))
        verdict.metadata.append(file)
    records = _journal(store, verdict)
    checked = [record for record in records if _record(store, record, images, known, verdict)]
    _chunks(store, checked, verdict, threads, quiet)
    finished = {
        chunk_path(store.path, record.backbone, name, record.shard) for record in records for name in record.checksums
    }
    shards = None if images is None else -(-images.rows // store.settings.shard_rows)
    found = strangers.look(store.path, known.arrays.keys(), finished, shards)
    verdict.unfinished = found.unfinished
    for file in found.foreign:
        verdict.findings.append(Finding("foreign", _relative(store, file), "is no file of this store", "remove it"))
    if mark and verdict.redo:
        _mark(store, verdict)
    return verdict


def _relative(store: EmbeddingStore, path: Place) -> str:
    return relative(path, store.path).as_posix()


def _manifest(store: EmbeddingStore, verdict: Verdict) -> Manifest | None:
    remedy = "put back a copy of it, or make the store anew: rows have no other names"
    try:
        if not store.has_manifest():
            return None
        images = store.manifest()
    except StoreError as error:
        verdict.findings.append(Finding("manifest", manifest.FOLDER, str(error), remedy))
        return None
    verdict.images = len(images.keys)
    return images


def _journal(store: EmbeddingStore, verdict: Verdict) -> list[_Said]:
    def damaged(path: Place, error: StoreError) -> None:
        verdict.findings.append(Finding("journal", _relative(store, path), str(error), "what it tells of is redone"))
        verdict.damaged.append(path)

    records = journal.examine(store.path, damaged, _Said.of)
    verdict.records = len(records)
    return records


def _record(
    store: EmbeddingStore, record: _Said, images: Manifest | None, known: metadata.Known, verdict: Verdict
) -> bool:
    """Whether the record speaks of rows and arrays that are there; if not, all it tells of must be redone."""
    end = int(record.row_I[-1]) + 1 if len(record.row_I) else 0
    for name in record.checksums:
        rows = known.arrays.get((record.backbone, name), end)
        file = f"{ARRAYS}/{record.backbone}/{name}/{METADATA}"
        if rows < end and all(finding.path != file for finding in verdict.findings):
            problem = f"ends at row {rows}, though row {end - 1} is finished"
            verdict.findings.append(Finding("metadata", file, problem, "embed makes it longer again"))
    lost = [name for name in record.checksums if (record.backbone, name) not in known.arrays]
    if lost:
        verdict.broken.setdefault((record.shard, record.backbone), set()).update(lost)
    if images is None:
        return True
    shard_rows = store.settings.shard_rows
    first = record.shard * shard_rows
    there_I = images.row_N[images.between(first, first + shard_rows)]
    if record.start == first and len(there_I) and np.array_equal(record.row_I, there_I):
        return True
    where = f"{journal.FOLDER}: shard {record.shard}, {record.backbone}"
    verdict.findings.append(Finding("journal", where, "speaks of other rows than the manifest", REDO))
    verdict.broken.setdefault((record.shard, record.backbone), set()).update(record.checksums)
    return False


def _chunks(store: EmbeddingStore, records: list[_Said], verdict: Verdict, threads: int, quiet: bool) -> None:
    total = sum(len(record.checksums) for record in records)
    threads = max(threads, REQUESTS if isinstance(store.path, ObjectPlace) else 1)
    with stage("verify", total, "chunks", quiet=quiet) as bar, ThreadPoolExecutor(threads) as pool:
        for (record, name), (size, problem) in zip(
            _pairs(records), pool.map(lambda pair: _chunk(store.path, *pair), _pairs(records)), strict=True
        ):
            verdict.chunks += 1
            verdict.chunk_bytes += size
            bar.advance()
            if problem:
                chunk = chunk_path(store.path, record.backbone, name, record.shard)
                verdict.findings.append(Finding("chunk", _relative(store, chunk), problem, REDO))
                verdict.broken.setdefault((record.shard, record.backbone), set()).add(name)


def _pairs(records: Iterable[_Said]) -> Iterator[tuple[_Said, str]]:
    return ((record, name) for record in records for name in record.checksums)


def _chunk(store: Place, record: _Said, name: str) -> tuple[int, str]:
    path = chunk_path(store, record.backbone, name, record.shard)
    try:
        if isinstance(path, ObjectPlace):
            data = path.read_bytes()
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
    except (OSError, ValueError) as error:  # ValueError: no file can have that name
        return 0, f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return size, "" if digest == record.checksums[name] else "its content is not what was written"


def _mark(store: EmbeddingStore, verdict: Verdict) -> None:
    try:
        with lock.hold(store.path, lock.new_run_id()), lock.mutex(store.path):
            compaction.withdraw(store.path, verdict.broken, verdict.damaged)
            for path in verdict.metadata:
                remove(path)
        verdict.marked = True
    except (StoreError, ObjectError) as error:  # read-only, or a run is going on
        verdict.unmarked_because = str(error)
