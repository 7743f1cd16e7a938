"""Check that photographs are those a store was embedded from.

A store notes the content hash of every embedded photograph and its file's mark (size and times). A file whose mark has
changed is read again and must have the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
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
from substyle.engine.store.layout import DEFAULT_FRACTIONS, DifferentError, Fractions, StoreError
from substyle.engine.store.manifest import Manifest, SourceEntry
from substyle.engine.store.records import UNREAD, content_hash
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import ConfigError, MissingError, abbreviated
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
        gone: rows of missing photographs (``--remove-missing``).
        state: `state_of` the store at the time of the comparison.
    """

    others: tuple[Source, ...] = ()
    absent: tuple[SourceEntry, ...] = ()
    redo: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    gone: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
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
    if not _known(entry):
        raise MissingError("IMAGES", "pass the path of the photographs; this store does not record it")
    try:
        source = open_source(entry.root, SourceConfig.from_options({"kind": entry.kind, **entry.options}))
    except ConfigError as error:
        raise ConfigError("IMAGES", entry.root, f"the current path of the store's photographs ({error})") from error
    return _prefixed(source, entry)


def _prefixed(source: Source, entry: SourceEntry) -> Source:
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
    manifest = store.manifest()
    check = _Check(store, manifest, store.notes(manifest), READ, quiet=True)
    if given is not None and len(manifest.sources) < 2:
        _find(check, given)
        sources = {0: given}
    else:
        sources = {i: open_recorded(store, entry) for i, entry in enumerate(manifest.sources) if _known(entry)}
    for i, source in sources.items():
        difference = diff(check, i, source)
        if manifest.sources[i].kind != "imported":  # an import states labels and splits of its own
            _require_described(check, manifest.sources[i], source, difference)
        _rows_to_redo(check, source, difference)
    return list(sources.values())


