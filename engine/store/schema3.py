"""Convert a store of schema 3, which had a file for each chunk of R rows, to one of today."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from substyle.engine.observability import stage
from substyle.engine.store import arrays, catalog, compaction, journal, lock, manifest
from substyle.engine.store.catalog import IMPORTED
from substyle.engine.store.files import read_named, write_once
from substyle.engine.store.layout import ARRAYS, BackboneEntry, StoreError
from substyle.engine.store.records import Record, identity, notes_of
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import abbreviated
from substyle.files import UnsafeFileError
from substyle.pipelines import limits
from substyle.pipelines.storage import Place
from substyle.pipelines.validation import brief

_FOLDERS = ("", "details", "tables")  # of the journal, by version


def convert(old: Place, path: Place, *, quiet: bool = False) -> dict[str, Any]:
    """Write the embeddings of a store of schema 3 to a new store, which keeps its UUID. Can be interrupted.

    Embeddings of damaged files are left out, so that `embed` computes them again.

    Returns:
        ``{"store", "images", "shards", "left_out"}``: numbers of images, and of shards of backbones.

    Raises:
        StoreError: there is no such store, its metadata or journal are damaged, or another store is at ``path``.
    """
    try:
        old.require_no_links(3)
    except UnsafeFileError as error:
        raise StoreError(f"{old} must not contain links: {error}") from error
    header = catalog.read_header(old, IMPORTED)
    if not catalog.exists(path):
        EmbeddingStore.create(path, header.settings, calibration=header.calibration, uuid=header.uuid)
    store = EmbeddingStore.open(path)
    if store.uuid != header.uuid or store.settings != header.settings:
        raise StoreError(f"{path}: another store than {old}; give a new path")
    with lock.hold(path, run := lock.new_run_id()):
        _copy(old, path, manifest.FOLDER, ".parquet")
        _copy(old, path, catalog.FOLDER, ".pictures")
        known = catalog.merged(catalog.files(old))
        records = _records(old, store, known.backbones)
        for entry in known.backbones.values():
            store.ensure_backbone(entry.facts)
            definitions = known.transformations[entry.slug]
            for names in _together(set(r.checksums) for r in records if r.backbone == entry.slug):
                there = store.transformation_names(entry)
                new = [made for name, made in definitions.items() if name in names and name not in there]
                if new:
                    store.add_array(entry.facts, new)
        left_out = _shards(store, old, known.backbones, records, run, quiet)
        with lock.mutex(path):
            compaction.compact(path)
    if left_out:
        text = "damaged files of the old store, whose embeddings are not in the new one"
        print(f"{path}: {text}: {abbreviated(left_out)}", file=sys.stderr)
    return {
        "store": str(path),
        "images": len(store.manifest().keys),
        "shards": len(store.finished()),
        "left_out": len(left_out),
    }


def _copy(old: Place, path: Place, folder: str, suffix: str) -> None:
    for file in (old / folder).files(suffix):
        write_once(path / folder / file.name, old.inside(f"{folder}/{file.name}").read_bytes())


def _records(old: Place, store: EmbeddingStore, backbones: dict[str, BackboneEntry]) -> list[Record]:
    """All records of known backbones."""
    rows, count = store.settings.shard_rows, store.shards()
    found: dict[int, Record] = {}
    for number, row in _rows(old):
        try:
            images, files = notes_of({"files": [], **row})
            names = ("shard", "start", "stop", "backbone", "seconds", "run")
            own = {name: row[name] for name in names}
            record = Record(**own, checksums=dict(row["checksums"]), images=images, files=files)
            first = record.shard * rows
            if not (record.shard < count and record.start == first < record.stop <= first + rows):
                raise ValueError(f"shard {record.shard} with rows {record.start} to {record.stop}")
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{old}: invalid record of the journal: {brief(error)}") from error
        if record.backbone in backbones:
            found[number] = record
    return sorted(found.values(), key=lambda record: (record.shard, record.backbone))


def _rows(old: Place) -> Iterator[tuple[int, dict[str, Any]]]:
    folder = old / journal.FOLDER
    for path in [file for name in _FOLDERS for kind in (".json", ".parquet") for file in (folder / name).files(kind)]:
        if path.name.startswith("segment-"):
            continue  # an index of the others
        try:
            data = read_named(path)
            if path.suffix == ".json":
                yield identity(data), json.loads(data)
            else:
                for row in limits.read_parquet(data, "records", 8).to_pylist():
                    yield int(row["id"]), row
        except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
            raise StoreError(f"{path}: invalid journal file: {brief(error)}") from error


def _together(sets: Iterable[set[str]]) -> list[set[str]]:
    """Join sets that have an element in common."""
    joined: list[set[str]] = []
    for names in sets:
        apart = [known for known in joined if not known & names]
        joined = [*apart, names.union(*(known for known in joined if known & names))]
    return joined


def _shards(
    store: EmbeddingStore, old: Place, backbones: dict[str, BackboneEntry], records: list[Record], run: str, quiet: bool
) -> list[str]:
    """Write the shards that the new store lacks. Returns the damaged files of the old one."""
    left_out: list[str] = []
    there: dict[tuple[int, str], set[str]] = {}
    for shard, slug, made in store.finished().records():
        there.setdefault((shard, slug), set()).update(made)
    with stage("import", len(records), "shards", quiet=quiet) as bar:
        for record in records:
            entry, embeddings = backbones[record.backbone], {}
            for name in record.checksums.keys() - there.get((record.shard, record.backbone), set()):
                file = f"{ARRAYS}/{entry.slug}/{name}/c/{record.shard}/0"
                rows_RD = _chunk(store, old, file, entry.dim, record.checksums[name])
                if rows_RD is None:
                    left_out.append(file)
                else:
                    embeddings[name] = rows_RD[: record.stop - record.start]
            if embeddings:
                store.write_shard(
                    *(entry, record.shard, embeddings, record.images),
                    seconds=record.seconds, run=run, files=record.files,
                )  # fmt: skip
            bar.advance()
    return sorted(left_out)


def _chunk(store: EmbeddingStore, old: Place, name: str, dim: int, checksum: str) -> NDArray[Any] | None:
    """Read a file of schema 3; None if it is damaged. Shape: (R, D)."""
    settings = store.settings
    dtype, shape = np.dtype(settings.dtype), (settings.shard_rows, dim)
    most = settings.chunk_bytes(dim)
    try:
        with old.inside(name).reading(1) as file:
            if file.size > most + most // 64 + 1024:
                return None
            data = bytearray(file.size)
            file.fill(memoryview(data), 0)
        if hashlib.sha256(data).hexdigest() != checksum:
            return None
        return arrays.decode(bytes(data), settings.codec, dtype, shape)
    except (OSError, ValueError, RuntimeError, UnsafeFileError):
        return None
