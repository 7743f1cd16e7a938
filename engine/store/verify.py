"""Verify a store: manifest, catalog, journal, metadata and the checksum of every finished shard.

Only the store's list of damage is written, which `embed` repairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from substyle.engine.observability import stage
from substyle.engine.store import arrays, catalog, compaction, journal, lock, manifest, shards
from substyle.engine.store.catalog import Catalog
from substyle.engine.store.compaction import Damage
from substyle.engine.store.layout import ARRAYS, HEADER, METADATA, ArrayEntry, StoreError
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.records import Record
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.storage import ObjectError, Place

REDO = "run embed to compute it again"
KEEP = "nothing to do: substyle ignores it"
_TEMPORARY = re.compile(r"\..*\.tmp")
_OURS = re.compile(
    rf"""{"|".join(map(re.escape, (HEADER, METADATA, compaction.NAME, lock.MUTEX)))}|\.?lock(-\d+-of-\d+)?\.json
    |{re.escape(manifest.FOLDER)}/segment-\d{{5,}}(-\d+)?-[0-9a-f]{{16}}\.parquet
    |{catalog.FOLDER}/[^/]+-[0-9a-f]{{16}}\.json
    |{catalog.FOLDER}/[^/]+-{catalog.PIXELS_DIGEST}\.pictures
    |{journal.FOLDER}/[^/]*-[0-9a-f]{{16}}\.json
    |{journal.FOLDER}/{journal.TABLES}/records-[0-9a-f]{{16}}\.parquet""",
    re.VERBOSE,
)
_SHARD = re.compile(rf"{ARRAYS}/(?P<slug>[^/]+)/(?P<array>[^/]+)/c\.0\.(?P<number>[0-9]+)\.0")


@dataclass(frozen=True)
class Problem:
    """A damaged or foreign file.

    Attributes:
        kind: ``manifest``, ``catalog``, ``journal``, ``metadata`` or ``shard`` for damage; ``addition`` for a foreign
            file.
        path: path of the file, relative to the store.
        problem: what is wrong.
        remedy: how to fix it.
    """

    kind: str
    path: str
    problem: str
    remedy: str


@dataclass
class Verdict:
    """Result of `verify`.

    Attributes:
        findings: damage and additions, in the order of the checks.
        images, records, shards, shard_bytes: amounts checked.
        pending: number of embeddings not computed yet, over the store's backbones and transformations.
        unfinished: shards without a record, of an interrupted or current run; they are replaced.
        broken: transformations by (shard, slug of the backbone) whose embeddings must be computed again.
        noted: whether the damage is recorded for `embed`.
        not_noted_because: why it could not be recorded.
    """

    findings: list[Problem] = field(default_factory=list)
    images: int = 0
    records: int = 0
    shards: int = 0
    shard_bytes: int = 0
    pending: int = 0
    unfinished: int = 0
    broken: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    noted: bool = False
    not_noted_because: str = ""
    _paths: set[str] = field(default_factory=set, repr=False)

    @property
    def damage(self) -> list[Problem]:
        """Findings other than additions."""
        return [finding for finding in self.findings if finding.kind != "addition"]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    def add(self, kind: str, path: str, problem: str, remedy: str = REDO) -> None:
        """Add a finding, at most one per file."""
        if path not in self._paths:
            self._paths.add(path)
            self.findings.append(Problem(kind, path, problem, remedy))

    def files(self, *kinds: str) -> tuple[str, ...]:
        """Return the paths of the findings of these kinds."""
        return tuple(finding.path for finding in self.findings if finding.kind in kinds)


@dataclass(frozen=True)
class _Said:
    """A record with only the rows of its images: a store has millions of them."""

    shard: int
    start: int
    backbone: str
    checksums: dict[str, str]
    row_I: NDArray[np.int64]

    @staticmethod
    def of(record: Record) -> _Said:
        rows = np.array([note.row for note in record.images], np.int64)
        return _Said(record.shard, record.start, record.backbone, record.checksums, np.sort(rows))


def verify(path: Place, *, note: bool = True, threads: int = 2, quiet: bool = False) -> Verdict:
    """Check a store and record its damage, so that `embed` recomputes only the damaged parts.

    Args:
        note: whether to record the damage.
        threads: number of threads that read and hash shards.

    Raises:
        StoreError: the store does not exist or its header cannot be read.
    """
    store = EmbeddingStore.open(path)
    before = _noted(store.path)
    check = _Check(store)
    records = [record for record in check.records if check.is_placed(record)]
    check.check_shards(records, threads, quiet)
    if check.images is not None:
        check.verdict.pending = check.pending(check.images, records)
    finished = {array.shard(store.path, record.shard) for record, array in check.placed(check.records)}
    _others(store, check.known, finished, check.images, check.verdict)
    if note:
        _note(store.path, check.verdict, before)
    return check.verdict


class _Check:
    """Manifest, catalog, metadata and journal of a store, as far as they can be read, and what is wrong with them."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.store, self.verdict = store, Verdict()
        self.images = self._manifest()
        self.known = self._catalog()
        self.rows = self._metadata()
        self.records = self._journal()

    def placed(self, records: Iterable[_Said]) -> Iterator[tuple[_Said, ArrayEntry]]:
        """Records with their array, as far as the catalog has it."""
        for record in records:
            for array in self.known.arrays.get(record.backbone, ()):
                if {*record.checksums} <= {*array.transformations}:
                    yield record, array

    def redo(self, record: _Said, names: Iterable[str]) -> None:
        self.verdict.broken.setdefault((record.shard, record.backbone), set()).update(names)

    def _manifest(self) -> Manifest | None:
        remedy = "restore it from a copy of the store, or embed into a new store; only the manifest names the rows"
        try:
            if not self.store.has_manifest():
                if journal.examine(self.store.path, lambda record: record.shard)[0]:
                    raise StoreError("missing, but the journal records finished shards")
                return None
            images = self.store.manifest()
        except StoreError as error:
            self.verdict.add("manifest", manifest.FOLDER, str(error), remedy)
            return None
        self.verdict.images = len(images.keys)
        return images

    def _catalog(self) -> Catalog:
        path, good = self.store.path, []
        for file in catalog.files(path):
            try:
                catalog.read_file(file)
                good.append(file)
            except StoreError as error:
                self.verdict.add("catalog", _inside(path, file), str(error), f"restore it from a copy, or {REDO}")
        try:
            return catalog.read(good)
        except StoreError as error:
            remedy = "restore the catalog from a copy of the store, or use another store"
            self.verdict.add("catalog", catalog.FOLDER, str(error), remedy)
            return Catalog({}, {}, {})

    def _metadata(self) -> dict[ArrayEntry, int]:
        """Rows of each array."""
        remedy = "run embed to write it again"
        known, rows = self.known, dict[ArrayEntry, int]()
        for name in (METADATA, f"{ARRAYS}/{METADATA}", *(f"{ARRAYS}/{slug}/{METADATA}" for slug in known.backbones)):
            try:
                arrays.require_group((self.store.path / name).parent)
            except StoreError as error:
                self.verdict.add("metadata", name, str(error), remedy)
        for array in chain.from_iterable(known.arrays.values()):
            try:
                rows[array] = self.store.rows_of(array)
            except StoreError as error:
                self.verdict.add("metadata", _metadata_of(array), str(error), remedy)
        return rows

    def _journal(self) -> list[_Said]:
        records, problems = journal.examine(self.store.path, _Said.of)
        for path, error in problems.items():
            name = _inside(self.store.path, path)
            self.verdict.add("journal", name, str(error), "run embed to compute its shards again")
        self.verdict.records = len(records)
        return records

    def is_placed(self, record: _Said) -> bool:
        """Whether the rows and arrays of a record exist; otherwise its transformations are added to ``broken``."""
        end = int(record.row_I[-1]) + 1 if len(record.row_I) else 0
        found = [array for _, array in self.placed([record])]
        for array in found:
            if (rows := self.rows.get(array, end)) < end:
                problem = f"has {rows} rows, but row {end - 1} is finished"
                self.verdict.add("metadata", _metadata_of(array), problem, "run embed to extend it")
        known = self.known.transformations.get(record.backbone, {})
        lost = () if found else [name for name in record.checksums if name not in known] or record.checksums
        if lost:
            self.redo(record, lost)
            if not self.verdict.files("catalog"):
                self.verdict.add("catalog", f"{catalog.FOLDER}/{record.backbone}", f"{', '.join(lost)} missing")
        if self.images is None:
            return True
        first = record.shard * self.store.settings.shard_rows
        there_I = self.images.row_N[self.images.between(first, first + self.store.settings.shard_rows)]
        if record.start == first and len(there_I) and np.array_equal(record.row_I, there_I):
            return True
        where = f"shard {record.shard}, {record.backbone}"
        self.verdict.add("journal", where, "rows differ from the manifest")
        self.redo(record, record.checksums)
        return False

    def check_shards(self, records: list[_Said], threads: int, quiet: bool) -> None:
        store, placed = self.store, list(self.placed(records))
        threads = max(threads, store.path.requests)

        def check(pair: tuple[_Said, ArrayEntry]) -> tuple[int, str]:
            record, array = pair
            path = array.shard(store.path, record.shard)
            for _ in range(2):  # a run may have added transformations to it in the meantime
                found = shards.check(path, store.shape(array), array.transformations, record.checksums)
                if not found[1]:
                    break
            return found

        with stage("verify", len(placed), "shards", quiet=quiet) as bar, ThreadPoolExecutor(threads) as pool:
            for (record, array), (size, problem) in zip(placed, pool.map(check, placed), strict=True):
                self.verdict.shards += 1
                self.verdict.shard_bytes += size
                bar.advance()
                if problem:
                    path = array.shard(store.path, record.shard)
                    self.verdict.add("shard", _inside(store.path, path), problem)
                    self.redo(record, record.checksums)  # a shard is mended whole

    def pending(self, images: Manifest, records: list[_Said]) -> int:
        """Number of embeddings of known backbones and transformations without an intact shard."""
        known, size_S = self.known.transformations, images.shard_sizes(self.store.settings.shard_rows)
        made = {
            (record.shard, record.backbone, name)
            for record in records
            for name in record.checksums
            if name not in self.verdict.broken.get((record.shard, record.backbone), ())
            and name in known.get(record.backbone, {})
        }
        total = len(images.row_N) * sum(map(len, known.values()))
        return total - sum(int(size_S[shard]) for shard, _, _ in made if shard < len(size_S))


