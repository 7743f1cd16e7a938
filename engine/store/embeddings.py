"""The store: one Zarr v3 array (N, D) for every backbone and transformation, a manifest, a journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from substyle.engine.schema import build
from substyle.engine.store import access, chunks, creation, form, journal, leftovers, lock, manifest, nodes, plain
from substyle.engine.store.errors import StoreError
from substyle.engine.store.index import Index
from substyle.engine.store.layout import (
    ARRAYS,
    METADATA,
    SCHEMA,
    BackboneEntry,
    StoreSettings,
    chunk_path,
    members,
    slug,
)
from substyle.engine.store.record import ImageNote, Record
from substyle.kernels.errors import ConfigError
from substyle.pipelines.objects import ObjectPlace, each
from substyle.pipelines.places import Place, place


class EmbeddingStore:
    """A store on a disk or in a bucket; see `create` and `open`."""

    def __init__(self, path: Place, group: zarr.Group, settings: StoreSettings) -> None:
        self.path = path
        self.group = group
        self.settings = settings
        self._manifest: tuple[list[Place], manifest.Manifest] | None = None  # of these segments

    @classmethod
    def create(
        cls,
        path: Place | str,
        settings: StoreSettings,
        *,
        calibration: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
    ) -> EmbeddingStore:
        """Make an empty store and open it; see `creation.create`."""
        path = place(path)
        creation.create(path, settings, calibration=calibration, options=options)
        return cls.open(path)

    @classmethod
    def open(cls, path: Place | str) -> EmbeddingStore:
        """Open the store at a path or an address.

        Raises:
            StoreError: there is none, it is damaged, or it has an unknown schema.
            ObjectError: it lies in a bucket that cannot be asked.
        """
        path = place(path)
        group = access.root(path)
        attributes = access.attributes(group, path)
        header = attributes.get("substyle")
        if not isinstance(header, dict):
            raise StoreError(f"{path}: a Zarr group, but not a substyle store")
        if header.get("schema") != SCHEMA:
            raise StoreError(f"{path}: schema {header.get('schema')}, this version reads schema {SCHEMA}")
        form.unseal(attributes, path)
        try:
            settings = build(StoreSettings, {k: v for k, v in header.items() if k != "schema"})
        except ConfigError as error:
            raise StoreError(f"{path}: bad store header: {error}") from error
        return cls(path, group, settings)

    def source_options(self) -> dict[str, str]:
        """How its source is opened, beside its path."""
        options = self.group.attrs.asdict().get("source_options", {})
        return {str(k): str(v) for k, v in options.items()} if isinstance(options, dict) else {}

    def tidy(self) -> None:
        """Remove what killed processes left half written; the caller has the mutex."""
        leftovers.clear(self.path)

    def is_tidy(self) -> bool:
        """Whether no killed process left a lock, something half written, or records that nobody has compacted."""
        return leftovers.none(self.path)

    # --- rows -------------------------------------------------------------------------------------------------------

    def manifest(self) -> manifest.Manifest:
        """Which image stands in which row."""
        # segments never change: what was read of the same ones holds, and a million images take a second to read
        there = manifest.segments(self.path)
        if self._manifest is None or self._manifest[0] != there:
            self._manifest = there, manifest.read(self.path, self.settings.shard_rows)
        return self._manifest[1]

    def add_images(
        self, keys: Sequence[str], label_N: NDArray[np.int64], class_names: Sequence[str], split_N: NDArray[np.int8]
    ) -> None:
        """Append images: a new manifest segment that starts at a shard boundary; `fit` makes the arrays hold it."""
        first = 0
        if self.has_manifest():
            shard_rows = self.settings.shard_rows
            first = -(-self.manifest().rows // shard_rows) * shard_rows
        manifest.append(
            self.path, first_row=first, keys=keys, label_N=label_N, class_names=class_names, split_N=split_N
        )
        self.fit()

    def fit(self) -> None:
        """Let arrays grow to the manifest's rows; a run that was killed while it added images left them short."""
        rows = self.manifest().rows
        for backbone in self.backbones():
            for name in self.transformation_names(backbone):
                array = self.array_of(backbone, name)
                if array.shape[0] < rows:
                    nodes.grow(self.path / ARRAYS / backbone.slug / name, rows)

    def has_manifest(self) -> bool:
        """Whether images have been added."""
        return bool(manifest.segments(self.path))

    def calibration(self) -> list[str]:
        """Keys of the images that gates and recalibrations use."""
        keys = self.group.attrs.asdict().get("calibration", [])
        return [str(key) for key in keys] if isinstance(keys, list) else []

    def shards(self) -> int:
        """Number of shards that the manifest's rows fill."""
        return -(-self.manifest().rows // self.settings.shard_rows)

    # --- backbones and transformations ------------------------------------------------------------------------------

    def backbones(self) -> list[BackboneEntry]:
        """The backbones of the store, in the order of their names."""
        entries = [self.entry_of(name) for name in members(self.path / ARRAYS)]
        return sorted(entries, key=lambda entry: entry.name)

    def backbone(self, name: str) -> BackboneEntry:
        """The backbone of that name. Raises StoreError naming those there are."""
        for entry in self.backbones():
            if entry.name == name:
                return entry
        there = ", ".join(entry.name for entry in self.backbones()) or "none"
        raise StoreError(f"{self.path}: no backbone {name}; there are: {there}")

    def ensure_backbone(self, facts: Mapping[str, Any]) -> BackboneEntry:
        """Make a backbone's group, or check that the one there was made in the same way.

        Args:
            facts: plain JSON with at least ``name``, ``dim``, ``spec`` and ``runtime``.

        Raises:
            StoreError: it is there with other weights, width, runtime or precision.
        """
        name = slug(str(facts["name"]))
        if (self.path / ARRAYS / name / METADATA).exists():
            there = self.entry_of(name).facts
            if changed := form.differences(there, facts):
                how = form.remedy(there, facts)
                raise StoreError(f"{self.path}: {facts['name']} was made differently: {'; '.join(changed)}{how}")
        else:
            nodes.write(self.path / ARRAYS / name, nodes.group(form.seal(facts)))
        return BackboneEntry(str(facts["name"]), name, int(facts["dim"]), dict(facts))

    def ensure_transformation(self, entry: BackboneEntry, definition: Mapping[str, Any], digest: str) -> None:
        """Make the array of a transformation, or check that the one there has the same definition.

        Raises:
            StoreError: it was made by another definition.
        """
        name = str(definition["name"])
        if (self.path / ARRAYS / entry.slug / name / METADATA).exists():
            there, there_digest = self.definition_of(entry, name)
            if there_digest != digest:
                raise StoreError(
                    f"{self.path}: {name} was made by another definition ({there} there, "
                    f"{dict(definition)} now); use another store or another name"
                )
            return
        metadata = nodes.array(
            *(self.manifest().rows, entry.dim),
            shard_rows=self.settings.shard_rows,
            dtype=self.settings.dtype,
            attributes=form.seal({"definition": dict(definition), "definition_hash": digest}),
        )
        nodes.write(self.path / ARRAYS / entry.slug / name, metadata)

    def transformation_names(self, entry: BackboneEntry) -> list[str]:
        """Names of the transformations that a backbone has arrays of."""
        return members(self.path / ARRAYS / entry.slug)

    def transformations(self, entry: BackboneEntry) -> list[dict[str, Any]]:
        """Definitions of the transformations that a backbone has arrays of, identity first, then by name."""
        definitions = [self.definition_of(entry, name)[0] for name in self.transformation_names(entry)]
        return sorted(definitions, key=lambda d: (d["name"] != "identity", d["name"]))

    # --- shards -----------------------------------------------------------------------------------------------------

    def finished(self) -> Index:
        """What is finished. Raises StoreError when the journal is damaged."""
        return journal.read_index(self.path)

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
            cast_RD = chunks.cast(embeddings[name], self.settings.dtype, f"{entry.name}, {name}")
            self.array_of(entry, name)  # is there, and laid out as a chunk is
            return chunks.write(self.chunk_path(entry.slug, name, shard), cast_RD, self.settings.shard_rows)

        written = each(write, embeddings) if isinstance(self.path, ObjectPlace) else map(write, embeddings)
        checksums = dict(zip(embeddings, written, strict=True))
        chunks.flush_folders(self.chunk_path(entry.slug, name, shard) for name in embeddings)
        record = Record(shard, start, stop, entry.slug, checksums, tuple(images), round(seconds, 3), run)
        return journal.write(self.path, record)

    def chunk_path(self, backbone_slug: str, transformation: str, shard: int) -> Place:
        """The file or object of one shard's chunk."""
        return chunk_path(self.path, backbone_slug, transformation, shard)

    def cut_short(self, finished: Index) -> dict[tuple[int, str], set[str]]:
        """Transformations by (shard, slug) whose chunk file is missing or has another size than its array's chunks."""
        size = {entry.slug: self.settings.chunk_bytes(entry.dim) for entry in self.backbones()}
        sizes = chunks.Sizes()
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
        plain.read(array, lambda shard: self.chunk_path(entry.slug, transformation, shard), start, out_RD)
        return out_RD

    # --- zarr -------------------------------------------------------------------------------------------------------

    def entry_of(self, backbone_slug: str) -> BackboneEntry:
        """What a backbone's group says of itself. Raises StoreError when it is damaged."""
        path = self.path / ARRAYS / backbone_slug
        return form.backbone(access.attributes(self.group_of(backbone_slug), path), path)

    def definition_of(self, entry: BackboneEntry, transformation: str) -> tuple[dict[str, Any], str]:
        """(definition, its hash) of the transformation that an array holds. Raises StoreError when it is damaged."""
        path = self.path / ARRAYS / entry.slug / transformation
        return form.transformation(access.attributes(self.array_of(entry, transformation), path), path)

    def group_of(self, backbone_slug: str) -> zarr.Group:
        """The Zarr group of a backbone; of all backbones for an empty slug. Raises StoreError when it is damaged."""
        return access.group(self.path, self.group, f"{ARRAYS}/{backbone_slug}".rstrip("/"))

    def array_of(self, entry: BackboneEntry, transformation: str) -> zarr.Array[Any]:
        """The Zarr array of a transformation, (N, D). Raises StoreError when it is damaged or laid out otherwise."""
        name = f"{ARRAYS}/{entry.slug}/{transformation}"
        array = access.array(self.path, self.group, name)
        form.require_layout(array, self.settings, entry.dim, self.path / name)
        return array
