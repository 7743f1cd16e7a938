"""Remove photographs from a store: their embeddings, notes, thumbnails and keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store import catalog, compaction, journal, manifest, shards
from substyle.engine.store.files import write_durably
from substyle.engine.store.layout import HEADER, BackboneEntry, StoreError
from substyle.engine.store.records import Record
from substyle.engine.store.store import EmbeddingStore

_IMAGES = 100_000  # whose notes are in memory at once


def remove(store: EmbeddingStore, row_M: NDArray[np.int64], calibration: Sequence[str]) -> None:
    """Remove the photographs in some rows. The rows stay empty; those behind the last photograph are free again.

    The caller must own the store and hold its mutex. After a crash, the same call finishes: the manifest is changed
    last, and shards that are withdrawn meanwhile are embedded again.

    Args:
        calibration: keys of the images that gates use from now on.

    Raises:
        StoreError: a shard of these photographs is damaged, the disk failed, or the lock is lost.
    """
    size = store.settings.shard_rows
    left = {*(np.setdiff1d(store.manifest().row_N, row_M) // size).tolist()}  # shards with photographs
    numbers = np.unique(row_M // size).tolist()
    at_once = max(_IMAGES // size, 1)
    for start in range(0, len(numbers), at_once):
        _rewrite(store, row_M, set(numbers[start : start + at_once]), left)
    header = replace(catalog.read_header(store.path), calibration=tuple(calibration))
    write_durably(store.path / HEADER, header.encode())
    store.calibration = header.calibration
    manifest.remove(store.path, row_M)


def _rewrite(store: EmbeddingStore, row_M: NDArray[np.int64], numbers: Set[int], left: Set[int]) -> None:
    """Write shards without some rows, and remove those that have no photographs left."""
    records, problems = journal.examine(store.path, lambda record: record if record.shard in numbers else None)
    for problem in problems.values():
        raise problem
    by_shard = defaultdict[tuple[int, str], list[Record]](list)
    for record in filter(None, records):
        by_shard[record.shard, record.backbone].append(record)
    for (shard, slug), own in by_shard.items():
        gone = set(row_M[row_M // store.settings.shard_rows == shard].tolist())
        entry = next(entry for entry in store.backbones() if entry.slug == slug)
        kept = [_without(store, entry, record, gone) for record in own]
        compaction.withdraw(store.path, {(shard, slug): {name for record in own for name in record.checksums}})
        for path in {store.shard_path(slug, name, shard) for record in own for name in record.checksums}:
            path.remove()  # with what an interrupted run has left in it
        if shard not in left:
            continue
        for record, x_RD in zip(own, kept, strict=True):
            images = [note for note in record.images if note.row not in gone]
            files = [note for note in record.files if note.row not in gone]
            store.write_shard(entry, shard, x_RD, images, seconds=record.seconds, run=record.run, files=files)


def _without(store: EmbeddingStore, entry: BackboneEntry, record: Record, gone: Set[int]) -> dict[str, NDArray[Any]]:
    """Embeddings of a record, NaN in some rows. Raises StoreError if they are damaged, which would be sealed."""
    array = store.catalog.array(record.backbone, next(iter(record.checksums)))
    path = array.shard(store.path, record.shard)
    if problem := shards.check(path, store.shape(array), array.transformations, record.checksums)[1]:
        raise StoreError(f"{path}: {problem}; run substyle verify")
    found = {}
    for name in record.checksums:
        found[name] = store.read(entry, name, record.start, record.stop, finished=True)
        found[name][[row - record.start for row in gone]] = np.nan
    return found
