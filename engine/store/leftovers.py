"""What killed processes left of a store."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from substyle.engine.store import compaction, journal, lock, manifest
from substyle.engine.store.files import clear_temporary, writing
from substyle.engine.store.layout import ARRAYS
from substyle.pipelines.places import Place


def clear(store: Place) -> None:
    """Remove what is half written, and what nothing speaks of yet; the caller has the mutex."""
    if isinstance(store, Path):  # objects are written whole or not at all
        with writing(store):
            for folder in (manifest.FOLDER, journal.FOLDER, f"{journal.FOLDER}/{journal.DETAILS}", ""):
                clear_temporary(store / folder)
            for half in _metadata(store):
                half.unlink(missing_ok=True)
            clear_temporary(store.parent, store.name)  # a part that was killed while another made the store
    with writing(store):
        compaction.clear_unnamed(store)


def none(store: Place) -> bool:
    """Whether no killed process left a lock, something half written, or records that nobody has compacted."""
    left: list[Iterator[Place]] = [store.glob(lock.LOCKS)]
    if isinstance(store, Path):
        beside = store.parent.glob(f".{glob.escape(store.name)}.*.tmp")
        deep = store.glob(f"{journal.FOLDER}/{journal.DETAILS}/.*.tmp")
        left += [beside, store.glob(".*.tmp"), store.glob("*/.*.tmp"), deep, _metadata(store)]
    return not any(map(any, left)) and not journal.has_loose(store) and not compaction.unnamed(store)


def _metadata(store: Path) -> Iterator[Path]:
    """Metadata of backbones and transformations under temporary names; such chunks go with their shards' folders."""
    for depth in (ARRAYS, f"{ARRAYS}/*", f"{ARRAYS}/*/*"):
        yield from store.glob(f"{depth}/.*.tmp")