def match(
    store: EmbeddingStore,
    source: Source,
    *,
    fractions: Fractions | None = None,
    add: bool = False,
    replace_changed: bool = False,
    remove_missing: bool = False,
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
        remove_missing: accept missing photographs; their rows are returned in ``gone``.
        remedies: advice for error messages.

    Raises:
        PhotographsError: the source is not one of the store's, or a photograph, label or split has changed.
    """
    state = state_of(store)
    if not store.has_manifest():
        return source, Match(state=state)
    manifest = store.manifest()
    check = _Check(store, manifest, store.notes(manifest), remedies, quiet)
    number = _find(check, source, add=add)
    if number is None:
        source = Named(source, _new_name(manifest, source))
    else:
        if absolute_root(source.root) == manifest.sources[number].root:
            remember(store, entry_of(source))
        source = _prefixed(source, manifest.sources[number])
    opened: dict[int | None, Source] = {number: source}
    absent = []
    for other, entry in enumerate(manifest.sources):
        if other != number and _known(entry):
            try:
                opened[other] = open_recorded(store, entry)
            except ConfigError:
                absent.append(entry)
    redo: set[int] = set()
    gone: set[int] = set()
    for i, each in opened.items():
        if i is not None:
            difference = diff(check, i, each)
            _require_described(check, manifest.sources[i], each, difference, fractions if i == number else None)
            if remove_missing:
                if (skipped := each.understood.left_out).total and difference.gone:
                    why = f"{skipped.total} files are left out{skipped.first()}: photographs in them would be removed"
                    raise PhotographsError(f"{each.root}: {why}; repair them, or move them away")
                gone |= difference.gone
                left = [file for file in difference.missing if file.row not in difference.gone]
                difference = dataclasses.replace(difference, missing=left)
            redo |= _rows_to_redo(check, each, difference, replace_changed=replace_changed)
    if len(manifest.sources) > 1 or number is None:
        _require_apart(manifest, opened)
    others = tuple(each for i, each in opened.items() if i != number)
    redo_M, gone_M = (np.array(sorted(rows), np.int64) for rows in (redo - gone, gone))
    return source, Match(others, tuple(absent), redo_M, gone_M, state)


class _Check(NamedTuple):
    """A check of the photographs of a store, and what the store held when it began."""

    store: EmbeddingStore
    manifest: Manifest
    notes: Notes
    remedies: Remedies
    quiet: bool


class File(NamedTuple):
    """A file that a store noted: a photograph, or one that shows it in a real transformation."""

    row: int
    name: str
    content: str  # content hash; empty if the file was not read
    embedded: bool  # whether the photograph is


_Pair = tuple[File, ImageRecord]  # as noted, and as the source has it


@dataclass(frozen=True)
class SourceDifference:
    """How a source differs from what a store noted of it, as far as that is known without reading files.

    Attributes:
        common: number of photographs that both have.
        gone: rows of photographs that the source lacks.
        missing: files that the source lacks, except those left out, and those that show a missing photograph.
        moved: how each photograph with another class or split differs, or with a group in two splits.
        doubtful: files whose mark is another or unknown: their bytes may have changed.
        unread: files that could not be read or did not exist, and now may be readable.
    """

    common: int
    gone: set[int]
    missing: list[File]
    moved: list[str]
    doubtful: list[_Pair]
    unread: list[_Pair]


def diff(check: _Check, number: int, source: Source) -> SourceDifference:
    """Compare what a store noted of one of its sources with what a source has now. Reads no file."""
    manifest, notes = check.manifest, check.notes
    records = {record.key: record for record in source.records}
    images = np.flatnonzero(manifest.source_N == number).tolist()
    now = {n: record for n in images if (record := records.get(manifest.keys[n])) is not None}
    gone = {int(manifest.row_N[n]) for n in images if n not in now}
    found = SourceDifference(len(now), gone, [], _moved(manifest, now, source.class_names), [], [])
    every: dict[str, Notes | FileNotes] = {"": notes, **notes.files}
    for variant, noted in every.items():
        contents, marks = journal.hex_of(noted.content_N2), noted.mark_N.tolist()
        listed = [n for n in now if noted.known_N[n]] if variant else images
        for n in listed:
            record = now[n].variant(variant) if variant else now.get(n)
            name = f"{variant} of {manifest.keys[n]}" if variant else manifest.keys[n]
            file = File(int(manifest.row_N[n]), name, contents[n], bool(notes.ok_N[n]))
            reason = noted.reasons.get(n, "")  # why it is left out
            if record is None:
                if not reason and (file.content or not variant):
                    found.missing.append(file)
                continue
            if file.content and ((mark := record.mark()) == 0 or mark != marks[n]):
                found.doubtful.append((file, record))
            if reason.startswith(UNREAD) or (variant and not file.content):
                found.unread.append((file, record))
    return found


def _moved(manifest: Manifest, now: Mapping[int, ImageRecord], class_names: Sequence[str]) -> list[str]:
    """How photographs differ in class or split, or share a group with one in another split."""
    names, splits = (*manifest.class_names, None), (*SPLITS, None)  # None at -1
    moved = []
    split_of: dict[str, str] = {}  # by group
    for n, record in now.items():
        old_class, old_split = names[manifest.label_N[n]], splits[manifest.given_N[n]]
        new_class = None if record.label is None else class_names[record.label]
        group, split = record.group, SPLITS[manifest.split_N[n]]
        if old_class != new_class:
            moved.append(f"{record.key}: class {old_class} in the store, {new_class} now")
        elif old_split != record.split:
            moved.append(f"{record.key}: split {old_split} in the store, {record.split} now")
        elif group is not None and old_split is None and (other := split_of.setdefault(group, split)) != split:
            where = f"{other} and {split} of the store"
            moved.append(f"{record.key}: group {group} is in {where}, and must be in one")
    return moved


def _require_described(
    check: _Check, entry: SourceEntry, source: Source, difference: SourceDifference, fractions: Fractions | None = None
) -> None:
    """Raise PhotographsError if labels, classes, groups or splits differ from the store's."""
    path, advice = check.store.path, check.remedies.described
    own, now = entry.options.get("group", ""), source.options.get("group", "")
    if not same_group(own, now):
        changed = f"groups that stay in one split are of {own or 'none'}, not of {now or 'none'}"
        raise PhotographsError(f"{path}: {changed}; {advice}", "source.group")
    if moved := difference.moved:
        examples = "; ".join(moved[:_SHOWN])
        message = f"{source.root}: labels or splits of {len(moved)} photographs differ from {path}: {examples}"
        raise PhotographsError(f"{message}; {advice}")
    if fractions is not None and entry.fractions and tuple(fractions) != entry.fractions:
        shares = f"shares {list(entry.fractions)}, not {list(fractions)}"
        raise PhotographsError(f"splits: {path} has {shares}; {advice}", "splits")


def _rows_to_redo(
    check: _Check, source: Source, difference: SourceDifference, *, replace_changed: bool = False
) -> set[int]:
    """Rows to embed again, whose photographs have changed, are missing or have become readable.

    Raises PhotographsError for changed and missing ones unless ``replace_changed``.
    """
    missing, changed = difference.missing, _changed(check, difference, everything=replace_changed)
    problems = []
    if changed:
        least = "at least " if len(changed) >= _ENOUGH else ""
        problems.append(f"{least}{_some(changed)} changed since {check.store.path} was created")
    if missing:
        problems.append(f"{_some(missing)} of {check.store.path} missing")
    if problems and not replace_changed:
        raise PhotographsError(f"{source.root}: {'; '.join(problems)}; {check.remedies.changed}")
    readable = [file for file, record in difference.unread if _content(record)]
    return {file.row for file in (*missing, *changed, *readable)}


def _find(check: _Check, source: Source, *, add: bool = False) -> int | None:
    """Which source of the store this is, here or moved here; None for a new one.

    Raises PhotographsError for a new one unless ``add``.
    """
    path, entries = check.store.path, check.manifest.sources
    for number, entry in enumerate(entries):
        if entry.root == absolute_root(source.root):
            return number
    why = "no image names in common"
    for number, entry in enumerate(entries):
        difference = diff(check, number, _prefixed(source, entry))
        own_N = check.manifest.source_N == number
        found, total = difference.common, np.count_nonzero(own_N)
        if changed := _changed(check, difference):
            why = f"{_some(changed)} with the same name and different content"
        elif 0 < found < total:
            why = f"only {found} of {total} embedded photographs found"
        elif found:
            compared = np.count_nonzero(check.notes.content_N2[own_N].any(axis=1))
            if compared < total:
                how = f"{compared} of {total} photographs match {path} by content hash, the others by key only"
                print(f"{source.root}: {how}", file=sys.stderr)
            return number
    roots = ", ".join(entry.root for entry in entries)
    if not add:
        message = f"{source.root}: not the photographs of {path}, embedded from {roots}: {why}"
        raise PhotographsError(f"{message}; {check.remedies.other}")
    shared = [name for name in source.class_names if numbered(name) and name in check.manifest.class_names]
    if shared:
        print(
            f"{source.root}: {_classes(shared)} taken for those of {roots} with the same numbers; if they mean "
            "something else, name them with source.names",
            file=sys.stderr,
        )
    return None


def _new_name(manifest: Manifest, source: Source) -> str:
    """A name for a new source that no key of the store starts with."""
    stem = PurePath(source.root.rstrip("/")).name.split(".")[0].split("{")[0].strip("-_*") or "added"
    taken = {key.partition("/")[0] for key in manifest.keys} | {entry.name for entry in manifest.sources}
    return next(name for i in range(1, 1 << 20) if (name := stem if i == 1 else f"{stem}-{i}") not in taken)


def _require_apart(manifest: Manifest, opened: Mapping[int | None, Source]) -> None:
    """Raise PhotographsError if two sources have an image with the same key."""
    owner = dict(zip(manifest.keys, manifest.source_N.tolist(), strict=True))
    for i, source in opened.items():
        for record in source.records:
            if owner.get(record.key, i) != i:
                raise PhotographsError(
                    f"{source.root}: key {record.key} is already used by an image of "
                    f"{manifest.sources[owner[record.key]].root}; rename the folder or file, or use another --store"
                )


def _changed(check: _Check, difference: SourceDifference, *, everything: bool = False) -> list[File]:
    """Read doubtful files and return those with other bytes: all with ``everything``, else about ``_ENOUGH``."""
    doubtful = difference.doubtful
    changed: list[File] = []
    if not doubtful:
        return []
    workers = REQUESTS if any(is_remote(entry.root) for entry in check.manifest.sources) else _READERS
    with (
        stage("check photographs", len(doubtful), "images", quiet=check.quiet) as bar,
        ThreadPoolExecutor(workers) as readers,
    ):
        for start in range(0, len(doubtful), _BLOCK):
            block = doubtful[start : start + _BLOCK]
            changed += _changed_of_block(check.store.path, block, readers)
            bar.advance(len(block))
            if len(changed) >= _ENOUGH and not everything:
                break
    return changed


def _changed_of_block(store: Place, block: Sequence[_Pair], readers: ThreadPoolExecutor) -> list[File]:
    """Those of these files that have changed; unchanged blocks are cached by their marks.

    Raises StoreError if an embedded one cannot be read: it may not have changed.
    """
    states = [(record.key, file.content, record.mark()) for file, record in block]
    digest = hashlib.sha256(repr(states).encode("utf-8", "surrogatepass")).hexdigest()
    known = f"photographs/{digest[:24]}" if all(mark for *_, mark in states) else None
    if known is not None and cache.read(known) is not None:
        return []
    files, records = zip(*block, strict=True)
    found = list(zip(files, readers.map(_content, records), strict=True))
    unread = [file for file, content in found if not content]
    if embedded := [file for file in unread if file.embedded]:
        raise unreadable(store, _some(embedded), UNREAD)
    changed = [file for file, content in found if content not in ("", file.content)]
    if known is not None and not changed and not unread:
        with suppress(OSError):  # without the cache, the next check reads the files again
            cache.write(known, b"same")
    return changed


def _some(files: Sequence[File]) -> str:
    names = abbreviated([file.name for file in files], _SHOWN)
    return f"{len(files)} photograph{'s' if len(files) != 1 else ''} ({names})"


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
