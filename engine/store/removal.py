"""Remove photographs from a store: their keys, embeddings, notes and thumbnails.

The manifest is changed first: from then on no table has the photographs, whatever happens. What the journal and shards
still have of them is removed afterwards, and again by the next call if it was interrupted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store import catalog, compaction, journal, manifest, shards
from substyle.engine.store.files import write_durably
from substyle.engine.store.layout import HEADER, ArrayEntry, StoreError
from substyle.engine.store.records import Record
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.storage import Place

_IMAGES = 100_000  # whose notes are in memory at once
_NUMBER = re.compile(r"c\.0\.(\d+)\.0")


def remove(store: EmbeddingStore, row_M: NDArray[np.int64], calibration: Sequence[str]) -> None:
    """Remove the photographs in some rows, and what the journal and shards have of images outside the manifest.

    Rows stay empty; those behind the last photograph are free again. No finished embedding of another photograph is
    lost at any moment. The caller must own the store and hold its mutex.

    Args:
        calibration: keys of the images that gates use from now on.

    Raises:
        StoreError: a shard of these photographs is damaged, or the disk failed.
    """
    header = replace(catalog.read_header(store.path), calibration=tuple(calibration))
    write_durably(store.path / HEADER, header.encode())
    store.calibration = header.calibration
    manifest.remove(store.path, row_M)
    known = {*store.manifest().row_N.tolist()}
    size = store.settings.shard_rows

    def rows(record: Record) -> tuple[int, ArrayEntry, bool]:
        outside = not {note.row for note in record.images} <= known or not {note.row for note in record.files} <= known
        return record.shard, store.catalog.array(record.backbone, next(iter(record.checksums))), outside

    found, problems = journal.examine(store.path, rows)
    for problem in problems.values():
        raise problem
    finished = {(shard, array) for shard, array, _ in found}
    numbers = sorted({shard for shard, _, outside in found if outside})
    at_once = max(_IMAGES // size, 1)
    for start in range(0, len(numbers), at_once):
        _rewrite(store, known, {*numbers[start : start + at_once]})
    for array in (array for own in store.catalog.arrays.values() for array in own):
        for path in array.node(store.path).sizes():
            named = _NUMBER.fullmatch(path.name)
            if named and (int(named[1]), array) not in finished:  # of a run that was interrupted
                path.remove()


def _rewrite(store: EmbeddingStore, known: Set[int], numbers: Set[int]) -> None:
    """Write shards without the images outside the manifest, and remove those that have no others."""
    records, problems = journal.examine(store.path, lambda record: record if record.shard in numbers else None)
    for problem in problems.values():
        raise problem
    by_file = defaultdict[tuple[int, ArrayEntry], list[Record]](list)
    for record in filter(None, records):
        by_file[record.shard, store.catalog.array(record.backbone, next(iter(record.checksums)))].append(record)
    new, empty = dict[compaction.RecordKey, Record | None](), list[Place]()
    for (shard, array), own in by_file.items():
        if not any(note.row in known for record in own for note in record.images):
            new |= dict.fromkeys(map(compaction.record_key, own))
            empty.append(array.shard(store.path, shard))
            continue
        checksums = _without(store, array, shard, own, known)
        for record in own:
            images = tuple(note for note in record.images if note.row in known)
            files = tuple(note for note in record.files if note.row in known)
            sums = {name: checksums[name] for name in record.checksums}
            new[compaction.record_key(record)] = replace(record, checksums=sums, images=images, files=files)
    compaction.exchange(store.path, new)
    for path in empty:
        path.remove()


def _without(
    store: EmbeddingStore, array: ArrayEntry, shard: int, own: Sequence[Record], known: Set[int]
) -> dict[str, str]:
    """Write a shard with NaN outside the manifest. Returns the digests of its chunks by transformation.

    Raises StoreError if a chunk is damaged: its digest would say that it is sound.
    """
    path, shape, names = array.shard(store.path, shard), store.shape(array), array.transformations
    first = shard * store.settings.shard_rows
    gone = [row - first for row in range(first, first + store.settings.shard_rows) if row not in known]
    checksums = {name: checksum for record in own for name, checksum in record.checksums.items()}
    kept: dict[str, NDArray[np.floating]] = {}
    with shards.opening(path, shape) as file:
        for name, checksum in checksums.items():
            try:
                same = shards.digest(file.encoded(names.index(name))) == checksum
            except ValueError as error:
                raise StoreError(f"{path}: {name}: {error}; run substyle verify") from error
            kept[name] = file.chunk(names.index(name)).copy()
            if not same and not np.isnan(kept[name][gone]).all():  # else it was written before an interruption
                raise StoreError(f"{path}: checksum mismatch: {name}; run substyle verify")
            kept[name][gone] = np.nan
    digests: dict[str, str] = {}

    def on_chunk(t: int, chunk: bytes | memoryview) -> None:
        digests[names[t]] = shards.digest(chunk)

    write_durably(path, shards.encode(map(kept.get, names), shape, on_chunk))
    return digests
