"""Whether photographs are those that a store was made from.

A photograph is its bytes. A store notes the hash of every photograph it has embedded, and the file's mark (size and
times); a file whose mark has changed is read again, and must have the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones import cache
from substyle.engine.progress import stage
from substyle.engine.store import notes
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.manifest import Manifest, SourceEntry
from substyle.engine.store.notes import Notes
from substyle.engine.store.record import content_hash
from substyle.engine.store.splits import Fractions
from substyle.engine.table import UNLABELLED
from substyle.kernels.errors import ConfigError
from substyle.pipelines.objects import REQUESTS
from substyle.pipelines.places import is_remote
from substyle.pipelines.sources import SPLITS, ImageRecord, Named, Source, SourceConfig, absolute_root, open_source

_READERS = 4
_SHOWN = 3  # examples in a message
_ENOUGH = 100  # photographs with other bytes after which a search for more ends


class PhotographsError(StoreError):
    """Photographs are not those that a store was made from (exit code 2)."""

    exit_code = 2

    def __init__(self, message: str, field: str = "images") -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type[PhotographsError], tuple[str, str]]:
        return type(self), (str(self), str(self.field))


@dataclass(frozen=True)
class Ways:
    """What a user can do about other photographs: ends of sentences.

    Attributes:
        other: about another source; changed: about changed bytes or missing files; described: about other labels or
            splits.
    """

    other: str
    changed: str
    described: str


EMBED = Ways(
    other="pass --add to add them, or use another --store",
    changed="pass --replace to embed these again, or use another --store",
    described="use another --store",
)
RUN = Ways(*3 * ("use another --out, or pass --fresh to delete the results and the store first",))


@dataclass(frozen=True)
class Match:
    """How a source fits a store.

    Attributes:
        source: the source, with keys as the store has or will have them.
        others: the store's other sources.
        redo: rows whose photographs have changed or are gone, to be embedded again (``--replace``).
    """

    source: Source
    others: tuple[Source, ...] = ()
    redo: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def entry_of(source: Source, fractions: Fractions) -> SourceEntry:
    """What a store keeps of a source."""
    name = source.name if isinstance(source, Named) else ""
    options = {key: value for key, value in source.options.items() if key != "kind"}
    return SourceEntry(name, source.options["kind"], absolute_root(source.root), options, fractions)


def open_entry(entry: SourceEntry) -> Source:
    """Open a source of a store. Raises ConfigError where its photographs are not where they were."""
    if not _known(entry):
        raise ConfigError("IMAGES", "nothing", "photographs: this store does not know where its own are")
    try:
        source = open_source(entry.root, SourceConfig.from_options({"kind": entry.kind, **entry.options}))
    except ConfigError as error:
        raise ConfigError("IMAGES", entry.root, f"where the store's photographs are now ({error})") from error
    return Named(source, entry.name) if entry.name else source


def _known(entry: SourceEntry) -> bool:
    """Whether a store knows where the photographs of a source are."""
    return entry.kind not in ("imported", "unknown")


def open_own(store: EmbeddingStore) -> Source:
    """The first source of a store, opened where it was. Raises ConfigError where it is not there."""
    return open_entry(store.manifest().sources[0])


def match(
    store: EmbeddingStore,
    source: Source,
    *,
    fractions: Fractions | None = None,
    add: bool = False,
    replace_changed: bool = False,
    ways: Ways = EMBED,
    quiet: bool = False,
) -> Match:
    """Find the source among those of a store, and check that its photographs are the store's.

    Args:
        source: photographs, as opened from what the user named.
        fractions: shares of the splits that the user asks for; None takes the store's.
        add: let it be a further source.
        replace_changed: let photographs have other bytes, or be gone; they are returned to be embedded again.
        ways: what to advise.

    Raises:
        PhotographsError: it is another source, or a photograph, a label or a split of it has changed.
    """
    if not store.has_manifest():
        return Match(source)
    return _Matching(store, ways, quiet).run(source, fractions, add=add, replace_changed=replace_changed)


class _Matching:
    def __init__(self, store: EmbeddingStore, ways: Ways, quiet: bool) -> None:
        self.store, self.ways, self.quiet = store, ways, quiet
        self.manifest: Manifest = store.manifest()
        self.noted: Notes = notes.read(store.path)
        self.at_N = self.noted.at(self.manifest.row_N)

    def run(self, source: Source, fractions: Fractions | None, *, add: bool, replace_changed: bool) -> Match:
        records = {record.key: record for record in source.records}
        number = self._by_root(source)
        if number is None:
            number = self._by_photographs(source, records, add)
        entries = self.manifest.sources
        if number is None:
            name = self._new_name(source)
            return Match(Named(source, name), tuple(open_entry(entry) for entry in entries if _known(entry)))
        entry = entries[number]
        if entry.name:
            source = Named(source, entry.name)
        redo = self._compare(number, source, fractions, replace_changed=replace_changed)
        others: list[Source] = []
        for i, other in enumerate(entries):
            if i != number and _known(other):
                others.append(open_entry(other))
                redo += self._compare(i, others[-1], None, replace_changed=replace_changed)
        return Match(source, tuple(others), self.manifest.row_N[np.array(sorted(redo), np.int64)])

    def _compare(self, number: int, source: Source, fractions: Fractions | None, *, replace_changed: bool) -> list[int]:
        """Images of one of the store's sources that have changed or are gone; refused unless they may have."""
        records = {record.key: record for record in source.records}
        images_M = np.flatnonzero(self.manifest.source_N == number)
        self._require_described(self.manifest.sources[number], source, records, images_M, fractions)
        gone = self._gone(records, images_M)
        changed = self._changed(records, images_M)
        if (len(gone) or changed) and not replace_changed:
            self._refuse(source, gone, changed)
        return sorted({*gone.tolist(), *changed})

    def _by_root(self, source: Source) -> int | None:
        root = absolute_root(source.root)
        return next((i for i, entry in enumerate(self.manifest.sources) if entry.root == root), None)

    def _by_photographs(self, source: Source, records: Mapping[str, ImageRecord], add: bool) -> int | None:
        """The source of the store whose photographs these are, moved; None for a new one."""
        there = ", ".join(entry.root for entry in self.manifest.sources)
        for number, entry in enumerate(self.manifest.sources):
            images_M = np.flatnonzero(self.manifest.source_N == number)
            prefix = f"{entry.name}/" if entry.name else ""
            named = {prefix + key: record for key, record in records.items()} if prefix else records
            common_M = [n for n in images_M.tolist() if self.manifest.keys[n] in named]
            if not common_M:
                continue
            changed = self._changed(named, np.array(common_M, np.int64))
            if not changed:
                if not (self.noted.content_N2.any() or self.quiet):
                    print(f"{self.store.path}: photographs are matched by their keys alone", file=sys.stderr)
                return number
            if not add:
                raise PhotographsError(
                    f"{source.root}: not the photographs of {self.store.path}, which are those of {there}: "
                    f"{self._some(len(changed), [self.manifest.keys[n] for n in changed])} of the same name "
                    f"{'has' if len(changed) == 1 else 'have'} other bytes; {self.ways.other}"
                )
        if not add:
            raise PhotographsError(
                f"{source.root}: not the photographs of {self.store.path}, which are those of {there}: "
                f"no image has the name of one there; {self.ways.other}"
            )
        return None

    def _new_name(self, source: Source) -> str:
        """A name for a further source, which no key of the store begins with."""
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
        """Raise PhotographsError where labels, classes or splits are not those that the store was made with."""
        manifest, names = self.manifest, source.class_names
        moved: list[str] = []
        for n in images_M.tolist():
            record = records.get(manifest.keys[n])
            if record is None:
                continue
            old_label, old_split = int(manifest.label_N[n]), int(manifest.given_N[n])
            old = None if old_label == UNLABELLED else manifest.class_names[old_label]
            new = None if record.label is None else names[record.label]
            before = None if old_split < 0 else SPLITS[old_split]
            if old != new:
                moved.append(f"{record.key}: class {old} there, {new} now")
            elif before != record.split:
                moved.append(f"{record.key}: split {before} there, {record.split} now")
        if moved:
            raise PhotographsError(
                f"{source.root}: labels or splits of {len(moved)} photographs are not those of {self.store.path}: "
                f"{'; '.join(moved[:_SHOWN])}; {self.ways.described}"
            )
        if fractions is not None and entry.fractions and tuple(fractions) != entry.fractions:
            raise PhotographsError(
                f"splits: {self.store.path} was made with shares {list(entry.fractions)}, not {list(fractions)}; "
                f"{self.ways.described}",
                "splits",
            )

    def _gone(self, records: Mapping[str, ImageRecord], images_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Images of the store that the source has no longer, but for those that are quarantined already."""
        found = []
        for n in images_M.tolist():
            at = self.at_N[n]
            if self.manifest.keys[n] not in records and (at < 0 or self.noted.ok_N[at]):
                found.append(n)
        return np.array(found, np.int64)

    def _changed(self, records: Mapping[str, ImageRecord], images_M: NDArray[np.int64]) -> list[int]:
        """Images whose bytes are not those that were embedded; a file whose mark is the same is not read."""
        doubtful: list[tuple[int, ImageRecord, int]] = []
        for n in images_M.tolist():
            record, at = records.get(self.manifest.keys[n]), self.at_N[n]
            # without a hash: what could not be read, and may be readable now, or was embedded elsewhere
            if record is None or at < 0 or (self.noted.ok_N[at] and not self.noted.content_N2[at].any()):
                continue
            mark = record.mark()
            if not mark or mark != self.noted.mark_N[at]:
                doubtful.append((n, record, mark))
        if not doubtful:
            return []
        wanted = notes.hex_of(self.noted.content_N2[self.at_N[[n for n, _, _ in doubtful]]])
        known = None
        if all(mark for _, _, mark in doubtful):  # what was read once under these marks is not read again
            pairs = [(record.key, content, mark) for (_, record, mark), content in zip(doubtful, wanted, strict=True)]
            digest = hashlib.sha256(repr(pairs).encode("utf-8", "surrogatepass")).hexdigest()
            known = f"photographs/{digest[:24]}"
            if cache.read(known) is not None:
                return []
        changed = self._differ([(n, record) for n, record, _ in doubtful], wanted)
        if not changed and known is not None:
            cache.write(known, b"same")
        return changed

    def _differ(self, images: Sequence[tuple[int, ImageRecord]], wanted: Sequence[str]) -> list[int]:
        changed: list[int] = []
        workers = REQUESTS if any(is_remote(entry.root) for entry in self.manifest.sources) else _READERS
        with (
            stage("check photographs", len(images), "images", quiet=self.quiet) as bar,
            ThreadPoolExecutor(workers) as readers,
        ):
            for start in range(0, len(images), 256):
                part = images[start : start + 256]
                found = readers.map(_content, [record for _, record in part])
                for (n, _), content, before in zip(part, found, wanted[start : start + 256], strict=True):
                    if content != before:
                        changed.append(n)
                bar.advance(len(part))
                if len(changed) >= _ENOUGH:
                    break
        return changed

    def _refuse(self, source: Source, gone: NDArray[np.int64], changed: Sequence[int]) -> None:
        said = []
        if changed:
            keys = [self.manifest.keys[n] for n in changed]
            least = "at least " if len(changed) >= _ENOUGH else ""
            said.append(f"{least}{self._some(len(changed), keys)} changed since {self.store.path} was made")
        if len(gone):
            keys = [self.manifest.keys[n] for n in gone.tolist()]
            said.append(f"{self._some(len(gone), keys)} of {self.store.path} not there any more")
        raise PhotographsError(f"{source.root}: {'; '.join(said)}; {self.ways.changed}")

    @staticmethod
    def _some(count: int, keys: Iterable[str]) -> str:
        shown = list(keys)[:_SHOWN]
        more = ", …" if count > len(shown) else ""
        return f"{count} photograph{'s' if count != 1 else ''} ({', '.join(shown)}{more})"


def _content(record: ImageRecord) -> str:
    """The content hash of a photograph, empty where it cannot be read."""
    try:
        return content_hash(record.read())
    except OSError:
        return ""


def require_only(
    store: EmbeddingStore, records: Iterable[ImageRecord], others: Sequence[Source], ways: Ways = RUN
) -> None:
    """Raise PhotographsError where a store has photographs that a study does not take."""
    if others:
        names = ", ".join(other.root for other in others)
        raise PhotographsError(f"{store.path}: also has photographs of {names}; {ways.other}")
    taken = {record.key for record in records}
    manifest = store.manifest()
    more = [n for n, key in enumerate(manifest.keys) if key not in taken]
    if more:
        noted = notes.read(store.path)
        at_M = noted.at(manifest.row_N[more])
        more = [n for n, at in zip(more, at_M.tolist(), strict=True) if at < 0 or noted.ok_N[at]]
    if more:
        raise PhotographsError(
            f"{store.path}: has {len(more)} photographs that the study does not take now, such as "
            f"{manifest.keys[more[0]]} (is limit smaller than before?); {ways.other}",
            "limit",
        )
