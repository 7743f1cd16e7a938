"""Train adapters of a store's backbones and add the adapted embeddings to the store."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from substyle.engine.backbones.families.adapter import PREFIX, Adapter, path_of
from substyle.engine.observability import stage
from substyle.engine.probes.adapters import AdaptConfig, AdaptMethod, fit_multitask, fit_pisco
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store import lock
from substyle.engine.store.files import remove
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study.outputs import ADAPTERS, Stamp, discard, fits
from substyle.engine.study.stages import finish_unchanged, stage_settings, tables
from substyle.kernels.errors import ConfigError

DERIVED = "derived"  # runtime of embeddings computed from those of another backbone


def adapt(
    store: EmbeddingStore,
    out: Path,
    config: AdaptConfig,
    probes: ProbeConfig,
    *,
    backbones: Sequence[str],
    transformations: Sequence[str] = (),
    quiet: bool = False,
) -> list[str]:
    """Train adapters and add the adapted embeddings to the store.

    Writes ``out/adapters/<backbone>-<method>/<digest>.safetensors`` and ``.onnx``. Complete adapters are kept;
    results in ``out`` of earlier ones are deleted.

    Args:
        backbones: backbones to adapt.
        transformations: transformations that the adapters may be trained on; default: all of the store.

    Returns:
        names of the adapted backbones, ``adapt:<file>``.

    Raises:
        ConfigError: a backbone cannot be adapted.
        SubstyleError: the photographs do not support a method.
    """
    found = []
    for name in backbones:
        (table,) = tables(store, [name], transformations)
        _require_adaptable(store.backbone(name))
        for method in config.methods:
            path = _trained(store, table, out, config, probes, method, quiet=quiet)
            found.append(f"{PREFIX}{os.path.relpath(path)}")
            derive(store, found[-1], quiet=quiet)
    for entry in store.backbones():  # `substyle report` would show those of earlier trainings, or refuse them
        made = entry.facts.get("adapter", {})
        if made.get("backbone") in backbones and made["method"] in config.methods and entry.name not in found:
            discard(out, entry.slug)
    return found


def adaptable(store: EmbeddingStore, names: Sequence[str]) -> list[str]:
    """Return the backbones among ``names`` that are neither controls nor adapted, and have one vector per image."""
    entries = [store.backbone(name) for name in names]
    trained = [e for e in entries if not e.facts["spec"].get("control") and not e.tokens]
    return [e.name for e in trained if not e.name.startswith(PREFIX)]


def _require_adaptable(entry: BackboneEntry) -> None:
    if entry.name.startswith(PREFIX):
        raise ConfigError("backbone", entry.name, "a backbone that is not adapted yet")
    if entry.facts["spec"].get("tokens"):
        raise ConfigError("backbone", entry.name, "a backbone with one vector per image")


def _trained(
    store: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    config: AdaptConfig,
    probes: ProbeConfig,
    method: AdaptMethod,
    *,
    quiet: bool,
) -> Path:
    """Train an adapter unless it is up to date; returns its file."""
    entry = store.backbone(table.backbone)
    folder = out / ADAPTERS / f"{entry.slug}-{method}"
    stamp = Stamp.of(store, table, {"method": method, **asdict(config), **stage_settings(probes)})
    if not fits(folder, stamp):
        remove(folder)
        began = time.perf_counter()
        with stage(f"adapt {entry.name}", 3 * probes.multitask_steps, "steps", quiet=quiet) as bar:
            bar.note(method)
            if method == "multitask":
                made = fit_multitask(table, probes, bar.advance)
            else:
                made = fit_pisco(table, probes, content=config.content, penalty=config.penalty)
        metadata = {
            "method": method,
            "backbone": entry.name,
            "checkpoint": entry.facts.get("checkpoint"),
            "weights_hash": entry.facts["spec"]["weights_hash"],
            "relu": made.relu,
            "canvas": store.settings.canvas,
            "store": store.uuid,
            "photographs": stamp.photographs,
            **made.facts,
        }
        adapter = Adapter(made.weight_ED, made.bias_E, metadata)
        adapter.save(folder / f"{adapter.digest}.safetensors")
        finish_unchanged(store, table, folder, stamp, began)
    (path,) = folder.glob("*.safetensors")
    return path


def derive(store: EmbeddingStore, name: str, *, quiet: bool = False) -> BackboneEntry:
    """Compute embeddings of an adapted backbone from those of its backbone in a store.

    Args:
        store: a store with embeddings of the backbone.
        name: ``adapt:<file>``.

    Raises:
        WeightsError: the adapter cannot be read, or was trained on other weights.
        StoreError: the store lacks the backbone or is in use.
        ConfigError: the adapter was trained on transformations that are held out in the store.
        DifferentError: the store has embeddings of this name from another file.
    """
    adapter = Adapter.load(path_of(name))
    base = store.backbone(adapter.backbone)
    spec = {**base.facts["spec"], **adapter.changed(name, base.facts["spec"], base.dim)}
    runtime = {"name": DERIVED, "precision": base.facts["runtime"]["precision"], "computed_with": base.name}
    facts = {"name": name, "dim": spec["dim"], "spec": spec, "runtime": runtime, "gate": None, "rate": None}
    facts["adapter"] = {"backbone": base.name, "method": adapter.metadata["method"]}
    definitions = store.catalog.transformations[base.slug]
    held_out = [name for name, each in definitions.items() if each.definition["role"] == "held_out"]
    if seen := sorted(set(held_out) & set(adapter.metadata.get("transformations", []))):
        allowed = f"an adapter that was not trained on them; they are held out in {store.path}"
        raise ConfigError("adapter", f"{name}, trained on {', '.join(seen)}", allowed)
    with lock.hold(store.path, run := lock.new_run_id()):
        entry = store.ensure_backbone(facts, list(definitions.values()))
        names, rows = sorted(definitions), store.settings.shard_rows
        index = store.finished()
        ready_ST = index.finished(base.slug, names, store.shards()) & ~index.finished(entry.slug, names, store.shards())
        pending = np.flatnonzero(ready_ST.any(axis=1)).tolist()
        total = store.manifest().rows
        with stage(f"derive {name}", len(pending), "shards", quiet=quiet) as bar:
            for shard in pending:
                began = time.perf_counter()
                start, stop = shard * rows, min((shard + 1) * rows, total)
                arrays = {
                    names[t]: adapter(store.read(base, names[t], start, stop))
                    for t in np.flatnonzero(ready_ST[shard]).tolist()
                }
                store.write_shard(entry, shard, arrays, (), seconds=time.perf_counter() - began, run=run)
                bar.advance(1)
    return entry
