"""Tables of the backbones that stages read, and which photographs are new to probes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from substyle.engine.stages.registry import REPORTED
from substyle.engine.stages.stamp import StaleError, note_of
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import I64, EmbeddingTable, open_tables


def tables(
    store: EmbeddingStore, backbones: Sequence[str] = (), transformations: Sequence[str] = ()
) -> list[EmbeddingTable]:
    """Open tables of backbones (default: all) over common photographs and transformations.

    Photographs with missing embeddings are left out; their number is printed.
    """
    names = backbones or [entry.name for entry in store.backbones()]
    found = open_tables(store, names, transformations)
    manifest = store.manifest()
    left_out = len(manifest.keys) - len(store.notes(manifest).reasons) - len(found[0].keys)
    if left_out:
        print(
            f"{store.path}: ignoring {left_out} photographs that are not embedded in all "
            f"{len(found[0].transformations)} transformations by {', '.join(names)}; run substyle embed",
            file=sys.stderr,
        )
    return found


def reported_tables(store: EmbeddingStore, out: Path, transformations: Sequence[str] = ()) -> list[EmbeddingTable]:
    """Open tables of the backbones that have results of probe or analyze in a folder; none without any.

    Args:
        transformations: transformations of the results; default: those of the first one.

    Raises:
        StaleError: the store lacks transformations of the results.
    """
    found = [
        (entry.name, folder, note)
        for entry in store.backbones()
        for folder in (out / stage / entry.slug for stage in REPORTED)
        if (note := note_of(folder)) is not None
    ]
    if not found:
        return []
    names = tuple(transformations) or tuple(found[0][2].stamp.transformations)
    together = list(dict.fromkeys(name for name, _, _ in found))
    for name in together:
        if absent := set(names) - set(store.transformation_names(store.backbone(name))):
            raise StaleError(f"{found[0][1]}: outdated transformations; {name} has no {', '.join(sorted(absent))}")
    return tables(store, together, names)


class NewPhotographs:
    """Photographs of other tables that probes were not trained on; most backbones of a store have the same ones."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], NDArray[np.bool_]] = {}

    def of(self, table: EmbeddingTable, trained: EmbeddingTable, what: str, images: I64) -> NDArray[np.bool_]:
        """`EmbeddingTable.new_to`, (N,); says once how many of the scored ``images`` are left out."""
        same = what, table.keys, trained.keys
        if same not in self._known:
            self._known[same] = table.new_to(trained)
            if count := np.count_nonzero(~self._known[same][images]):
                print(f"{what}: {count:,} not scored: near-duplicates of training photographs", file=sys.stderr)
        return self._known[same]
