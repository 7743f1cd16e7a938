"""The store: a Zarr v3 array (N, D) per backbone and transformation, a manifest, a journal."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store import arrays, catalog, compaction, journal, lock
from substyle.engine.store import manifest as manifests
from substyle.engine.store.catalog import Catalog, Definition, StoreHeader
from substyle.engine.store.files import clear_temporary, write_once, writing
from substyle.engine.store.journal import Notes
from substyle.engine.store.layout import (
    ARRAYS,
    HEADER,
    METADATA,
    SKETCH,
    BackboneEntry,
    DifferentError,
    StoreError,
    StoreSettings,
    slug,
)
from substyle.engine.store.manifest import NOWHERE, Manifest, SourceEntry
from substyle.engine.store.records import FileNote, ImageNote, Index, Record
from substyle.kernels import files as doors
from substyle.kernels.errors import ConfigError
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
    if any(found not in ours for found in path.all_files()):
        raise StoreError(f"{path}: already exists and is not empty")


class EmbeddingStore:
    """A store on a disk or in a bucket."""

    def __init__(self, path: Place, head: StoreHeader) -> None:
        self.path = path
        self.uuid, self.settings = head.uuid, head.settings
        self.calibration = head.calibration  # keys of the images that gates use
        self._mark: object = None  # of the header's file, when it was last read
        self._read: dict[str, tuple[object, Any]] = {}  # what has been read, with the files it was read from
        self._laid_out: set[tuple[str, str]] = set()  # arrays whose layout has been checked

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: it is read again, and other threads may be reading."""
        return self.__dict__ | {"_mark": None, "_read": {}, "_laid_out": set()}

    @classmethod
    def create(
        cls, path: Place | Path | str, settings: StoreSettings, *, calibration: Sequence[str] = ()
    ) -> EmbeddingStore:
        """Create an empty store atomically, and open it: readers see all of it or nothing.

        Args:
            calibration: keys of the images that gates use.

        Raises:
            ConfigError: the path has no name.
            StoreError: the path exists and is not empty, or cannot be written.
        """
        path = place(path)
        if not path.name:
            raise ConfigError("store", str(path), "a path that ends in a name, such as runs/photographs.zarr")
        header = StoreHeader(str(uuid.uuid4()), settings, tuple(calibration))
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
        try:  # down to the arrays; a link among chunks is refused when a chunk is opened
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
        for backbone in self.backbones():
            for name in self.transformation_names(backbone):
                if self.rows_of(backbone, name) < rows:
                    arrays.grow(self.path / ARRAYS / backbone.slug / name, rows)

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
        """Return the backbone with this name. Raises StoreError, listing all names, if it does not exist."""
        for entry in self.backbones():
            if entry.name == name:
                return entry
        names = ", ".join(entry.name for entry in self.backbones()) or "none"
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
        entry, new = self.require_same(facts, found)
        name, known = entry.slug, self.catalog.backbones.get(entry.slug)
        # arrays first: the catalog must list only arrays that exist
        folder = self.path / ARRAYS / name
        if not (folder / METADATA).exists():
            arrays.write(folder, arrays.group({"substyle": dict(facts)}))
        existing = self.catalog.transformations.get(name, {})
        for definition in new:
            if definition.name not in existing:
                arrays.write(folder / definition.name, self._array_metadata(entry, definition))
        if older := [d.name for d in new if d.name in existing and not existing[d.name].pixels and d.pixels]:
            text = "embedded by an earlier version; what they do is recorded now, and was not compared"
            print(f"{self.path}: {', '.join(older)}: {text}", file=sys.stderr)
        if rounded := [d.name for d in new if d.name in existing and existing[d.name].pixels]:
            text = "few values are rounded to the next level by this processor or its libraries, which is recorded"
            print(f"{self.path}: {', '.join(rounded)}: {text}", file=sys.stderr)
        unknown = known is None or (SKETCH in facts["spec"] and SKETCH not in known.facts["spec"])
        if unknown or new or not {*catalog.executions(facts)} <= {*catalog.executions(known.facts if known else facts)}:
            catalog.write(self.path, facts, {definition.name: definition for definition in new})
        return entry

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

    def _array_metadata(self, entry: BackboneEntry, definition: Definition) -> bytes:
        return arrays.array_metadata(
            self.manifest().rows, entry.dim, self.settings, {"substyle": definition.definition}
        )

    def transformation_names(self, entry: BackboneEntry) -> list[str]:
        """Return the sorted names of a backbone's transformations."""
        return sorted(self.catalog.transformations.get(entry.slug, {}))

    def transformations(self, entry: BackboneEntry) -> list[dict[str, Any]]:
        """Return the definitions of a backbone's transformations, identity first, then by name."""
        definitions = [made.definition for made in self.catalog.transformations.get(entry.slug, {}).values()]
        return sorted(definitions, key=lambda d: (d["name"] != "identity", d["name"]))

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
        for entry in self.backbones():
            folder = self.path / ARRAYS / entry.slug
            if f"{ARRAYS}/{entry.slug}/{METADATA}" in found.metadata:
                arrays.write(folder, arrays.group({"substyle": entry.facts}))
            for name, definition in self.catalog.transformations[entry.slug].items():
                if f"{ARRAYS}/{entry.slug}/{name}/{METADATA}" in found.metadata:
                    arrays.write(folder / name, self._array_metadata(entry, definition))
        root = {METADATA: root_attributes(self.settings), f"{ARRAYS}/{METADATA}": {}}
        for name, attributes in root.items():
            if name in found.metadata:
                arrays.write((self.path / name).parent, arrays.group(attributes))
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
        images: Iterable[ImageNote],
        *,
        seconds: float,
        run: str,
        files: Iterable[FileNote] = (),
    ) -> int:
        """Write and flush rows of a shard, then commit them to the journal. Returns the size of the record in bytes.

        Args:
            embeddings: arrays (r, D) by transformation, r ≤ R rows from the shard's first; NaN in invalid rows.
            files: notes on files of real transformations; those of other transformations are ignored.

        Raises:
            OverflowError16: a finite embedding is not finite in the store's dtype; nothing is committed.
            StoreError: the disk is full, not writable, or failed; nothing is committed.
        """
        lock.require(self.path)
        # plain arithmetic and imported embeddings have no gate; image statistics lose accuracy by rounding
        exact = entry.facts.get("gate") is None
        start = shard * self.settings.shard_rows
        stop = start + max(map(len, embeddings.values()), default=0)

        def write(name: str) -> str:
            cast_RD = arrays.cast(embeddings[name], self.settings, f"{entry.name}, {name}", exact=exact)
            if (entry.slug, name) not in self._laid_out:  # once, since it takes as long as to write a chunk
                self.rows_of(entry, name)
                self._laid_out.add((entry.slug, name))
            return arrays.write_chunk(entry.chunk(self.path, name, shard), cast_RD, self.settings)

        checksums = dict(zip(embeddings, each(write, embeddings, max(arrays.WRITERS, self.path.requests)), strict=True))
        arrays.flush_folders(entry.chunk(self.path, name, shard) for name in embeddings)
        of_these = tuple(note for note in files if note.transformation in checksums)
        record = Record(shard, start, stop, entry.slug, checksums, tuple(images), round(seconds, 3), run, of_these)
        lock.require(self.path)  # uploads may take longer than a lease lasts
        return journal.write(self.path, record)

    def chunk_path(self, backbone_slug: str, transformation: str, shard: int) -> Place:
        """Return the file or object of one shard's chunk."""
        return self.catalog.chunk(self.path, backbone_slug, transformation, shard)

    def truncated_chunks(self, finished: Index) -> dict[tuple[int, str], set[str]]:
        """Return the transformations by (shard, slug) whose chunk file is missing or has the wrong size.

        Compressed chunks may have any size but 0.
        """
        known = self.catalog
        wanted = {slug: self.settings.chunk_bytes(entry.dim) for slug, entry in known.backbones.items()}
        sizes = arrays.Sizes()
        found: dict[tuple[int, str], set[str]] = {}
        for shard, backbone, name in finished.chunks():
            size = sizes.of(known.chunk(self.path, backbone, name, shard))
            if size != wanted.get(backbone) if self.settings.codec == "none" else not size:
                found.setdefault((shard, backbone), set()).add(name)
        return found

    def stored_bytes(self, entry: BackboneEntry, names: Sequence[str]) -> int:
        """Return the size in bytes of a backbone's finished chunks of these transformations."""
        if not self.has_manifest():  # created, but no run has begun
            return 0
        finished = self.finished().of([entry.slug])
        if self.settings.codec == "none":
            count = int(np.count_nonzero(finished.finished(entry.slug, names, self.shards())))
            return count * self.settings.chunk_bytes(entry.dim)
        sizes = arrays.Sizes()
        chunks = ((shard, name) for shard, _, name in finished.chunks() if name in set(names))
        return sum(sizes.of(entry.chunk(self.path, name, shard)) or 0 for shard, name in chunks)

    def read(
        self,
        entry: BackboneEntry,
        transformation: str,
        start: int = 0,
        stop: int | None = None,
        *,
        out_RD: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Read rows [start, stop) of one array. Shape: (rows, D) or (rows, P · D); NaN without a valid embedding.

        Args:
            out_RD: output buffer, contiguous, in the store's dtype; allocated if None.

        Raises:
            StoreError: the array is damaged or shorter than ``stop``.
        """
        rows = self.rows_of(entry, transformation)
        if stop is not None and stop > rows:
            path = self.path / ARRAYS / entry.slug / transformation / METADATA
            raise StoreError(f"{path}: has {rows} rows, fewer than {stop}; run substyle verify")
        if out_RD is None:
            first, last, _ = slice(start, stop).indices(rows)
            out_RD = np.empty((max(last - first, 0), entry.dim), self.settings.dtype)

        def chunk(shard: int) -> Place:
            return entry.chunk(self.path, transformation, shard)

        arrays.read_rows(self.settings.shard_rows, chunk, start, out_RD, self.settings.codec)
        return out_RD

    def rows_of(self, entry: BackboneEntry, transformation: str) -> int:
        """Return the rows of a transformation's array. Raises StoreError if its metadata or layout are invalid."""
        return arrays.rows_of(self.path / ARRAYS / entry.slug / transformation, entry.dim, self.settings)
