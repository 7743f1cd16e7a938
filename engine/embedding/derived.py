"""Embeddings of backbones that are derived from those of others, such as of adapters."""

from __future__ import annotations

import time

import numpy as np

from substyle.engine import observability
from substyle.engine.backbones.registry import check_name
from substyle.engine.store import compaction, lock
from substyle.engine.store.layout import GRAPH, SKETCH, BackboneEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import require_shards
from substyle.errors import ConfigError

DERIVED = "derived"  # runtime of embeddings computed from those of another backbone


def derive(store: EmbeddingStore, name: str, *, quiet: bool = False) -> BackboneEntry:
    """Compute embeddings of a backbone from those of another one in a store (`Family.derive`).

    Args:
        store: a store with embeddings of the backbone.
        name: a backbone of a family with ``derive``, such as ``adapt:<file>``.

    Raises:
        WeightsError: its weights cannot be read, or were trained on other weights of the other backbone.
        StoreError: the store lacks the other backbone, is in use, or has damaged or missing chunks of it.
        ConfigError: it was trained on transformations that are held out in the store.
        DifferentError: the store has embeddings of this name from another file.
    """
    derive_of = check_name(name).derive
    assert derive_of is not None
    derivation = derive_of(name)
    base = store.backbone(derivation.backbone)
    of_base = {key: value for key, value in base.facts["spec"].items() if key not in (GRAPH, SKETCH)}
    spec = {**of_base, **derivation.changed(of_base, base.dim, store.settings.canvas)}
    runtime = {"name": DERIVED, "precision": base.facts["runtime"]["precision"], "computed_with": base.name}
    facts = {"name": name, "dim": spec["dim"], "spec": spec, "runtime": runtime, "gate": None, "rate": None}
    facts["adapter"] = dict(derivation.facts)
    definitions = store.catalog.transformations[base.slug]
    held_out = [name for name, each in definitions.items() if each.definition["role"] == "held_out"]
    if seen := sorted(set(held_out) & set(derivation.transformations)):
        allowed = f"a backbone that was not trained on them; they are held out in {store.path}"
        raise ConfigError("backbone", f"{name}, trained on {', '.join(seen)}", allowed)
    with lock.hold(store.path, run := lock.new_run_id()):
        names, rows = sorted(definitions), store.settings.shard_rows
        index, images = store.finished(), store.manifest()
        compaction.require_none(store.path, base.slug)
        require_shards(store, index.of([base.slug]), names)
        entry = store.ensure_backbone(facts, list(definitions.values()))
        noted = store.notes(images)
        ready_ST = index.finished(base.slug, names, store.shards()) & ~index.finished(entry.slug, names, store.shards())
        pending = np.flatnonzero(ready_ST.any(axis=1)).tolist()
        with observability.stage(f"derive {name}", len(pending), "shards", quiet=quiet) as bar:
            for shard in pending:
                began = time.perf_counter()
                start, stop = shard * rows, min((shard + 1) * rows, images.rows)
                arrays = {
                    names[t]: derivation.function(store.read(base, names[t], start, stop, finished=True))
                    for t in np.flatnonzero(ready_ST[shard]).tolist()
                }
                notes = noted.again(images.between(start, stop), images.row_N)
                store.write_shard(entry, shard, arrays, notes, seconds=time.perf_counter() - began, run=run)
                bar.advance(1)
    return entry
