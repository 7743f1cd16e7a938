"""Check that photographs are those a store was embedded from.

A store notes the content hash of every embedded photograph and its file's mark (size and times). A file whose mark has
changed is read again and must have the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.observability import stage
from substyle.engine.store import journal
from substyle.engine.store.journal import FileNotes, Notes
from substyle.engine.store.layout import DEFAULT_FRACTIONS, UNLABELLED, DifferentError, Fractions, StoreError
from substyle.engine.store.manifest import Manifest, SourceEntry
from substyle.engine.store.records import UNREAD, content_hash
from substyle.engine.store.store import EmbeddingStore
from substyle.kernels.errors import ConfigError, MissingError, abbreviated
from substyle.pipelines.sources import SPLITS, ImageRecord, Named, Source, SourceConfig, absolute_root, open_source
from substyle.pipelines.sources.labels import numbered
from substyle.pipelines.sources.metadata import same_group
from substyle.pipelines.storage import REQUESTS, Place, is_remote

_READERS = 4
_SHOWN = 3  # examples in a message
_ENOUGH = 100  # changed photographs after which the check stops
_BLOCK = 4096  # photographs per cached check


class PhotographsError(DifferentError):
    """The photographs are not those the store was embedded from (exit code 2)."""

    exit_code = 2

    def __init__(self, message: str, field: str = "images") -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type[PhotographsError], tuple[str, str]]:
        return type(self), (str(self), str(self.field))


@dataclass(frozen=True)
class Remedies:
    """Advice at the end of an error message.

    Attributes:
        other: for another source.
        changed: for changed bytes or missing files.
        described: for other labels or splits.
    """

    other: str
    changed: str
    described: str


EMBED = Remedies(
    other="pass --add to add them, or use another --store",
    changed="pass --replace to embed them again, or use another --store",
    described="use another --store",
)
READ = Remedies(*3 * ("pass the photographs that were embedded, or embed these with substyle embed",))
RUN = Remedies(*3 * ("use another --out, or pass --fresh to delete the results and the store first",))


@dataclass(frozen=True)
class Match:
    """What `match` found besides the source.

    Attributes:
        others: the store's other sources.
        absent: other sources whose photographs have moved or are gone.
        redo: rows to embed again: changed or missing photographs (``--replace``), and photographs that have become
            readable.
        state: `state_of` the store at the time of the comparison.
    """

    others: tuple[Source, ...] = ()
    absent: tuple[SourceEntry, ...] = ()
    redo: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    state: object = None


def state_of(store: EmbeddingStore) -> object:
    """Return a value that changes when images or embeddings are added to a store or removed."""
    return (store.manifest().digest if store.has_manifest() else "", journal.files(store.path))


def entry_of(source: Source, fractions: Fractions = DEFAULT_FRACTIONS) -> SourceEntry:
    """Return the store's record of a source."""
    name = source.name if isinstance(source, Named) else ""
    options = {key: value for key, value in source.options.items() if key != "kind"}
    return SourceEntry(name, source.options["kind"], absolute_root(source.root), options, fractions)


def remember(store: EmbeddingStore, entry: SourceEntry) -> None:
    """Note in the cache that this user has named a source as photographs of a store; see `open_recorded`."""
    cache.note("photographs", _facts(store, entry))


def _named(store: EmbeddingStore, entry: SourceEntry) -> bool:
    return cache.noted("photographs", _facts(store, entry))


def _facts(store: EmbeddingStore, entry: SourceEntry) -> dict[str, Any]:
    return {"store": store.uuid, "kind": entry.kind, "root": entry.root, "options": dict(entry.options)}


def recorded_config(store: EmbeddingStore, entry: SourceEntry) -> SourceConfig:
    """How a store's source was opened; without files that only the store names, see `open_recorded`."""
    options = dict(entry.options)
    if not _named(store, entry):
        options = {name: value for name, value in options.items() if name not in ("synsets", "names", "group")}
    return SourceConfig.from_options({"kind": entry.kind, **options})


def open_recorded(store: EmbeddingStore, entry: SourceEntry) -> Source:
    """Open a source from what its store records, if this user has named it for the store before.

    A store may be somebody else's, and would otherwise decide which files are read.

    Raises:
        MissingError: the user has not named it, or not with this cache.
        ConfigError: its photographs have moved or are gone.
    """
    if _known(entry) and not _named(store, entry):
        raise MissingError(
            "IMAGES", f"pass the path of the photographs; {store.path} names {entry.root!r}, but was made by others"
        )
    return open_entry(entry)


