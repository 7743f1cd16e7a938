"""A small store that nobody embeds for, and what is asked of it when a file is spoilt: what is read was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.engine.store.test_store import FOUND, facts
from tests.engine.store.test_verify import finished, finished_of, redo
from tests.fuzz.harness import attempt

from substyle.engine.store import compaction
from substyle.engine.store.layout import BackboneEntry, StoreSettings
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, StoreFacts, load_table, store_facts
from substyle.engine.store.verify import Verdict, verify
from substyle.pipelines.storage import LocalPlace


@dataclass(frozen=True)
class Sound:
    """A store that is as it was written, and what it holds: 6 images, 2 backbones, 2 transformations, 2 shards."""

    path: Path
    settings: StoreSettings
    calibration: tuple[str, ...]
    backbones: list[BackboneEntry]
    manifest: Manifest
    tables: dict[str, EmbeddingTable]
    facts: StoreFacts
    finished: dict[tuple[int, str], set[str]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", LocalPlace(self.path))

    @property
    def names(self) -> tuple[str, ...]:
        """What a refusal names: the store."""
        return (self.path.name,)


def make(path: Path) -> Sound:
    """Make the store."""
    finished(path)
    return describe(path)


def describe(path: Path) -> Sound:
    """What a store holds."""
    store = EmbeddingStore.open(path)
    tables = {entry.name: load_table(store, entry.name) for entry in store.backbones()}
    return Sound(
        path,
        store.settings,
        store.calibration,
        store.backbones(),
        store.manifest(),
        tables,
        store_facts(store),
        finished_of(store),
    )


def read(sound: Sound, *, exact: bool = True) -> int:
    """Ask a store for everything: each answer is a refusal that names the store, or what was written.

    Args:
        exact: False where somebody changed the store on purpose: then nothing but errors is looked at.

    Returns:
        number of answers that were no refusals.
    """
    store = attempt(EmbeddingStore.open, sound.path, names=sound.names)
    if store is None:
        attempt(verify, sound.path, note=False, quiet=True, names=sound.names)
        return 0
    tables = [attempt(load_table, store, name, names=sound.names) for name in sound.tables]
    entries = attempt(store.backbones, names=sound.names)
    facts = attempt(store_facts, store, names=sound.names)
    finished = attempt(finished_of, store, names=sound.names)
    verdict = attempt(verify, sound.path, note=False, quiet=True, names=sound.names)
    if exact:
        assert (store.settings, store.calibration) == (sound.settings, sound.calibration)
        for table, whole in zip(tables, sound.tables.values(), strict=True):
            if table is not None:
                assert_part_of(table, whole)
        for entry in entries or []:
            assert entry in sound.backbones
        for pair, done in (finished or {}).items():
            assert done <= sound.finished[pair]
        if facts is not None:
            assert set(facts.quarantined) <= set(sound.facts.quarantined)
            assert facts.seconds <= sound.facts.seconds
        if verdict is not None and None in (*tables, entries, facts, finished):
            assert not verdict.ok, "something is refused, but verify finds nothing"
    return sum(answer is not None for answer in (*tables, entries, facts, finished, verdict))


def mend(sound: Sound) -> Verdict | None:
    """Verify a store that may be spoilt, then do what embed does; afterwards it is whole, or it was refused."""
    verdict = attempt(verify, sound.path, quiet=True, names=sound.names)
    if verdict is None or any(finding.kind == "manifest" for finding in verdict.findings):
        return None
    if attempt(_embed, sound, names=sound.names) is not None:
        assert verify(sound.path, note=False, quiet=True).ok
        for table, whole in zip(describe(sound.path).tables.values(), sound.tables.values(), strict=True):
            assert table.keys == whole.keys
            assert table.transformations == whole.transformations
            assert_part_of(table, whole)
    return verdict


def _embed(sound: Sound) -> bool:
    store = EmbeddingStore.open(sound.path)
    compaction.clear_leftovers(store.path)
    store.repair()
    for name in sound.tables:
        store.ensure_backbone(facts(name), FOUND)
    store.resize_arrays()
    for shard in (0, 1):
        redo(store, shard)
    return True


def assert_part_of(table: EmbeddingTable, whole: EmbeddingTable) -> None:
    """A table holds rows of the whole one, unchanged, with everything that belongs to them."""
    at = [whole.keys.index(key) for key in table.keys]
    chosen = [whole.transformations.index(name) for name in table.transformations]
    assert len(set(at)) == len(at)
    assert table.backbone == whole.backbone
    np.testing.assert_array_equal(table.x_TND, whole.x_TND[chosen][:, at])
    np.testing.assert_array_equal(table.distinct_TN, whole.distinct_TN[chosen][:, at])
    np.testing.assert_array_equal(table.split_N, whole.split_N[at])
    np.testing.assert_array_equal(table.label_N, whole.label_N[at])
    assert table.class_names == whole.class_names
    assert list(zip(table.kind, table.roles, strict=True)) == [(whole.kind[t], whole.roles[t]) for t in chosen]
