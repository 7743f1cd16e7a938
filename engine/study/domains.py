"""Transfer of probes between domains: trained on the photographs of one, scored on those of another."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.evaluate import Resampled, resample, uniform_over
from substyle.engine.probes.single_task import coarse_weights
from substyle.engine.probes.tasks import identity
from substyle.engine.store.files import read_object, write_durably, writing
from substyle.engine.store.layout import TEST, slug
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.engine.study import stages
from substyle.engine.study.outputs import (
    DOMAINS,
    Note,
    Stamp,
    file_digest,
    finish,
    note_of,
    photographs_digest,
    require_fresh,
)
from substyle.engine.study.stages import PROBES

HEAD: Final = "linear"
TASKS = ("fine", "coarse", "semantic")
_OUTPUT = {"fine": "transformation", "coarse": "coarse", "semantic": "class"}


def transfer(
    stores: Mapping[str, EmbeddingStore],
    out: Path,
    config: ProbeConfig,
    *,
    study: EmbeddingStore,
    own: str,
    tables: Mapping[str, EmbeddingTable],
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train linear probes on each domain and score them on the test photographs of all domains.

    Args:
        stores: embeddings of the other domains, by name.
        out: output folder of the study; probes of other domains are written to ``out/domains/<name>/``.
        config: settings of probes; tasks and heads are restricted to linear probes.
        study: store of the study, whose photographs are a domain too.
        own: name of that domain.
        tables: tables of the study, by backbone.

    Returns:
        by backbone, task, training domain and test domain: ``accuracy`` (fine: of all transformations), ``seen`` and
        ``held_out`` (coarse), ``clean`` and ``obfuscated`` (semantic, on photographs of classes that the probe knows),
        each with its interval over photographs, ``images``, and for fine ``by_transformation``.
    """
    tasks = tuple(task for task in config.tasks if task in TASKS)
    linear = replace(config, tasks=tasks, heads=(HEAD,), rotate=False, redraws=0, resamples=0, equal_width=0)
    answer: dict[str, dict[str, Any]] = {}
    for backbone, table in tables.items():
        began = time.perf_counter()
        everywhere = {own: table}
        folders = {own: out}
        for name, store in stores.items():
            folders[name] = out / DOMAINS / slug(name)
            stages.probe(
                store, folders[name], linear, backbones=[backbone], transformations=table.transformations, quiet=quiet
            )
            everywhere[name] = open_table(store, backbone, table.transformations)
        found: dict[str, Any] = {}
        for task in tasks:
            for trained, folder in folders.items():
                path = _probe(folder, backbone, task)
                if path.is_file():  # photographs without classes have no semantic probe
                    row = found.setdefault(task, {}).setdefault(trained, {})
                    probe = Probe.load(path)
                    for name, other in everywhere.items():
                        row[name] = _score(probe, other, task, config)
        answer[backbone] = found
        folder = out / DOMAINS / slug(backbone)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "domains.json", json.dumps(found).encode())
        finish(folder, _stamp(study, table, out, own, stores, tasks), time.perf_counter() - began)
    return answer


def kept_domains(study: EmbeddingStore, out: Path, tables: Mapping[str, EmbeddingTable]) -> dict[str, dict[str, Any]]:
    """Load the results of `transfer`, by backbone. Raises StaleError if they are outdated."""
    found: dict[str, dict[str, Any]] = {}
    for backbone, table in tables.items():
        folder = out / DOMAINS / slug(backbone)
        note: Note | None = note_of(folder)
        if note is None:
            continue
        settings = note.stamp.settings
        stores = {name: EmbeddingStore.open(store_path(out, name)) for name in settings.get("photographs", {})}
        now = _stamp(study, table, out, settings.get("own", ""), stores, tuple(settings.get("tasks", ())))
        require_fresh(folder, note, now, "substyle run with the study")
        found[backbone] = read_object(folder / "domains.json")
    return found


def store_path(out: Path, name: str) -> Path:
    """Path of the store of a domain."""
    return out / DOMAINS / f"{slug(name)}.zarr"


def _probe(folder: Path, backbone: str, task: str) -> Path:
    return folder / PROBES / slug(backbone) / f"{task}-{HEAD}.safetensors"


def _stamp(
    study: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    own: str,
    stores: Mapping[str, EmbeddingStore],
    tasks: Sequence[str],
) -> Stamp:
    folders = {own: out} | {name: out / DOMAINS / slug(name) for name in stores}
    settings = {
        "own": own,
        "tasks": list(tasks),
        "photographs": {
            name: photographs_digest(open_table(store, table.backbone, table.transformations))
            for name, store in stores.items()
        },
        "probes": {
            f"{name}/{task}": file_digest(_probe(folder, table.backbone, task))
            for name, folder in folders.items()
            for task in tasks
        },
    }
    return Stamp.of(study, table, settings)


def _score(probe: Probe, table: EmbeddingTable, task: str, config: ProbeConfig) -> dict[str, Any] | None:
    """Scores of a probe on the test photographs of a table; None if none can be scored."""
    labels = probe.labels[_OUTPUT[task]]
    images = table.rows(TEST)
    place = {label: index for index, label in enumerate(labels)}
    of_image = np.array([place.get(name, -1) for name in table.class_names] or [-1], np.int64)
    if task == "semantic":  # photographs of classes that the probe does not know cannot be right
        known_N = (table.label_N[images] >= 0) & (of_image[table.label_N[images]] >= 0)
        images = images[known_N]
    if not len(images):
        return None
    names = table.families if task == "fine" else table.coarse
    score_TN = np.full((len(table.transformations), len(images)), np.nan, np.float32)
    for t, name in enumerate(names):
        if task != "semantic" and name not in place:
            continue
        said_N = probe.predict(table.take(t, images)).argmax(axis=1)
        truth_N = of_image[table.label_N[images]] if task == "semantic" else np.full(len(images), place[name])
        score_TN[t] = np.where(table.distinct_TN[t, images], said_N == truth_N, np.nan)
    group_N = None if config.resample_by == "photograph" else table.groups(config.resample_by)[images]
    found = resample(score_TN, config.bootstrap, config.seed, group_N)
    return {"images": len(images), **_numbers(found, table, task)}


def _numbers(found: Resampled, table: EmbeddingTable, task: str) -> dict[str, Any]:
    count = len(table.transformations)
    parts: dict[str, NDArray[np.float64]] = {}
    if task == "fine":
        parts["accuracy"] = np.ones(count)
    elif task == "coarse":
        weights = coarse_weights(table.transformations, table.coarse, table.roles)
        parts["seen"] = weights.seen_T
        if weights.held_out_T is not None:
            parts["held_out"] = weights.held_out_T
    else:
        parts["clean"] = uniform_over([identity(table)], count)
        parts["obfuscated"] = 1.0 - parts["clean"]
    numbers: dict[str, Any] = {}
    for name, weight_T in parts.items():
        estimate = found.mean(weight_T)
        numbers |= {name: estimate.number, "ci95" if name == "accuracy" else f"{name}_ci95": estimate.ci95}
    if task == "fine":
        numbers["by_transformation"] = {name: found.one(t).number for t, name in enumerate(table.transformations)}
    return numbers
