"""The store: one Zarr v3 array (N, D) for every backbone and transformation, a manifest, a journal."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from substyle.engine.store import journal, manifest
from substyle.engine.store.files import flush
from substyle.kernels.errors import ConfigError, SubstyleError

SCHEMA = 1
DTYPES = ("float16", "float32")
_ARRAYS = "embeddings"


class StoreError(SubstyleError):
    """A store cannot be opened, or what is asked of it does not agree with what it holds."""


class OverflowError16(SubstyleError):
    """An embedding does not fit the store's type."""


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone of a store: its name, the group it lives in, and the facts it was made with."""

    name: str
    slug: str
    dim: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class StoreSettings:
    """What is fixed when a store is made.

    Attributes:
        seed: seed of variants and splits.
        canvas: canvas side S in pixels.
        shard_rows: R, rows of a shard and of a chunk.
        dtype: ``float16`` or ``float32``.
        source: where its images come from (a folder), as given.
    """

    seed: int
    canvas: int
    shard_rows: int
    dtype: str
    source: str


def slug(name: str) -> str:
    """A backbone's name as a group name: letters, digits, dot, dash and underscore, and a hash where it had others."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    tail = Path(name).name if name.startswith("onnx:") else plain
    return f"{tail[-80:].lstrip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def finished_of(records: Iterable[journal.Record]) -> dict[tuple[int, str], set[str]]:
    """Transformations that records speak of, by (shard, slug of the backbone)."""
    done: dict[tuple[int, str], set[str]] = {}
    for record in records:
        done.setdefault((record.shard, record.backbone), set()).update(record.checksums)
    return done