def open_entry(entry: SourceEntry) -> Source:
    """Open a source of a store. Raises ConfigError if its photographs have moved or are gone."""
    if not _known(entry):
        raise MissingError("IMAGES", "pass the path of the photographs; this store does not record it")
    try:
        source = open_source(entry.root, SourceConfig.from_options({"kind": entry.kind, **entry.options}))
    except ConfigError as error:
        raise ConfigError("IMAGES", entry.root, f"the current path of the store's photographs ({error})") from error
    return Named(source, entry.name) if entry.name else source


def _known(entry: SourceEntry) -> bool:
    """Whether the store has the root of a source."""
    return entry.kind not in ("imported", "unknown")


def open_own(store: EmbeddingStore) -> Source:
    """Open the first source of a store. Raises ConfigError if its photographs have moved or are gone."""
    return open_recorded(store, store.manifest().sources[0])


def open_unchanged(store: EmbeddingStore, given: Source | None) -> list[Source]:
    """Open the photographs of a store: those that are given, if it has one source, or those that it records.

    Raises PhotographsError if they are not the store's, or have changed; otherwise as `open_recorded`.
    """
    matching, entries = _Matching(store, READ, quiet=True), store.manifest().sources
    if given is not None and len(entries) < 2:
        if matching.by_root(given) is None:
            matching.by_photographs(given, add=False)
        sources = {0: given}
    else:
        sources = {i: open_recorded(store, entry) for i, entry in enumerate(entries) if _known(entry)}
    for number, source in sources.items():  # an import states labels and splits of its own
        matching.compare(number, source, described=entries[number].kind != "imported")
    return list(sources.values())


def match(
    store: EmbeddingStore,
    source: Source,
    *,
    fractions: Fractions | None = None,
    add: bool = False,
    replace_changed: bool = False,
    remedies: Remedies = EMBED,
    quiet: bool = False,
) -> tuple[Source, Match]:
    """Find a source among those of a store and check that its photographs are unchanged.

    Returns the source with its keys in the store, and what else was found.

    Args:
        source: the photographs given by the user.
        fractions: requested shares of the splits; None for the store's.
        add: accept a new source.
        replace_changed: accept changed or missing photographs; their rows are returned in ``redo``.
        remedies: advice for error messages.

    Raises:
        PhotographsError: the source is not one of the store's, or a photograph, label or split has changed.
    """
    if not store.has_manifest():
        return source, Match(state=state_of(store))
    return _Matching(store, remedies, quiet).run(source, fractions, add=add, replace_changed=replace_changed)


