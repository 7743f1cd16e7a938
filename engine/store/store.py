"""The store: one Zarr v3 array (N, D) for every backbone and transformation, a manifest, a journal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from substyle.engine.store import arrays, catalog, compaction, journal, lock
from substyle.engine.store import manifest as manifests
from substyle.engine.store.catalog import Catalog, Definition, StoreHeader
from substyle.engine.store.files import clear_temporary, flush, temporary_name, write_durably, writing
from substyle.engine.store.journal import Notes
from substyle.engine.store.layout import (
    ARRAYS,
    HEADER,
    METADATA,
    BackboneEntry,
    DifferentError,
    StoreError,
    StoreSettings,
    chunk_path,
    slug,
)
from substyle.engine.store.manifest import NOWHERE, Manifest, SourceEntry
from substyle.engine.store.records import ImageNote, Index, Record
from substyle.kernels.errors import ConfigError
from substyle.pipelines.storage import ObjectPlace, Place, each, place

# Making a store so that others see it whole or not at all.


def create(path: Place, settings: StoreSettings, *, calibration: Sequence[str] = ()) -> None:
    """Make an empty store. On a disk: under a temporary name beside the path, then renamed.

    Args:
        calibration: keys of the images that gates and recalibrations use, for as long as the store lives.

    Raises:
        ConfigError: a path without a name.
        StoreError: something is there already, or the folder cannot be written.
    """
    if not path.name:
        raise ConfigError("store", str(path), "a path that ends in a name, such as runs/photographs.zarr")
    header = StoreHeader.new(settings, calibration)
    with writing(path):
        if isinstance(path, ObjectPlace):
            _put(path, header)
        else:
            _make_folder(path, header)


def root_attributes(header: StoreHeader) -> dict[str, object]:
    """What the root group tells other readers of the store; nothing here is read back."""
    return {"substyle": vars(header.settings)}


def _make_folder(path: Path, header: StoreHeader) -> None:
    temporary = temporary_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_temporary(path.parent, path.name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path}: is there already and is not empty")
    try:
        # not as `arrays.write` does: the folder appears as a whole, and what fails is said of the store
        (temporary / ARRAYS).mkdir(parents=True)
        for file, data in (
            (temporary / ARRAYS / METADATA, arrays.group({})),
            (temporary / METADATA, arrays.group(root_attributes(header))),
            (temporary / HEADER, header.encode()),
        ):
            file.write_bytes(data)
            flush(file)
        flush(temporary / ARRAYS)
        flush(temporary)
        os.rename(temporary, path)  # fails where another process was quicker
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(path.parent)


def _put(path: ObjectPlace, header: StoreHeader) -> None:
    """The store is there when its header is, which is put last and only where none is."""
    _require_empty(path)  # before anything is written there
    with lock.mutex(path):
        _require_empty(path)
        (path / ARRAYS / METADATA).put(arrays.group({}))
        (path / METADATA).put(arrays.group(root_attributes(header)))
        write_durably(path / HEADER, header.encode())


def _require_empty(path: ObjectPlace) -> None:
    # what a process has put that was killed here, or that is at it now
    ours = {path / ARRAYS / METADATA, path / METADATA, path / lock.MUTEX}
    if any(found not in ours for found, _ in path.walk()):
        raise StoreError(f"{path}: is there already and is not empty")


class EmbeddingStore:
    """A store on a disk or in a bucket; see `create` and `open`."""

    def __init__(self, path: Place, head: StoreHeader) -> None:
        self.path = path
        self.uuid, self.settings = head.uuid, head.settings
        self.calibration = head.calibration  # keys of the images that gates and recalibrations use
        self._group: zarr.Group | None = None
        self._manifest: tuple[list[Place], Manifest] | None = None  # of these segments
        self._catalog: tuple[list[Place], Catalog] | None = None  # of these files
        self._notes: tuple[journal.Files, Notes] | None = None  # of these files

    @classmethod
    def create(cls, path: Place | str, settings: StoreSettings, *, calibration: Sequence[str] = ()) -> EmbeddingStore:
        """Make an empty store and open it; see `create`."""
        path = place(path)
        create(path, settings, calibration=calibration)
        return cls.open(path)

    @classmethod
    def open(cls, path: Place | str) -> EmbeddingStore:
        """Open the store at a path or an address.

        Raises:
            StoreError: there is none, its header is damaged, or it has another schema.
            ObjectError: it lies in a bucket that cannot be asked.
        """
        path = place(path)
        return cls(path, catalog.read_header(path))

    @property
    def group(self) -> zarr.Group:
        """The Zarr group of the whole store. Raises StoreError when its metadata are damaged."""
        if self._group is None:
            self._group = arrays.root(self.path)
        return self._group

    def tidy(self) -> None:
        """Remove what killed processes left half written; the caller has the mutex."""
        compaction.clear_leftovers(self.path)

    def is_tidy(self) -> bool:
        """Whether no killed process left a lock, something half written, or records that nobody has compacted."""
        return compaction.none(self.path)

    # --- rows -------------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """Which image stands in which row."""
        # segments never change: what was read of the same ones holds, and a million images take a second to read
        there = manifests.segments(self.path)
        if self._manifest is None or self._manifest[0] != there:
            self._manifest = there, manifests.read(self.path, self.settings.shard_rows)
        return self._manifest[1]

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
        """Append images of a source: a new manifest segment that starts at a shard boundary; `fit` grows the arrays."""
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
        self.fit()

    def fit(self) -> None:
        """Let arrays grow to the manifest's rows; a run that was killed while it added images left them short."""
        rows = self.manifest().rows
        for backbone in self.backbones():
            for name in self.transformation_names(backbone):
                array = self.array_of(backbone, name)
                if array.shape[0] < rows:
                    arrays.grow(self.path / ARRAYS / backbone.slug / name, rows)

    def has_manifest(self) -> bool:
        """Whether images have been added."""
        return bool(manifests.segments(self.path))

    def shards(self) -> int:
        """Number of shards that the manifest's rows fill."""
        return -(-self.manifest().rows // self.settings.shard_rows)

    # --- backbones and transformations ------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """The backbones and transformations of the store. Raises StoreError when a file of it is damaged."""
        there = catalog.files(self.path)
        if self._catalog is None or self._catalog[0] != there:  # files never change
            self._catalog = there, catalog.read(self.path, there)
        return self._catalog[1]

    def backbones(self) -> list[BackboneEntry]:
        """The backbones of the store, in the order of their names."""
        return list(self.catalog.backbones.values())

    def backbone(self, name: str) -> BackboneEntry:
        """The backbone of that name. Raises StoreError naming those there are."""
        for entry in self.backbones():
            if entry.name == name:
                return entry
        there = ", ".join(entry.name for entry in self.backbones()) or "none"
        raise StoreError(f"{self.path}: no backbone {name}; there are: {there}")

    def ensure_backbone(self, facts: Mapping[str, Any], found: Sequence[Definition] = ()) -> BackboneEntry:
        """Make a backbone's group and the arrays of transformations, or check that those there were made alike.

        Args:
            facts: plain JSON with at least ``name``, ``dim``, ``spec`` and ``runtime``.
            found: the transformations that it is to have.

        Raises:
            DifferentError: it is there with other weights, width, runtime or precision, or a transformation is there
                with another definition.
        """
        entry, new = self.require_same(facts, found)
        name, known = entry.slug, self.catalog.backbones.get(entry.slug)
        # what the catalog names is there: arrays come first
        folder = self.path / ARRAYS / name
        if not (folder / METADATA).exists():
            arrays.write(folder, arrays.group({"substyle": dict(facts)}))
        for definition in new:
            arrays.write(folder / definition.name, self._array_metadata(entry, definition))
        if known is None or new:
            catalog.write(self.path, facts, {definition.name: definition for definition in new})
        return entry

    def require_same(
        self, facts: Mapping[str, Any], found: Sequence[Definition]
    ) -> tuple[BackboneEntry, list[Definition]]:
        """Check that a backbone and transformations are those that the store has; nothing is changed.

        Returns:
            the backbone, and those transformations that it lacks.

        Raises:
            DifferentError: as `ensure_backbone` says.
        """
        entry = BackboneEntry(str(facts["name"]), slug(str(facts["name"])), int(facts["dim"]), dict(facts))
        known = self.catalog.backbones.get(entry.slug)
        if known is not None and (changed := catalog.differences(known.facts, facts)):
            how = catalog.remedy(known.facts, facts)
            raise DifferentError(f"{self.path}: {entry.name} was made differently: {'; '.join(changed)}{how}")
        self.require_definitions(found)
        there = self.catalog.transformations.get(entry.slug, {})
        return entry, [definition for definition in found if definition.name not in there]

    def require_definitions(self, found: Sequence[Definition]) -> None:
        """Raise DifferentError unless what the store has of these, by any backbone, has the same definitions."""
        now = {definition.name: definition for definition in found}
        # of every backbone: a report sets them side by side
        made = [definition for each in self.catalog.transformations.values() for definition in each.values()]
        changed = sorted({d.name for d in made if d.name in now and now[d.name].identity != d.identity})
        if changed:
            raise DifferentError(
                f"{self.path}: the definition of {', '.join(changed)} has changed since the store was made; "
                "use another store, or give the changed transformation another name"
            )

    def _array_metadata(self, entry: BackboneEntry, definition: Definition) -> bytes:
        return arrays.array_metadata(
            *(self.manifest().rows, entry.dim),
            shard_rows=self.settings.shard_rows,
            dtype=self.settings.dtype,
            attributes={"substyle": definition.definition},
        )

    def transformation_names(self, entry: BackboneEntry) -> list[str]:
        """Names of the transformations that a backbone has arrays of."""
        return sorted(self.catalog.transformations.get(entry.slug, {}))

    def transformations(self, entry: BackboneEntry) -> list[dict[str, Any]]:
        """Definitions of the transformations that a backbone has arrays of, identity first, then by name."""
        definitions = [made.definition for made in self.catalog.transformations.get(entry.slug, {}).values()]
        return sorted(definitions, key=lambda d: (d["name"] != "identity", d["name"]))

    def repair(self) -> bool:
        """Undo what `verify` found damaged, so that it is embedded again; the caller owns the store and has its mutex.

        Metadata are written again; damaged chunks and records are taken out of the journal. Returns whether there was
        something to do.
        """
        found = compaction.read(self.path)
        if found is None:
            return False
        compaction.repair(self.path, found)
        self._group = self._catalog = None
        for entry in self.backbones():
            folder = self.path / ARRAYS / entry.slug
            if f"{ARRAYS}/{entry.slug}/{METADATA}" in found.metadata:
                arrays.write(folder, arrays.group({"substyle": entry.facts}))
            for name, definition in self.catalog.transformations[entry.slug].items():
                if f"{ARRAYS}/{entry.slug}/{name}/{METADATA}" in found.metadata:
                    arrays.write(folder / name, self._array_metadata(entry, definition))
        root = {METADATA: root_attributes(StoreHeader(self.uuid, self.settings)), f"{ARRAYS}/{METADATA}": {}}
        for name, attributes in root.items():
            if name in found.metadata:
                arrays.write((self.path / name).parent, arrays.group(attributes))
        self._group = None
        compaction.clear_damage(self.path)
        return True

    # --- shards -----------------------------------------------------------------------------------------------------

    def finished(self) -> Index:
        """What is finished. Raises StoreError when the journal is damaged."""
        return journal.read_index(self.path)

    def notes(self) -> Notes:
        """What decoding learned of the images. Raises StoreError when the journal is damaged."""
        there = journal.files(self.path)
        if self._notes is None or self._notes[0] != there:  # files never change, and a million notes take seconds
            self._notes = there, journal.read_notes(self.path)
        return self._notes[1]

    def write_shard(
        self,
        entry: BackboneEntry,
        shard: int,
        embeddings: Mapping[str, NDArray[np.floating]],
        images: Iterable[ImageNote],
        *,
        seconds: float,
        run: str,
    ) -> int:
        """Write a shard's rows of several transformations, flush them, then commit them to the journal.

        Args:
            embeddings: by transformation (r, D), r ≤ R rows from the shard's first; NaN where a row is invalid.

        Returns:
            bytes of the record.

        Raises:
            OverflowError16: a finite embedding is not finite in the store's type; nothing is committed.
            StoreError: no room, no permission, or another failure of the disk; nothing is committed.
        """
        lock.require(self.path)
        start = shard * self.settings.shard_rows
        stop = start + max(map(len, embeddings.values()), default=0)

        def write(name: str) -> str:
            cast_RD = arrays.cast(embeddings[name], self.settings.dtype, f"{entry.name}, {name}")
            self.array_of(entry, name)  # is there, and laid out as a chunk is
            return arrays.write_chunk(self.chunk_path(entry.slug, name, shard), cast_RD, self.settings.shard_rows)

        written = each(write, embeddings) if isinstance(self.path, ObjectPlace) else map(write, embeddings)
        checksums = dict(zip(embeddings, written, strict=True))
        arrays.flush_folders(self.chunk_path(entry.slug, name, shard) for name in embeddings)
        record = Record(shard, start, stop, entry.slug, checksums, tuple(images), round(seconds, 3), run)
        return journal.write(self.path, record)

    def chunk_path(self, backbone_slug: str, transformation: str, shard: int) -> Place:
        """The file or object of one shard's chunk."""
        return chunk_path(self.path, backbone_slug, transformation, shard)

    def cut_short(self, finished: Index) -> dict[tuple[int, str], set[str]]:
        """Transformations by (shard, slug) whose chunk file is missing or has another size than its array's chunks."""
        size = {entry.slug: self.settings.chunk_bytes(entry.dim) for entry in self.backbones()}
        sizes = arrays.Sizes()
        found: dict[tuple[int, str], set[str]] = {}
        for shard, backbone, name in finished.chunks():
            if sizes.of(self.chunk_path(backbone, name, shard)) != size.get(backbone):
                found.setdefault((shard, backbone), set()).add(name)
        return found

    def read(
        self,
        entry: BackboneEntry,
        transformation: str,
        start: int = 0,
        stop: int | None = None,
        *,
        out_RD: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Rows [start, stop) of one array. Shape: (rows, D); NaN where nothing valid is.

        Args:
            out_RD: where they go, contiguous, in the store's type; new memory if it is None.

        Raises:
            StoreError: the array is damaged or ends before that.
        """
        array = self.array_of(entry, transformation)
        if stop is not None and stop > array.shape[0]:
            path = self.path / ARRAYS / entry.slug / transformation / METADATA
            raise StoreError(f"{path}: ends at row {array.shape[0]}, before row {stop} (run substyle verify)")
        if out_RD is None:
            first, last, _ = slice(start, stop).indices(array.shape[0])
            out_RD = np.empty((max(last - first, 0), array.shape[1]), array.dtype)
        arrays.read_plain(array, lambda shard: self.chunk_path(entry.slug, transformation, shard), start, out_RD)
        return out_RD

    # --- zarr -------------------------------------------------------------------------------------------------------

    def array_of(self, entry: BackboneEntry, transformation: str) -> zarr.Array[Any]:
        """The Zarr array of a transformation, (N, D). Raises StoreError when it is damaged or laid out otherwise."""
        name = f"{ARRAYS}/{entry.slug}/{transformation}"
        array = arrays.open_array(self.path, self.group, name)
        arrays.require_layout(array, self.settings, entry.dim, self.path / name)
        return array