class EmbeddingStore:
    """A store on disk; see `create` and `open`."""

    def __init__(self, path: Path, group: zarr.Group, settings: StoreSettings) -> None:
        self.path = path
        self.group = group
        self.settings = settings

    @classmethod
    def create(cls, path: Path, settings: StoreSettings, *, calibration: Sequence[str] = ()) -> EmbeddingStore:
        """Make an empty store.

        Args:
            calibration: keys of the images that gates and recalibrations use, for as long as the store lives.

        Raises:
            ConfigError: a type or shard size that is not allowed.
            StoreError: something is there already, or the folder cannot be written.
        """
        if settings.dtype not in DTYPES:
            raise ConfigError("dtype", settings.dtype, ", ".join(DTYPES))
        rows = settings.shard_rows
        if rows < 1 or rows & (rows - 1):
            raise ConfigError("shard_rows", rows, "a power of two")
        if path.exists() and any(path.iterdir()):
            raise StoreError(f"{path}: is there already and is not empty")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            group = zarr.open_group(str(path), mode="w", zarr_format=3)
            group.attrs["substyle"] = {"schema": SCHEMA, **vars(settings)}
            group.attrs["calibration"] = list(calibration)
            group.create_group(_ARRAYS)
        except OSError as error:
            raise StoreError(f"{path}: cannot make a store there: {error}") from error
        return cls(path, group, settings)

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> EmbeddingStore:
        """Open a store. Raises StoreError when there is none or it has an unknown schema."""
        try:
            group = zarr.open_group(str(path), mode="r+" if writable else "r", zarr_format=3)
        except FileNotFoundError as error:
            raise StoreError(f"{path}: no store is there") from error
        header = group.attrs.asdict().get("substyle")
        if not isinstance(header, dict):
            raise StoreError(f"{path}: a Zarr group, but not a substyle store")
        if header.get("schema") != SCHEMA:
            raise StoreError(f"{path}: schema {header.get('schema')}, this version reads schema {SCHEMA}")
        fields = {k: v for k, v in header.items() if k != "schema"}
        try:
            settings = StoreSettings(**fields)
        except TypeError as error:
            raise StoreError(f"{path}: bad store header: {error}") from error
        return cls(path, group, settings)

    # --- rows -------------------------------------------------------------------------------------------------------

    def manifest(self) -> manifest.Manifest:
        """Which image stands in which row."""
        return manifest.read(self.path)

    def add_images(
        self, keys: Sequence[str], label_N: NDArray[np.int64], class_names: Sequence[str], split_N: NDArray[np.int8]
    ) -> None:
        """Append images: a new manifest segment that starts at a shard boundary; arrays grow to hold it."""
        first = 0
        if self.has_manifest():
            shard_rows = self.settings.shard_rows
            first = -(-self.manifest().rows // shard_rows) * shard_rows
        manifest.append(
            self.path, first_row=first, keys=keys, label_N=label_N, class_names=class_names, split_N=split_N
        )
        for backbone in self.backbones():
            for name in self._array_names(backbone.slug):
                array = self._array(backbone.slug, name)
                array.resize((first + len(keys), backbone.dim))

    def has_manifest(self) -> bool:
        """Whether images have been added."""
        return (self.path / manifest.FOLDER).is_dir()

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
        entries = []
        for name in sorted(path.name for path in (self.path / _ARRAYS).iterdir() if path.is_dir()):
            facts = self._group(name).attrs.asdict()
            entries.append(BackboneEntry(str(facts["name"]), name, int(facts["dim"]), dict(facts)))  # type: ignore[arg-type]
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
        if (self.path / _ARRAYS / name).is_dir():
            there = self._group(name).attrs.asdict()
            self._compare(str(facts["name"]), there, facts)
        else:
            group = self._group("").create_group(name)
            group.attrs.update(dict(facts))
        return BackboneEntry(str(facts["name"]), name, int(facts["dim"]), dict(facts))

    def _compare(self, name: str, there: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        def identity(f: Mapping[str, Any]) -> dict[str, Any]:
            return {
                "dim": f["dim"],
                "weights": f["spec"]["weights_hash"],
                "runtime": f["runtime"]["name"],
                "precision": f["runtime"]["precision"],
            }

        old, new = identity(there), identity(facts)
        changed = [f"{key} {old[key]} there, {new[key]} now" for key in old if old[key] != new[key]]
        if changed:
            raise StoreError(f"{self.path}: {name} was made differently: {'; '.join(changed)}")

    def ensure_transformation(self, entry: BackboneEntry, definition: Mapping[str, Any], digest: str) -> None:
        """Make the array of a transformation, or check that the one there has the same definition.

        Raises:
            StoreError: it was made by another definition.
        """
        name = str(definition["name"])
        group = self._group(entry.slug)
        if (self.path / _ARRAYS / entry.slug / name).is_dir():
            there = self._array(entry.slug, name).attrs.asdict()
            if there.get("definition_hash") != digest:
                raise StoreError(
                    f"{self.path}: {name} was made by another definition ({there.get('definition')} there, "
                    f"{dict(definition)} now); use another store or another name"
                )
            return
        array = group.create_array(
            name,
            shape=(self.manifest().rows, entry.dim),
            chunks=(self.settings.shard_rows, entry.dim),
            dtype=self.settings.dtype,
            fill_value=float("nan"),
            compressors=None,
            filters=None,
        )
        array.attrs.update({"definition": dict(definition), "definition_hash": digest})

    def transformations(self, entry: BackboneEntry) -> list[dict[str, Any]]:
        """Definitions of the transformations that a backbone has arrays of, identity first, then by name."""
        found = [self._array(entry.slug, name).attrs.asdict()["definition"] for name in self._array_names(entry.slug)]
        definitions = [dict(d) for d in found if isinstance(d, dict)]
        return sorted(definitions, key=lambda d: (d["name"] != "identity", d["name"]))

    # --- shards -----------------------------------------------------------------------------------------------------

    def finished(self) -> dict[tuple[int, str], set[str]]:
        """Finished transformations by (shard, slug of the backbone)."""
        return finished_of(journal.read(self.path))

    def write_shard(
        self,
        entry: BackboneEntry,
        shard: int,
        embeddings: Mapping[str, NDArray[np.floating]],
        images: Iterable[journal.ImageNote],
        *,
        seconds: float,
        run: str,
    ) -> None:
        """Write a shard's rows of several transformations, flush them, then commit them to the journal.

        Args:
            embeddings: by transformation (r, D), r ≤ R rows from the shard's first; NaN where a row is invalid.

        Raises:
            OverflowError16: a finite embedding is not finite in the store's type; nothing is committed.
        """
        start = shard * self.settings.shard_rows
        checksums = {}
        stop = start
        folders: set[Path] = set()
        for name, rows_RD in embeddings.items():
            with np.errstate(over="ignore"):
                cast_RD = rows_RD.astype(self.settings.dtype)
            if (np.isinf(cast_RD) & np.isfinite(rows_RD)).any():
                raise OverflowError16(
                    f'{entry.name}, {name}: embeddings overflow {self.settings.dtype}; set dtype = "float32"'
                )
            stop = start + len(cast_RD)
            self._array(entry.slug, name)[start:stop] = cast_RD
            chunk = self.chunk_path(entry.slug, name, shard)
            flush(chunk)
            folders.update((chunk.parent, chunk.parent.parent))
            checksums[name] = hashlib.sha256(chunk.read_bytes()).hexdigest()
        for folder in sorted(folders):
            flush(folder)
        record = journal.Record(shard, start, stop, entry.slug, checksums, tuple(images), round(seconds, 3), run)
        journal.write(self.path, record)

    def chunk_path(self, backbone_slug: str, transformation: str, shard: int) -> Path:
        """The file of one shard's chunk."""
        return self.path / _ARRAYS / backbone_slug / transformation / "c" / str(shard) / "0"

    def read(self, entry: BackboneEntry, transformation: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of one array. Shape: (rows, D); NaN where nothing valid is."""
        return np.asarray(self._array(entry.slug, transformation, fast=True)[start:stop])

    # --- zarr -------------------------------------------------------------------------------------------------------

    def _group(self, backbone_slug: str) -> zarr.Group:
        member = self.group[f"{_ARRAYS}/{backbone_slug}" if backbone_slug else _ARRAYS]
        if not isinstance(member, zarr.Group):
            raise StoreError(f"{self.path}: {_ARRAYS}/{backbone_slug} is not a group")
        return member

    def _array_names(self, backbone_slug: str) -> list[str]:
        return sorted(path.name for path in (self.path / _ARRAYS / backbone_slug).iterdir() if path.is_dir())

    def _array(self, backbone_slug: str, transformation: str, *, fast: bool = False) -> zarr.Array[Any]:
        # zarrs reads whole arrays several times as fast; zarr's own pipeline writes
        pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"} if fast else {}
        with zarr.config.set(pipeline):
            member = self.group[f"{_ARRAYS}/{backbone_slug}/{transformation}"]
        if not isinstance(member, zarr.Array):
            raise StoreError(f"{self.path}: {_ARRAYS}/{backbone_slug}/{transformation} is not an array")
        return member


def new_run_id() -> str:
    """An id for one run: its start in UTC and a few random digits."""
    return (
        time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        + "-"
        + hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:6]
    )