class _Matching:
    def __init__(self, store: EmbeddingStore, remedies: Remedies, quiet: bool) -> None:
        self.store, self.remedies, self.quiet = store, remedies, quiet
        self.state = state_of(store)
        self.manifest: Manifest = store.manifest()
        self.noted = store.notes(self.manifest)
        self.read_N = self.noted.content_N2.max(axis=1, initial=0) > 0

    def run(
        self, source: Source, fractions: Fractions | None, *, add: bool, replace_changed: bool
    ) -> tuple[Source, Match]:
        number = self.by_root(source)
        if number is None:
            number = self.by_photographs(source, add)
        else:
            remember(self.store, entry_of(source))
        entries = self.manifest.sources
        name = self._new_name(source) if number is None else entries[number].name
        source = Named(source, name) if name else source
        opened: dict[int | None, Source] = {number: source}
        absent = []
        for other, entry in enumerate(entries):
            if other != number and _known(entry):
                try:
                    opened[other] = open_recorded(self.store, entry)
                except ConfigError:
                    absent.append(entry)
        redo: set[int] = set()
        for i, each in opened.items():
            if i is not None:
                redo |= self.compare(i, each, fractions if i == number else None, replace_changed)
        if len(entries) > 1 or number is None:
            self._require_apart(opened)
        others = tuple(each for i, each in opened.items() if i != number)
        return source, Match(others, tuple(absent), self.manifest.row_N[sorted(redo)], self.state)

    def compare(
        self,
        number: int,
        source: Source,
        fractions: Fractions | None = None,
        replace_changed: bool = False,
        *,
        described: bool = True,
    ) -> set[int]:
        """Images of one source that have changed, are missing or have become readable.

        Raises PhotographsError for changed or missing images unless ``replace_changed``, and with ``described`` for
        other labels or splits.
        """
        records = {record.key: record for record in source.records}
        images_M = np.flatnonzero(self.manifest.source_N == number)
        if described:
            self._require_described(self.manifest.sources[number], source, records, images_M, fractions)
        known_N, ok_N = self.noted.known_N, self.noted.ok_N
        needed = [*images_M[ok_N[images_M]].tolist(), *images_M[~known_N[images_M]].tolist()]  # not quarantined
        missing = [_File(n) for n in needed if self.manifest.keys[n] not in records]
        missing += [
            _File(n, name)
            for name, files in self.noted.files.items()
            for n in images_M[(files.content_N2.any(axis=1) & ~files.left_out_N)[images_M]].tolist()
            if (record := records.get(self.manifest.keys[n])) is not None and record.variant(name) is None
        ]
        changed = self._changed(records, images_M, everything=replace_changed)
        if (missing or changed) and not replace_changed:
            self._refuse(source, missing, changed)
        return {*(file.n for file in (*missing, *changed)), *self._readable(records, images_M)}

    def _readable(self, records: Mapping[str, ImageRecord], images_M: NDArray[np.int64]) -> Iterator[int]:
        """Images that could not be read when they were embedded, or whose variants could not, and now can be."""
        # of several passes one may have read what another could not
        failed = [n for n, reason in self.noted.reasons.items() if reason.startswith(UNREAD)]
        unread = [_File(n) for n in images_M[np.isin(images_M, failed)].tolist()]
        for name, files in self.noted.files.items():
            unread_N = files.known_N & ~files.content_N2.any(axis=1)
            unread_N[[n for n, reason in files.reasons.items() if reason.startswith(UNREAD)]] = True
            unread += [_File(n, name) for n in images_M[unread_N[images_M]].tolist()]
        for file in unread:
            record = file.record(records.get(self.manifest.keys[file.n]))
            if record is not None and _content(record):
                yield file.n

    def _require_apart(self, opened: Mapping[int | None, Source]) -> None:
        """Raise PhotographsError if two sources have an image with the same key."""
        owner = dict(zip(self.manifest.keys, self.manifest.source_N.tolist(), strict=True))
        for i, source in opened.items():
            for record in source.records:
                if owner.get(record.key, i) != i:
                    raise PhotographsError(
                        f"{source.root}: key {record.key} is already used by an image of "
                        f"{self.manifest.sources[owner[record.key]].root}; rename the folder or file, or use another "
                        "--store"
                    )

    def by_root(self, source: Source) -> int | None:
        """The source of the store that is in this place."""
        root = absolute_root(source.root)
        return next((i for i, entry in enumerate(self.manifest.sources) if entry.root == root), None)

    def by_photographs(self, source: Source, add: bool) -> int | None:
        """The source of the store that has moved here; None for a new one."""
        roots = ", ".join(entry.root for entry in self.manifest.sources)
        message = f"{source.root}: not the photographs of {self.store.path}, embedded from {roots}: "
        records = {record.key: record for record in source.records}
        why = "no image names in common"
        for number, entry in enumerate(self.manifest.sources):
            images_M = np.flatnonzero(self.manifest.source_N == number)
            prefix = f"{entry.name}/" if entry.name else ""
            named = {prefix + key: record for key, record in records.items()} if prefix else records
            common_M = np.array([n for n in images_M.tolist() if self.manifest.keys[n] in named], np.int64)
            if not len(common_M):
                continue
            changed = self._changed(named, common_M)
            if changed:
                why = f"{self._some(changed)} with the same name and different content"
            elif len(common_M) < len(images_M):
                why = f"only {len(common_M)} of {len(images_M)} embedded photographs found"
            else:
                compared = int(self.read_N[images_M].sum())
                if compared < len(images_M):
                    print(
                        f"{source.root}: {compared} of {len(images_M)} photographs match {self.store.path} by content "
                        "hash, the others by key only",
                        file=sys.stderr,
                    )
                return number
        if not add:
            raise PhotographsError(f"{message}{why}; {self.remedies.other}")
        shared = [name for name in source.class_names if numbered(name) and name in self.manifest.class_names]
        if shared:
            print(
                f"{source.root}: {_classes(shared)} taken for those of {roots} with the same numbers; if they mean "
                "something else, name them with --class-names",
                file=sys.stderr,
            )
        return None

    def _new_name(self, source: Source) -> str:
        """A name for a new source that no key of the store starts with."""
        stem = PurePath(source.root.rstrip("/")).name.split(".")[0].split("{")[0].strip("-_*") or "added"
        taken = {key.partition("/")[0] for key in self.manifest.keys}
        taken |= {entry.name for entry in self.manifest.sources}
        return next(name for i in range(1, 1 << 20) if (name := stem if i == 1 else f"{stem}-{i}") not in taken)

    def _require_described(
        self,
        entry: SourceEntry,
        source: Source,
        records: Mapping[str, ImageRecord],
        images_M: NDArray[np.int64],
        fractions: Fractions | None,
    ) -> None:
        """Raise PhotographsError if labels, classes or splits differ from the store's."""
        manifest, names = self.manifest, source.class_names
        moved: list[str] = []
        split_of: dict[str, int] = {}  # by group
        for n in images_M.tolist():
            record = records.get(manifest.keys[n])
            if record is None:
                continue
            old_label, old_split = int(manifest.label_N[n]), int(manifest.given_N[n])
            old = None if old_label == UNLABELLED else manifest.class_names[old_label]
            new = None if record.label is None else names[record.label]
            before = None if old_split < 0 else SPLITS[old_split]
            if old != new:
                moved.append(f"{record.key}: class {old} in the store, {new} now")
            elif before != record.split:
                moved.append(f"{record.key}: split {before} in the store, {record.split} now")
            elif record.group is not None and old_split < 0:
                code = int(manifest.split_N[n])
                if (other := split_of.setdefault(record.group, code)) != code:
                    both = f"{SPLITS[other]} and {SPLITS[code]}"
                    moved.append(f"{record.key}: group {record.group} is in {both} of the store, and must be in one")
        own, now = entry.options.get("group", ""), source.options.get("group", "")
        if not same_group(own, now):
            changed = f"groups that stay in one split are of {own or 'none'}, not of {now or 'none'}"
            raise PhotographsError(f"{self.store.path}: {changed}; {self.remedies.described}", "source.group")
        if moved:
            raise PhotographsError(
                f"{source.root}: labels or splits of {len(moved)} photographs differ from {self.store.path}: "
                f"{'; '.join(moved[:_SHOWN])}; {self.remedies.described}"
            )
        if fractions is not None and entry.fractions and tuple(fractions) != entry.fractions:
            raise PhotographsError(
                f"splits: {self.store.path} has shares {list(entry.fractions)}, not {list(fractions)}; "
                f"{self.remedies.described}",
                "splits",
            )

    def _changed(
        self, records: Mapping[str, ImageRecord], images_M: NDArray[np.int64], *, everything: bool = False
    ) -> list[_File]:
        """Files of images whose bytes have changed. Those with an unchanged mark are not read.

        Args:
            everything: find all of them; otherwise stop after ``_ENOUGH``.
        """
        doubtful: list[_Doubtful] = []
        every: dict[str, Notes | FileNotes] = {"": self.noted, **self.noted.files}
        for name, noted in every.items():
            read_N = noted.content_N2.max(axis=1, initial=0) > 0
            marks = noted.mark_N.tolist()
            for n in images_M[read_N[images_M]].tolist():
                file = _File(n, name)
                record = file.record(records.get(self.manifest.keys[n]))
                if record is not None and ((mark := record.mark()) == 0 or mark != marks[n]):
                    doubtful.append(_Doubtful(file, record, mark, noted.content_N2[n]))
        if not doubtful:
            return []
        changed: list[_File] = []
        workers = REQUESTS if any(is_remote(entry.root) for entry in self.manifest.sources) else _READERS
        with (
            stage("check photographs", len(doubtful), "images", quiet=self.quiet) as bar,
            ThreadPoolExecutor(workers) as readers,
        ):
            for start in range(0, len(doubtful), _BLOCK):
                changed += self._differing(doubtful[start : start + _BLOCK], readers)
                bar.advance(min(_BLOCK, len(doubtful) - start))
                if len(changed) >= _ENOUGH and not everything:
                    break
        return changed

    def _differing(self, files: Sequence[_Doubtful], readers: ThreadPoolExecutor) -> list[_File]:
        """Those of these files that have changed; unchanged blocks are cached by their marks.

        Raises StoreError if an embedded one cannot be read: it may not have changed.
        """
        wanted = journal.hex_of(np.stack([each.content_2 for each in files]))
        pairs = [(each.record.key, content, each.mark) for each, content in zip(files, wanted, strict=True)]
        digest = hashlib.sha256(repr(pairs).encode("utf-8", "surrogatepass")).hexdigest()
        known = f"photographs/{digest[:24]}" if all(each.mark for each in files) else None
        if known is not None and cache.read(known) is not None:
            return []
        found = list(readers.map(_content, [each.record for each in files]))
        unread = [each.file for each, content in zip(files, found, strict=True) if not content]
        if embedded := [file for file in unread if self.noted.ok_N[file.n]]:
            raise unreadable(self.store.path, self._some(embedded), UNREAD)
        pairs_now = zip(files, found, wanted, strict=True)
        changed = [each.file for each, content, old in pairs_now if content and content != old]
        if known is not None and not changed and not unread:
            with suppress(OSError):  # without the cache, the next check reads the files again
                cache.write(known, b"same")
        return changed

    def _refuse(self, source: Source, missing: Sequence[_File], changed: Sequence[_File]) -> None:
        problems = []
        if changed:
            least = "at least " if len(changed) >= _ENOUGH else ""
            problems.append(f"{least}{self._some(changed)} changed since {self.store.path} was created")
        if missing:
            problems.append(f"{self._some(missing)} of {self.store.path} missing")
        raise PhotographsError(f"{source.root}: {'; '.join(problems)}; {self.remedies.changed}")

    def _some(self, files: Sequence[_File]) -> str:
        names = [f"{file.variant} of " * bool(file.variant) + self.manifest.keys[file.n] for file in files]
        return f"{len(files)} photograph{'s' if len(files) != 1 else ''} ({abbreviated(names, _SHOWN)})"


