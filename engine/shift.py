"""Distribution shift: how well the class probe that was trained on a study's photographs reads other photographs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.embed import embed_compiled
from substyle.engine.plan import EmbedPlan
from substyle.engine.probes.metrics import resample
from substyle.engine.probes.saved import Probe
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.files import write_durably
from substyle.engine.store.layout import slug
from substyle.engine.store.load import open_table
from substyle.engine.workshop import EmbedConfig, Settings, Workshop
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import SourceConfig, describe, kind_of, open_source

HEAD = "linear"
BOOTSTRAP = 2000


def shift(
    folders: Mapping[str, Path | str],
    compiled: Sequence[CompiledBackbone],
    out: Path,
    settings: Settings,
    config: EmbedConfig,
    *,
    source: SourceConfig | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score each backbone's linear class probe on other photographs of the same classes.

    Args:
        folders: by name, photographs with classes; classes that the probe does not know are left out.
        compiled: the backbones, as the study compiled them.
        source: how the study's own photographs are opened; what of it fits holds for these too.
        out: the study's folder, with its trained probes; embeddings go to ``out/shift/<name>.zarr``.

    Returns:
        by backbone and name ``{"accuracy", "ci95", "images"}``.

    Raises:
        ConfigError: a folder that has none of the probe's classes.
    """
    answer: dict[str, dict[str, Any]] = {backbone.spec.name: {} for backbone in compiled}
    plain = Settings(settings.seed, settings.canvas, ("identity",), settings.orientation)
    for name, folder in folders.items():
        path = out / "shift" / f"{slug(name)}.zarr"
        photographs = open_source(folder, (source or SourceConfig()).fitting(kind_of(folder)))
        print(f"shift {name}: {describe(photographs)}", file=sys.stderr)
        plan = EmbedPlan(photographs, path, Workshop(plain, config), title=f"shift {name}")
        embed_compiled(plan, compiled, quiet=quiet)
        store = EmbeddingStore.open(path)
        for backbone in compiled:
            probe_path = out / "probes" / slug(backbone.spec.name) / f"semantic-{HEAD}.safetensors"
            if not probe_path.is_file():
                continue
            answer[backbone.spec.name][name] = _score(store, backbone.spec.name, Probe.load(probe_path), name)
    for backbone_name, scores in answer.items():
        place = out / "shift" / f"{slug(backbone_name)}.json"
        if scores:
            write_durably(place, json.dumps(scores).encode())
    return answer


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
