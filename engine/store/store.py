"""The store: Zarr v3 arrays (T, N, D) of embeddings by backbone, a manifest, a journal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from substyle import files as doors
from substyle.engine.backbones.spec import own_name
from substyle.engine.store import arrays, catalog, compaction, journal, lock, shards
from substyle.engine.store import manifest as manifests
from substyle.engine.store.catalog import Catalog, Definition, StoreHeader
from substyle.engine.store.files import clear_temporary, write_durably, write_once, writing
from substyle.engine.store.journal import Notes
from substyle.engine.store.layout import (
    ARRAYS,
    HEADER,
    METADATA,
    SKETCH,
    ArrayEntry,
    BackboneEntry,
    DifferentError,
    StoreError,
    StoreSettings,
    slug,
)
from substyle.engine.store.manifest import NOWHERE, Manifest, SourceEntry
from substyle.engine.store.records import FileNote, ImageNote, Index, Record
from substyle.engine.store.shards import Shape
from substyle.errors import ConfigError
from substyle.pipelines.storage import LocalPlace, Place, each, place

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")


def root_attributes(settings: StoreSettings) -> dict[str, object]:
    """Attributes of the root group, for other Zarr readers; substyle does not read them back."""
    return {"substyle": vars(settings)}


def _make_folder(path: LocalPlace, header: StoreHeader) -> None:
    clear_temporary(path.parent, path.name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path}: already exists and is not empty")
    # unlike `arrays.write`: the folder appears as a whole, and errors name the store
    with doors.new_folder(path) as temporary:
        (temporary / ARRAYS).mkdir()
        for file, data in (
            (temporary / ARRAYS / METADATA, arrays.group({})),
            (temporary / METADATA, arrays.group(root_attributes(header.settings))),
            (temporary / HEADER, header.encode()),
        ):
            doors.write(file, data, durable=True)
        doors.flush(temporary / ARRAYS)
        doors.flush(temporary)
    path.parent.flush()


def _put(path: Place, header: StoreHeader) -> None:
    """Create a store in a bucket. It exists once its header does, which is put last, if absent."""
    _require_empty(path)  # before writing anything
    with lock.mutex(path):
        _require_empty(path)
        (path / ARRAYS / METADATA).write(arrays.group({}))
        (path / METADATA).write(arrays.group(root_attributes(header.settings)))
        write_once(path / HEADER, header.encode())


def _require_empty(path: Place) -> None:
    # objects of a process that was killed in `_put`, or is still in it
    ours = {path / ARRAYS / METADATA, path / METADATA, path / lock.MUTEX}
    if any(found not in ours for found in path.sizes()):
        raise StoreError(f"{path}: already exists and is not empty")


def _note_on(note: ImageNote, names: Collection[str]) -> ImageNote:
    """A note with what it says of some transformations alone."""
    alike = tuple(name for name in note.indistinct if name in names)
    return note if alike == note.indistinct else replace(note, indistinct=alike)


class EmbeddingStore:
    """A store on a disk or in a bucket."""

    def __init__(self, path: Place, head: StoreHeader) -> None:
        self.path = path
        self.uuid, self.settings = head.uuid, head.settings
        self.calibration = head.calibration  # keys of the images that gates use
        self._mark: object = None  # of the header's file, when it was last read
        self._read: dict[str, tuple[object, Any]] = {}  # what has been read, with the files it was read from
        self._laid_out: set[ArrayEntry] = set()  # arrays whose layout has been checked

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: it is read again, and other threads may be reading."""
        return self.__dict__ | {"_mark": None, "_read": {}, "_laid_out": set()}

    @classmethod
    def create(
        cls,
        path: Place | Path | str,
        settings: StoreSettings,
        *,
        calibration: Sequence[str] = (),
        uuid: str | None = None,
    ) -> EmbeddingStore:
        """Create an empty store atomically, and open it: readers see all of it or nothing.

        Args:
            calibration: keys of the images that gates use.
            uuid: of the store that it is a copy of; default: a new one.

        Raises:
            ConfigError: the path has no name.
            StoreError: the path exists and is not empty, or cannot be written.
        """
        path = place(path)
        if not path.name:
            raise ConfigError("store", str(path), "a path that ends in a name, such as runs/photographs.zarr")
        header = StoreHeader(uuid or str(uuid4()), settings, tuple(calibration))
        with writing(path):
            if isinstance(path, LocalPlace):
                _make_folder(path, header)
            else:
                _put(path, header)
        return cls.open(path)

    @classmethod
    def open(cls, path: Place | Path | str) -> EmbeddingStore:
        """Open the store at a path or URL.

        Raises:
            StoreError: no store exists there, its header is damaged, its schema version is not supported, or it
                contains symbolic links.
            ObjectError: its bucket cannot be reached.
        """
        path = place(path)
        try:  # down to the shards
            path.require_no_links(3)
        except doors.UnsafeFileError as error:
            raise StoreError(f"{path} must not contain links: {error}") from error
        return cls(path, catalog.read_header(path))

    def require_same_store(self) -> None:
        """Raise StoreError if the path leads to another store than the one that was opened, or to none."""
        try:
            mark = (self.path / HEADER).mark()
        except OSError as error:
            raise StoreError(f"{self.path}: no store any more ({error.strerror})") from error
        if mark is None or mark != self._mark:
            if (found := catalog.read_header(self.path).uuid) != self.uuid:
                raise StoreError(f"{self.path}: store {self.uuid} was opened here, and this is store {found}")
            self._mark = mark

    # --- rows -------------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """Return the image in each row."""
        # reading a million images takes a second
        files = manifests.segments(self.path)
        return self._kept("manifest", files, lambda: manifests.read(self.path, self.settings.shard_rows))

    def _kept(self, what: str, files: object, read: Callable[[], T]) -> T:
        """Read something again only if its files have changed, which are immutable."""
        if what not in self._read or self._read[what][0] != files:
            self._read[what] = files, read()
        kept: T = self._read[what][1]
        return kept

    def to_pandas(self) -> pandas.DataFrame:
        """Return `Manifest.to_pandas`; `EmbeddingTable.to_pandas` has the embeddings."""
        return self.manifest().to_pandas()

    def add_images(
        self,
        keys: Sequence[str],
        label_N: NDArray[np.int64],
        class_names: Sequence[str],
        split_N: NDArray[np.int8],
        *,
        given: Sequence[str | None] | None = None,
        source: SourceEntry = NOWHERE,
    ) -> None:
        """Append images of a source as a new manifest segment, aligned to a shard, and grow the arrays."""
        first = 0
        if self.has_manifest():
            shard_rows = self.settings.shard_rows
            first = -(-self.manifest().rows // shard_rows) * shard_rows
        manifests.append(
            self.path,
            first_row=first,
            keys=keys,
            label_N=label_N,
            class_names=class_names,
            split_N=split_N,
            given=given,
            source=source,
        )
        self.resize_arrays()

    def resize_arrays(self) -> None:
        """Grow the arrays to the manifest's rows; a run killed while adding images leaves them shorter."""
        rows = self.manifest().rows
        for array in chain.from_iterable(self.catalog.arrays.values()):
            if self.rows_of(array) < rows:
                arrays.grow(array.node(self.path), rows)

    def has_manifest(self) -> bool:
        """Return whether images have been added."""
        return bool(manifests.segments(self.path))

    def shards(self) -> int:
        """Return the number of shards of the manifest's rows."""
        return -(-self.manifest().rows // self.settings.shard_rows)

    # --- backbones and transformations ------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """The backbones and transformations of the store. Raises StoreError if a catalog file is damaged."""
        files = catalog.files(self.path)
        return self._kept("catalog", files, lambda: catalog.read(files))

    def backbones(self) -> list[BackboneEntry]:
        """Return the backbones of the store, ordered by name."""
        return list(self.catalog.backbones.values())

    def backbone(self, name: str) -> BackboneEntry:
        """Return the backbone with this name, or this name of one's own.

        Raises StoreError, listing all names, if it does not exist.
        """
        entries = self.backbones()
        found = [e for e in entries if e.name == name] or [e for e in entries if name and own_name(e.name) == name]
        if len(found) == 1:
            return found[0]
        names = ", ".join(entry.name for entry in entries) or "none"
        raise StoreError(f"{self.path}: no backbone {name}; available: {names}")

    def ensure_backbone(self, facts: Mapping[str, Any], found: Sequence[Definition] = ()) -> BackboneEntry:
        """Create a backbone's group and arrays of transformations, or check that existing ones are the same.

        Args:
            facts: plain JSON with at least ``name``, ``dim``, ``spec`` and ``runtime``.
            found: the transformations it needs.

        Raises:
            DifferentError: it exists with other weights, width, runtime or precision, or a transformation exists with
                another definition.
        """
        entry, lacking = self.require_same(facts, found)
        name, known = entry.slug, self.catalog.backbones.get(entry.slug)
        existing = self.catalog.transformations.get(name, {})
        done = {made for _, _, names in self.finished().of([name]).records() for made in names}
        if done - existing.keys():  # of which network, only the catalog tells
            raise StoreError(f"{self.path}: a file of the catalog of {entry.name} is missing; run substyle verify")
        new = [definition for definition in lacking if definition.name not in existing]
        changed = [definition for definition in lacking if definition.name in existing]
        # arrays first: the catalog must list only arrays that exist
        folder = self.path / ARRAYS / name
        if not (folder / METADATA).is_file():
            arrays.write(folder, arrays.group({"substyle": dict(facts)}))
        if new:
            self.add_array(facts, new)
        if older := [d.name for d in changed if not existing[d.name].pixels and d.pixels]:
            text = "embedded by an earlier version; what they do is recorded now, and was not compared"
            print(f"{self.path}: {', '.join(older)}: {text}", file=sys.stderr)
        if rounded := [d.name for d in changed if existing[d.name].pixels]:
            text = "few values are rounded to the next level by this processor or its libraries, which is recorded"
            print(f"{self.path}: {', '.join(rounded)}: {text}", file=sys.stderr)
        unknown = known is None or (SKETCH in facts["spec"] and SKETCH not in known.facts["spec"])
        executed = {*catalog.executions(facts)} <= {*catalog.executions(known.facts if known else facts)}
        worse = known is not None and catalog.lowest_cosine(facts) < catalog.lowest_cosine(known.facts)
        if changed or not executed or ((unknown or worse) and not new):
            catalog.write(self.path, facts, changed, array=False)
        return entry

    def add_array(self, facts: Mapping[str, Any], found: Sequence[Definition]) -> None:
        """Create an array for transformations of a backbone, which has none of them."""
        name = slug(str(facts["name"]))
        array = ArrayEntry(name, int(facts["dim"]), tuple(definition.name for definition in found))
        arrays.write(array.node(self.path), self._array_metadata(array, found))
        catalog.write(self.path, facts, found, array=True)

    def require_same(
        self, facts: Mapping[str, Any], found: Sequence[Definition]
    ) -> tuple[BackboneEntry, list[Definition]]:
        """Check that a backbone and its transformations equal those of the store, without changing it.

        Returns:
            the backbone, and the transformations that its catalog does not have yet.

        Raises:
            DifferentError: as `ensure_backbone`.
        """
        entry = BackboneEntry(str(facts["name"]), slug(str(facts["name"])), int(facts["dim"]), dict(facts))
        known = self.catalog.backbones.get(entry.slug)
        if known is not None and (changed := catalog.differences(known.facts, facts)):
            how = catalog.remedy(known.facts, facts, changed)
            raise DifferentError(
                f"{self.path}: {entry.name} was embedded with different settings: {'; '.join(changed)}{how}"
            )
        self.require_definitions(found)
        existing = self.catalog.transformations.get(entry.slug, {})
        # also those of which the store does not know what they do on this processor
        new = [d for d in found if d.name not in existing or not {*d.pixels} <= {*existing[d.name].pixels}]
        return entry, new

    def require_definitions(self, found: Sequence[Definition]) -> None:
        """Raise DifferentError if any backbone of the store has one of these with another definition."""
        now = {definition.name: definition for definition in found}
        # of all backbones, because a report compares them
        made = [definition for each in self.catalog.transformations.values() for definition in each.values()]
        changed = {d.name: how for d in made if d.name in now and (how := d.difference(now[d.name], self.path))}
        if changed:
            raise DifferentError(
                f"{self.path}: changed since the store was created: "
                f"{'; '.join(f'{name} ({how})' for name, how in sorted(changed.items()))}; "
                "use another store, or rename the changed transformation"
            )

    def _array_metadata(self, array: ArrayEntry, found: Iterable[Definition]) -> bytes:
        attributes = {"substyle": {"transformations": [definition.definition for definition in found]}}
        return arrays.array_metadata(array, self.manifest().rows, self.settings, attributes)

    def transformation_names(self, entry: BackboneEntry) -> list[str]:
        """Return the sorted names of a backbone's transformations."""
        return sorted(self.catalog.transformations.get(entry.slug, {}))

    def repair(self) -> bool:
        """Repair the damage found by `verify`. The caller owns the store and holds its mutex.

        Rewrites metadata and removes damaged chunks and records from the journal, so that they are embedded again.
        Returns whether there was any damage.
        """
        found = compaction.read(self.path)
        if found is None:
            return False
        compaction.repair(self.path, found)
        self._read.clear()
        self._laid_out.clear()
        nodes = {METADATA: arrays.group(root_attributes(self.settings)), f"{ARRAYS}/{METADATA}": arrays.group({})}
        for entry in self.backbones():
            nodes[f"{ARRAYS}/{entry.slug}/{METADATA}"] = arrays.group({"substyle": entry.facts})
            made = self.catalog.transformations[entry.slug]
            for array in self.catalog.arrays[entry.slug]:
                definitions = [made[name] for name in array.transformations]
                nodes[f"{ARRAYS}/{entry.slug}/{array.name}/{METADATA}"] = self._array_metadata(array, definitions)
        for name in nodes.keys() & set(found.metadata):
            arrays.write((self.path / name).parent, nodes[name])
        compaction.clear_damage(self.path)
        return True

    # --- shards -----------------------------------------------------------------------------------------------------

    def finished(self) -> Index:
        """Return the index of finished shards. Raises StoreError if the journal is damaged."""
        return self._kept("finished", journal.files(self.path), lambda: journal.read_index(self.path))

    def notes(self, manifest: Manifest) -> Notes:
        """Return the notes on the images of a manifest. Raises StoreError if the journal is damaged."""
        files = (manifest.digest, journal.files(self.path))
        return self._kept("notes", files, lambda: journal.read_notes(self.path, manifest.row_N))  # takes seconds

    def write_shard(
        self,
        entry: BackboneEntry,
        shard: int,
        embeddings: Mapping[str, NDArray[np.floating]],
        images: Sequence[ImageNote],
        *,
        seconds: float,
        run: str,
        files: Sequence[FileNote] = (),
    ) -> int:
        """Write and flush rows of a shard, then commit them to the journal. Returns the size of the record in bytes.

        Args:
            embeddings: arrays (r, D) by transformation, r ≤ R rows from the shard's first; NaN in invalid rows.
            files: notes on files of real transformations; those of other transformations are ignored.

        Raises:
            OverflowError16: a finite embedding is not finite in the store's dtype; nothing of its array is committed.
            StoreError: the disk is full, not writable, or failed; nothing of its array is committed.
        """
        lock.require(self.path)
        # plain arithmetic and imported embeddings have no gate; image statistics lose accuracy by rounding
        exact = entry.facts.get("gate") is None
        start = shard * self.settings.shard_rows
        stop = start + max(map(len, embeddings.values()), default=0)
        size, known = 0, self.catalog.arrays[entry.slug]
        if unknown := embeddings.keys() - {name for array in known for name in array.transformations}:
            raise StoreError(f"{self.path}: {entry.name} has no array of {', '.join(sorted(unknown))}")
        for array in known:
            new = {name: embeddings[name] for name in array.transformations if name in embeddings}
            if not new:
                continue
            if array not in self._laid_out:
                self.rows_of(array)
                self._laid_out.add(array)
            checksums = self._write(array, shard, new, entry.name, exact=exact)
            # a run that is killed between two arrays leaves the same records as one that is not
            of_images = tuple(_note_on(note, checksums) for note in images)
            of_files = tuple(note for note in files if note.transformation in checksums)
            record = Record(shard, start, stop, entry.slug, checksums, of_images, round(seconds, 3), run, of_files)
            lock.require(self.path)  # uploads may take longer than a lease lasts
            size += journal.write(self.path, record)
        return size

    def _write(
        self, array: ArrayEntry, shard: int, new: Mapping[str, NDArray[np.floating]], backbone: str, *, exact: bool
    ) -> dict[str, str]:
        """Write a shard with some transformations, and those that its file has already. Returns digests of the new."""
        path, names = array.shard(self.path, shard), array.transformations
        kept = self._chunks(array, shard, [name for name in names if name not in new])

        def chunk(name: str) -> NDArray[Any] | None:
            if name not in new:
                return kept.get(name)
            return arrays.cast(new[name], self.settings, f"{backbone}, {name}", exact=exact)

        with ThreadPoolExecutor(1) as beside:  # while other chunks are made and written
            digests: dict[str, Future[str]] = {}

            def submit(t: int, encoded: bytes | memoryview) -> None:
                if names[t] in new:
                    digests[names[t]] = beside.submit(shards.digest, encoded)

            write_durably(path, shards.encode(map(chunk, names), self.shape(array), submit))
        return {name: made.result() for name, made in digests.items()}

    def _chunks(self, array: ArrayEntry, shard: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Read what the file of a shard has of some transformations and is intact; records tell what is finished."""
        found: dict[str, NDArray[Any]] = {}
        if names:
            with (
                suppress(FileNotFoundError, StoreError),
                shards.opening(array.shard(self.path, shard), self.shape(array)) as before,
            ):
                for name in names:
                    with suppress(StoreError):
                        found[name] = before.chunk(array.transformations.index(name))
        return found

    def shard_path(self, slug: str, transformation: str, shard: int) -> Place:
        """Return the file or object of a shard. Raises StoreError if its array does not exist."""
        return self.catalog.array(slug, transformation).shard(self.path, shard)

    def shape(self, array: ArrayEntry) -> Shape:
        """Return what is known of all shards of an array."""
        settings = self.settings
        return Shape(
            len(array.transformations), settings.shard_rows, array.dim, np.dtype(settings.dtype), settings.codec
        )

    def truncated(self, finished: Index) -> dict[tuple[int, str], set[str]]:
        """Return the transformations by (shard, slug) whose file is missing or has a size that it cannot have."""
        sizes: dict[ArrayEntry, dict[Place, int]] = {}
        found: dict[tuple[int, str], set[str]] = {}
        known = self.catalog
        for shard, backbone, names in finished.records():
            try:
                array = known.array(backbone, names[0])
            except StoreError:  # its catalog file is damaged
                found.setdefault((shard, backbone), set()).update(names)
                continue
            if array not in sizes:
                sizes[array] = array.node(self.path).sizes()
            size = sizes[array].get(array.shard(self.path, shard), 0)
            if not self.shape(array).least(len(names)) <= size <= self.shape(array).most:
                found.setdefault((shard, backbone), set()).update(names)
        return found

    def stored_bytes(self, entry: BackboneEntry, names: Sequence[str]) -> int:
        """Return the size in bytes of a backbone's finished embeddings of these transformations.

        Transformations of one file share its size.
        """
        if not self.has_manifest():  # created, but no run has begun
            return 0
        known, done = self.catalog, dict[tuple[ArrayEntry, int], set[str]]()
        for shard, _, made in self.finished().of([entry.slug]).records():
            done.setdefault((known.array(entry.slug, made[0]), shard), set()).update(made)
        sizes = {array: array.node(self.path).sizes() for array in known.arrays[entry.slug]}
        shares = ((array, shard, len(made & {*names}) / len(made)) for (array, shard), made in done.items())
        return round(sum(share * sizes[array].get(array.shard(self.path, shard), 0) for array, shard, share in shares))

    def read(
        self,
        entry: BackboneEntry,
        transformation: str,
        start: int = 0,
        stop: int | None = None,
        *,
        finished: bool = False,
    ) -> NDArray[Any]:
        """Read rows [start, stop) of a transformation. Shape: (rows, D); NaN without a valid embedding.

        Args:
            finished: raise StoreError if the file of a shard or its embeddings are missing.

        Raises:
            StoreError: the array is damaged or shorter than ``stop``.
        """
        array, shard_rows = self.catalog.array(entry.slug, transformation), self.settings.shard_rows
        row_N = np.arange(self.rows_of(array, stop or 0))[start:stop]
        x_ND = np.empty((len(row_N), entry.dim), self.settings.dtype)
        t_N = np.full(len(row_N), array.transformations.index(transformation))

        def one(own: NDArray[np.int64]) -> None:
            path = array.shard(self.path, int(row_N[own[0]] // shard_rows))
            shards.gather(path, self.shape(array), t_N[own], row_N[own] % shard_rows, x_ND, own, finished=finished)

        of_shards = np.split(np.arange(len(row_N)), np.flatnonzero(np.diff(row_N // shard_rows)) + 1)
        each(one, of_shards if len(row_N) else (), self.path.requests)
        return x_ND

    def rows_of(self, array: ArrayEntry, least: int = 0) -> int:
        """Return the rows of an array. Raises StoreError if its layout is invalid, or it has fewer than ``least``."""
        rows = arrays.rows_of(array.node(self.path), array, self.settings)
        if rows < least:
            path = array.node(self.path) / METADATA
            raise StoreError(f"{path}: has {rows} rows, fewer than {least}; run substyle verify")
        return rows