class _File(NamedTuple):
    """The file of image ``n``, or the one that shows it in a real transformation ``variant``."""

    n: int
    variant: str = ""

    def record(self, image: ImageRecord | None) -> ImageRecord | None:
        """The file's record, from that of the image."""
        return image.variant(self.variant) if image is not None and self.variant else image


class _Doubtful(NamedTuple):
    """A file whose mark has changed to ``mark``, with the noted content hash."""

    file: _File
    record: ImageRecord
    mark: int
    content_2: NDArray[np.uint64]


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {abbreviated(names, _SHOWN)}"


def unreadable(store: Place, what: str, reason: str) -> StoreError:
    """Return the error for photographs that are embedded in a store and can no longer be read.

    Not a `DifferentError`, on which callers rebuild a store.
    """
    return StoreError(
        f"{what}: {reason}, but embedded in {store}; run again when it can be read, or remove it from the source and "
        "run embed --replace"
    )


def _content(record: ImageRecord) -> str:
    """The content hash of a photograph, empty if it cannot be read."""
    try:
        return content_hash(record.read())
    except OSError:
        return ""


def require_only(
    store: EmbeddingStore, records: Iterable[ImageRecord], others: Sequence[object], remedies: Remedies = RUN
) -> None:
    """Raise PhotographsError if a store has photographs that a study does not use.

    Args:
        records: the photographs of the study.
        others: other sources of the store.
    """
    if others:
        raise PhotographsError(f"{store.path}: contains photographs of other sources; {remedies.other}")
    manifest = store.manifest()
    noted = store.notes(manifest)
    taken = {record.key for record in records}
    # quarantined photographs may be gone: no result uses them
    needed_N = noted.ok_N | ~noted.known_N
    more = [n for n, key in enumerate(manifest.keys) if key not in taken and needed_N[n]]
    if more:
        raise PhotographsError(
            f"{store.path}: contains {len(more)} photographs outside the study, such as {manifest.keys[more[0]]} "
            f"(has limit been reduced?); {remedies.other}",
            "limit",
        )


def read_unchanged(record: ImageRecord, content: str) -> bytes:
    """Read a photograph that has been embedded.

    Args:
        content: its content hash, or "" if unknown.

    Raises:
        PhotographsError: it cannot be read, or has changed since.
    """
    try:
        data = record.read()
    except OSError as error:
        raise PhotographsError(f"{record.key}: cannot read the photograph again: {error.strerror or error}") from error
    if content and content_hash(data) != content:
        raise PhotographsError(f"{record.key}: the photograph has changed since it was embedded")
    return data