def _metadata_of(array: ArrayEntry) -> str:
    return f"{ARRAYS}/{array.slug}/{array.name}/{METADATA}"


def _others(
    store: EmbeddingStore, known: Catalog, finished: Set[Place], images: Manifest | None, verdict: Verdict
) -> None:
    """Check files without a record: count unfinished ones and report foreign ones."""
    count = None if images is None else -(-images.rows // store.settings.shard_rows)
    nodes = {f"{ARRAYS}/{METADATA}", *(f"{ARRAYS}/{slug}/{METADATA}" for slug in known.backbones)}
    nodes |= {_metadata_of(array) for array in chain.from_iterable(known.arrays.values())}
    for path in store.path.sizes():
        if path in finished:
            continue
        name = _inside(store.path, path)
        if _TEMPORARY.fullmatch(path.name) or _is_shard(name, known, count):
            verdict.unfinished += 1
        elif name not in nodes and not _OURS.fullmatch(name):
            verdict.add("addition", name, "not a file of this store", KEEP)


def _is_shard(path: str, known: Catalog, count: int | None) -> bool:
    match = _SHARD.fullmatch(path)
    if match is None or match["array"] not in [array.name for array in known.arrays.get(match["slug"], ())]:
        return False
    return count is None or int(match["number"]) < count


def _inside(store: Place, path: Place) -> str:
    return path.relative_to(store).as_posix()


def _noted(store: Place) -> bytes | None:
    """The current list of damage."""
    path = store / compaction.NAME
    return path.read_bytes() if path.is_file() else None


def _note(store: Place, verdict: Verdict, before: bytes | None) -> None:
    """Write the list of damage.

    Args:
        before: the list when the check began; if it has changed, another check has found damage in the meantime.
    """
    broken = {key: names for key, names in verdict.broken.items() if names}
    damaged = {finding.path for finding in verdict.damage}
    # names of files, some of which are missing, and no words for where damage is
    named = [name for name in verdict.files("catalog", "journal") if name in damaged]
    files = tuple(name for name in named if (store / name).is_file() or _OURS.fullmatch(name))
    found = Damage(broken, files, verdict.files("metadata"))
    if not found and before is None:
        return
    try:
        with lock.hold(store, lock.new_run_id()), lock.mutex(store):
            if found:
                compaction.write(store, found)
            elif _noted(store) == before:
                compaction.clear_damage(store)
        verdict.noted = bool(found)
    except (StoreError, ObjectError) as error:  # read-only, or held by a run
        verdict.not_noted_because = str(error)
