"""Distribution shift: how well the class probe that was trained on a study's photographs reads other photographs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.embed import embed_compiled
from substyle.engine.embed_config import EmbedConfig, Settings
from substyle.engine.plan import EmbedPlan
from substyle.engine.probes.metrics import resample
from substyle.engine.probes.saved import Probe
from substyle.engine.stages import PROBES
from substyle.engine.stamp import Note, Stamp, file_digest, finish, note_of, photographs_digest, require_fresh
from substyle.engine.store import header
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import DifferentError
from substyle.engine.store.files import read_object, remove, write_durably, writing
from substyle.engine.store.layout import HEADER, slug
from substyle.engine.store.load import open_table
from substyle.engine.table import EmbeddingTable
from substyle.engine.workshop import Workshop
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import SourceConfig, absolute_root, describe, kind_of, open_source

HEAD = "linear"
SHIFT = "shift"
BOOTSTRAP = 2000


def shift(
    folders: Mapping[str, Path | str],
    compiled: Sequence[CompiledBackbone],
    out: Path,
    settings: Settings,
    config: EmbedConfig,
    *,
    study: EmbeddingStore,
    tables: Mapping[str, EmbeddingTable],
    source: SourceConfig | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score each backbone's linear class probe on other photographs of the same classes.

    Args:
        folders: by name, photographs with classes; classes that the probe does not know are left out.
        compiled: the backbones, as the study compiled them.
        out: the study's folder, with its trained probes; embeddings go to ``out/shift/<name>.zarr``. A store there
            that was made from other photographs is made again.
        study, tables: the study's store, and its tables by backbone: what the probes were trained on.
        source: how the study's own photographs are opened; what of it fits holds for these too.

    Returns:
        by backbone and name ``{"accuracy", "ci95", "images"}``.

    Raises:
        ConfigError: a folder that has none of the probe's classes.
    """
    began = time.perf_counter()
    stores = {
        name: _embedded(name, folder, compiled, out, settings, config, source=source, quiet=quiet)
        for name, folder in folders.items()
    }
    answer: dict[str, dict[str, Any]] = {}
    for backbone in compiled:
        answer[backbone.spec.name] = scores = {}
        probe_path = _probe(out, backbone.spec.name)
        if not probe_path.is_file():
            continue
        probe = Probe.load(probe_path)
        for name, store in stores.items():
            scores[name] = _score(store, backbone.spec.name, probe, name)
        folder = out / SHIFT / slug(backbone.spec.name)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "shift.json", json.dumps(scores).encode())
        stamp = _stamp(study, tables[backbone.spec.name], out, stores, folders)
        finish(folder, stamp, time.perf_counter() - began)
    return answer


def kept_shift(
    study: EmbeddingStore,
    out: Path,
    tables: Mapping[str, EmbeddingTable],
    folders: Mapping[str, Path | str] | None = None,
) -> dict[str, dict[str, Any]]:
    """What `shift` has left in a folder, by backbone.

    Args:
        folders: the `[shift]` table of the study; by default the folders that were scored.

    Raises:
        StaleError: it was made from other inputs.
    """
    found: dict[str, dict[str, Any]] = {}
    if folders is not None and not folders:
        return found
    for name, table in tables.items():
        folder = out / SHIFT / slug(name)
        note: Note | None = note_of(folder)
        if note is None:
            continue
        there = {each: out / SHIFT / f"{slug(each)}.zarr" for each in note.stamp.settings.get("photographs", {})}
        stores = {each: EmbeddingStore.open(path) for each, path in there.items() if header.exists(path)}
        now = _stamp(study, table, out, stores, note.stamp.settings.get("folders", {}) if folders is None else folders)
        require_fresh(folder, note, now, "substyle run on the study again")
        found[name] = read_object(folder / "shift.json")
    return found


def _embedded(
    name: str,
    folder: Path | str,
    compiled: Sequence[CompiledBackbone],
    out: Path,
    settings: Settings,
    config: EmbedConfig,
    *,
    source: SourceConfig | None,
    quiet: bool,
) -> EmbeddingStore:
    """The store of one name, with the embeddings of its photographs as they are now."""
    path = out / SHIFT / f"{slug(name)}.zarr"
    photographs = open_source(folder, (source or SourceConfig()).fitting(kind_of(folder)))
    print(f"shift {name}: {describe(photographs)}", file=sys.stderr)
    plain = Settings(settings.seed, settings.canvas, ("identity",), settings.orientation)
    if not header.exists(path):
        with writing(path):
            remove(path)  # what is left of one that was being removed
    plan = EmbedPlan(photographs, path, Workshop(plain, config), title=f"shift {name}", only=True)
    try:
        embed_compiled(plan, compiled, quiet=quiet)
    except DifferentError as error:
        # embeddings of another folder, other bytes, or another making of a backbone: the study says what it is now
        print(f"shift.{name}: {error}: it is embedded again", file=sys.stderr)
        with writing(path):
            remove(path / HEADER)  # first: what is left of a store without its header is no store
            remove(path)
        embed_compiled(plan, compiled, quiet=quiet)
    return EmbeddingStore.open(path)


def _probe(out: Path, backbone: str) -> Path:
    return out / PROBES / slug(backbone) / f"semantic-{HEAD}.safetensors"


def _stamp(
    study: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    stores: Mapping[str, EmbeddingStore],
    folders: Mapping[str, Path | str],
) -> Stamp:
    photographs = {
        name: photographs_digest(open_table(store, table.backbone))
        for name, store in stores.items()
        if any(entry.name == table.backbone for entry in store.backbones())
    }
    settings = {
        "photographs": photographs,
        "probe": file_digest(_probe(out, table.backbone)),
        "folders": {name: absolute_root(str(folder)) for name, folder in folders.items()},
    }
    return Stamp.of(study, table, settings)


def _score(store: EmbeddingStore, backbone: str, probe: Probe, name: str) -> dict[str, Any]:
    table = open_table(store, backbone)
    classes = probe.labels["class"]
    known = {label: classes.index(text) for label, text in enumerate(table.class_names) if text in classes}
    rows = np.flatnonzero(np.isin(table.label_N, list(known)))
    if not len(rows):
        raise ConfigError(
            f"shift.{name}", ", ".join(table.class_names) or "no classes", f"some of {', '.join(classes)}"
        )
    truth = np.array([known[label] for label in table.label_N[rows].tolist()])
    right_N = (probe.predict(table.take(0, rows)).argmax(axis=1) == truth).astype(np.float64)
    accuracy = resample(right_N[None], BOOTSTRAP, store.settings.seed).one(0)
    return {"accuracy": accuracy.number, "ci95": accuracy.ci95, "images": len(rows)}
