"""A backbone's finished embeddings as one table, in memory or where they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store import duplicates, journal
from substyle.engine.store.embeddings import EmbeddingStore, finished_of
from substyle.engine.store.errors import StoreError
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.stored import StoredRows
from substyle.engine.table import EmbeddingTable
from substyle.pipelines.suites import SUITES


@dataclass(frozen=True)
class StoreFacts:
    """What a store's journal says beyond its embeddings.

    Attributes:
        quarantined: reason by key, of images that could not be decoded.
        indistinct: number of images by transformation that hardly changed them.
        moved: keys of images that changed their split to stand by a near-duplicate.
        seconds: wall time of all finished shards, all backbones together.
    """

    quarantined: dict[str, str]
    indistinct: dict[str, int]
    moved: tuple[str, ...]
    seconds: float


def definitions(store: EmbeddingStore, entry: BackboneEntry) -> list[dict[str, object]]:
    """Definitions of a backbone's transformations in the order of a suite that has them all, else by name."""
    there = {str(d["name"]): d for d in store.transformations(entry)}
    for names in SUITES.values():
        if set(there) <= set(names):
            return [there[name] for name in names if name in there]
    known = [name for name in SUITES["substance31"] if name in there]
    return [there[name] for name in (*known, *sorted(set(there) - set(known)))]


def load_table(store: EmbeddingStore, backbone: str) -> EmbeddingTable:
    """`open_table` with all embeddings in memory, as an array: T × N × D times 2 bytes (float16)."""
    table = open_table(store, backbone)
    return table if isinstance(table.x_TND, np.ndarray) else replace(table, x_TND=table.x_TND.whole())


def open_table(store: EmbeddingStore, backbone: str) -> EmbeddingTable:
    """Embeddings of every image that is finished in all of the backbone's transformations and was not quarantined.

    They stay in the store: `EmbeddingTable.take` reads rows of them.

    Raises:
        StoreError: no such backbone, nothing is finished, or a finished chunk is missing or cut short.
    """
    entry = store.backbone(backbone)
    chosen, records = _snapshot(store, entry)
    names = [str(d["name"]) for d in chosen]
    manifest = store.manifest()
    mine = [record for record in records if record.backbone == entry.slug]
    _require_chunks(store, mine)
    finished = finished_of(mine)
    shard_rows = store.settings.shard_rows
    complete = {shard for (shard, _), done in finished.items() if set(names) <= done}
    notes = _notes(records, complete)
    index = [
        i
        for i, row in enumerate(manifest.row_N.tolist())
        if row // shard_rows in complete and row in notes and not notes[row].reason
    ]
    if not names or not index:
        raise StoreError(f"{store.path}: {backbone} has no finished shard with a valid image in all transformations")
    row_N = manifest.row_N[index]
    kept = [notes[row] for row in row_N.tolist()]
    distinct_TN = np.array([[name not in note.indistinct for note in kept] for name in names], dtype=np.bool_)
    split_N, _ = _splits(manifest, index, kept)
    return EmbeddingTable(
        backbone=backbone,
        x_TND=StoredRows(store, entry, names, row_N),
        transformations=tuple(names),
        coarse=tuple(str(d["coarse"]) for d in chosen),
        roles=tuple(str(d["role"]) for d in chosen),
        keys=tuple(manifest.keys[i] for i in index),
        label_N=manifest.label_N[index],
        class_names=manifest.class_names,
        split_N=split_N,
        distinct_TN=distinct_TN,
    )


def _snapshot(store: EmbeddingStore, entry: BackboneEntry) -> tuple[list[dict[str, object]], list[journal.Record]]:
    """Definitions and records of one moment, though a run may add both: records read between two equal lists of arrays.

    Else a store that was empty when its arrays were listed, and finished when its journal was read, would give a table
    of no transformation.
    """
    while True:
        chosen = definitions(store, entry)
        records = journal.read(store.path)
        if len(chosen) == len(store.transformation_names(entry)):  # arrays are added, never removed
            return chosen, records


def _require_chunks(store: EmbeddingStore, records: list[journal.Record]) -> None:
    for (shard, slug), names in sorted(store.cut_short(records).items()):
        chunk = store.chunk_path(slug, min(names), shard)
        raise StoreError(f"{chunk}: is missing or cut short, though it was finished; run substyle verify, then embed")


def store_facts(store: EmbeddingStore) -> StoreFacts:
    """What the journal says of images, splits and time."""
    records = journal.read(store.path)
    manifest = store.manifest()
    keys = dict(zip(manifest.row_N.tolist(), manifest.keys, strict=True))
    notes = {row: note for row, note in _notes(records, None).items() if row in keys}
    indistinct: dict[str, int] = {}
    for note in notes.values():
        for name in note.indistinct:
            indistinct[name] = indistinct.get(name, 0) + 1
    index = [i for i, row in enumerate(manifest.row_N.tolist()) if row in notes and not notes[row].reason]
    _, moved = _splits(manifest, index, [notes[int(manifest.row_N[i])] for i in index])
    return StoreFacts(
        quarantined={keys[row]: note.reason for row, note in sorted(notes.items()) if note.reason},
        indistinct=indistinct,
        moved=moved,
        seconds=sum(record.seconds for record in records),
    )


def _notes(records: list[journal.Record], shards: set[int] | None) -> dict[int, journal.ImageNote]:
    """Notes by row; a row decoded in several passes has the indistinct transformations of all of them."""
    notes: dict[int, journal.ImageNote] = {}
    for record in records:
        if shards is not None and record.shard not in shards:
            continue
        for note in record.images:
            before = notes.get(note.row)
            if before is not None:
                both = tuple(dict.fromkeys((*before.indistinct, *note.indistinct)))
                note = journal.ImageNote(**{**vars(note), "indistinct": both})  # noqa: PLW2901
            notes[note.row] = note
    return notes


def _splits(
    manifest: Manifest, index: list[int], notes: list[journal.ImageNote]
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Splits in which every near-duplicate stands where the first of its group does, and the keys this moved."""
    split_N = manifest.split_N[index]
    if not index:
        return split_N, ()
    # imported embeddings have no thumbnails: each stands for itself
    seen = np.array([i for i, note in enumerate(notes) if note.thumbnail], dtype=np.int64)
    together_N = split_N.copy()
    if len(seen):
        together_N[seen] = split_N[seen[duplicates.groups([notes[i].thumbnail for i in seen.tolist()])]]
    moved = tuple(manifest.keys[index[i]] for i in np.flatnonzero(together_N != split_N))
    return together_N, moved
