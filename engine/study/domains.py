"""Transfer of probes between domains: trained on the photographs of one, scored on those of another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.evaluate import Resampled, resample, uniform_over
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.probes.single_task import coarse_weights
from substyle.engine.probes.tasks import identity
from substyle.engine.store import catalog
from substyle.engine.store.files import read_object, write_durably
from substyle.engine.store.layout import TEST, slug
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.engine.study import stages
from substyle.engine.study.outputs import DOMAINS, Stamp, cached, file_digest, is_result, note_of, require_fresh
from substyle.engine.study.stages import PROBES
from substyle.pipelines.sources import absolute_root
from substyle.pipelines.sources.labels import numbered

HEAD: Final = "linear"
_FILE = "domains.json"
TASKS = ("fine", "coarse", "semantic")
_INTERVALS = ("seed", "bootstrap", "resample_by")  # settings of probes that change intervals
_OUTPUT = {"fine": "transformation", "coarse": "coarse", "semantic": "class"}


def transfer(
    stores: Mapping[str, EmbeddingStore],
    folders: Mapping[str, Path | str],
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
        folders: their photographs.
        out: output folder of the study; probes of other domains are written to ``out/domains/<name>.results``.
        config: settings of probes; tasks and heads are restricted to linear probes.
        study: store of the study, whose photographs are a domain too.
        own: name of that domain.

    Returns:
        by backbone, task, training domain and test domain: ``accuracy`` (fine: of all transformations), ``seen`` and
        ``held_out`` (coarse), ``clean`` and ``obfuscated`` (semantic, on photographs of classes that the probe knows
        by name), each with its interval over photographs, ``images``, whether the probe has ``converged``, and for fine
        ``by_transformation``.
    """
    tasks = tuple(task for task in config.tasks if task in TASKS)
    linear = replace(config, tasks=tasks, heads=(HEAD,), rotate=False, redraws=0, resamples=0, equal_width=0)
    photographs = stages.NewPhotographs()
    answer: dict[str, dict[str, Any]] = {}
    for backbone, table in tables.items():
        everywhere = {own: table}
        for name, store in stores.items():
            (everywhere[name],) = stages.tables(store, [backbone], table.transformations)
            stages.probe(store, _results(out, name), linear, [everywhere[name]], quiet=quiet)
        paths: dict[tuple[str, str], Path] = {
            (task, name): _probe(out, name, own, backbone, task) for task in tasks for name in everywhere
        }

        def compute(new: Path, everywhere: Mapping[str, EmbeddingTable] = everywhere, paths: _Paths = paths) -> None:
            found = _transferred(everywhere, paths, photographs, config)
            write_durably(new / _FILE, json.dumps(found, allow_nan=False).encode())

        folder = out / DOMAINS / slug(backbone)
        cached(folder, partial(_stamp, study, table, out, own, stores, folders, tasks), compute)
        answer[backbone] = read_object(folder / _FILE)
    return answer


_Paths: TypeAlias = Mapping[tuple[str, str], Path]  # of probes, by task and training domain


def _transferred(
    everywhere: Mapping[str, EmbeddingTable], paths: _Paths, photographs: stages.NewPhotographs, config: ProbeConfig
) -> dict[str, Any]:
    """Scores of the probes of all domains on all domains, by task, training domain and test domain."""
    # photographs without classes have no class probe
    probes = {key: Probe.load(path) for key, path in paths.items() if is_result(path)}
    outcomes = {folder: ProbeOutcome.load(folder) for folder in {paths[key].parent for key in probes}}
    found: dict[str, Any] = {}
    for name, other in everywhere.items():
        new_N = {
            trained: photographs.of(other, table, f"domain {name}, probes of {trained}", other.rows(TEST))
            for trained, table in everywhere.items()
            if trained != name
        }
        for (task, trained), cell in _scored(probes, name, other, config, new_N).items():
            if cell is not None:
                cell["converged"] = bool(outcomes[paths[task, trained].parent].results[task][HEAD]["converged"])
            found.setdefault(task, {}).setdefault(trained, {})[name] = cell
    return found


def kept_domains(
    study: EmbeddingStore,
    out: Path,
    tables: Mapping[str, EmbeddingTable],
    folders: Mapping[str, Path | str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Load the results of `transfer`, by backbone.

    Args:
        folders: the `[domains]` table of the study; default: the domains that were scored.

    Raises:
        StaleError: the results are outdated.
    """
    found: dict[str, dict[str, Any]] = {}
    if folders is not None and not folders:
        return found
    for backbone, table in tables.items():
        folder = out / DOMAINS / slug(backbone)
        note = note_of(folder)
        if note is None:
            continue
        settings = note.stamp.settings
        paths = {name: store_path(out, name) for name in settings.get("domains", {})}
        stores = {name: EmbeddingStore.open(path) for name, path in paths.items() if catalog.exists(path)}
        given = settings.get("folders", {}) if folders is None else folders
        now = _stamp(study, table, out, settings.get("own", ""), stores, given, tuple(settings.get("tasks", ())))
        require_fresh(folder, note, now)
        found[backbone] = read_object(folder / _FILE)
    return found


def store_path(out: Path, name: str) -> Path:
    """Path of the store of a domain."""
    return out / DOMAINS / f"{slug(name)}.zarr"


def _results(out: Path, name: str) -> Path:
    """Folder of a domain's probes; without a suffix, folders are those of backbones."""
    return out / DOMAINS / f"{slug(name)}.results"


def _probe(out: Path, domain: str, own: str, backbone: str, task: str) -> Path:
    folder = out if domain == own else _results(out, domain)
    return folder / PROBES / slug(backbone) / f"{task}-{HEAD}.safetensors"


def _stamp(
    study: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    own: str,
    stores: Mapping[str, EmbeddingStore],
    folders: Mapping[str, Path | str],
    tasks: Sequence[str],
) -> Stamp:
    probes = note_of(out / PROBES / slug(table.backbone))
    settings = {
        "own": own,
        "tasks": list(tasks),
        "intervals": {name: probes.stamp.settings.get(name) for name in _INTERVALS} if probes else {},
        "folders": {name: absolute_root(str(folder)) for name, folder in folders.items()},
        "domains": {
            name: asdict(Stamp.of(store, open_table(store, table.backbone, table.transformations), {}))
            for name, store in stores.items()
        },
        "probes": {
            f"{name}/{task}": file_digest(_probe(out, name, own, table.backbone, task))
            for name in (own, *stores)
            for task in tasks
        },
    }
    return Stamp.of(study, table, settings)


def _scored(
    probes: Mapping[tuple[str, str], Probe],
    domain: str,
    table: EmbeddingTable,
    config: ProbeConfig,
    new_N: Mapping[str, NDArray[np.bool_]],
) -> dict[tuple[str, str], dict[str, Any] | None]:
    """Scores of probes on the test photographs of a domain's table, read once; None where none can be scored.

    Args:
        new_N: by other training domain, which images of the table are not among its training photographs.
    """
    images = table.rows(TEST)
    score_KTN = {key: np.full((len(table.transformations), len(images)), np.nan, np.float32) for key in probes}
    truth_KTN = {key: _truth(key[0], probe, table, images, own=key[1] == domain) for key, probe in probes.items()}
    for key, truth_TN in truth_KTN.items():
        if key[1] in new_N:
            truth_KTN[key] = np.where(new_N[key[1]][images], truth_TN, -1)
    for t in range(len(table.transformations)):
        x_ND = table.take(t, images)
        for key, probe in probes.items():
            truth_N = truth_KTN[key][t]
            right_N = probe.predict(x_ND).argmax(axis=1) == truth_N
            score_KTN[key][t] = np.where(table.distinct_TN[t, images] & (truth_N >= 0), right_N, np.nan)
    group_N = table.groups(config.resample_by)[images]
    cells: dict[tuple[str, str], dict[str, Any] | None] = {}
    for key, score_TN in score_KTN.items():
        known_N = (truth_KTN[key] >= 0).any(axis=0)
        if not known_N.any():
            cells[key] = None
            continue
        found = resample(score_TN[:, known_N], config.bootstrap, config.seed, group_N[known_N])
        cells[key] = {"images": int(known_N.sum()), **_numbers(found, table, key[0])}
    return cells


def _truth(
    task: str, probe: Probe, table: EmbeddingTable, images: NDArray[np.int64], *, own: bool
) -> NDArray[np.int64]:
    """Labels of a probe that are right; -1 where it knows none. Shape: (T, N).

    Args:
        own: whether the probe was trained on this domain. Others have the same classes by name, not by number: class 0
            of one data set is not class 0 of another.
    """
    place = {label: index for index, label in enumerate(probe.labels[_OUTPUT[task]])}
    shape = len(table.transformations), len(images)
    if task == "semantic":
        place = {label: index for label, index in place.items() if own or not numbered(label)}
        of_class = np.array([*(place.get(name, -1) for name in table.class_names), -1], np.int64)
        return np.broadcast_to(of_class[table.label_N[images]], shape)  # unlabelled photographs have label -1
    names = table.families if task == "fine" else table.coarse
    return np.broadcast_to(np.array([[place.get(name, -1)] for name in names], np.int64), shape)


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
        numbers |= found.mean(weight_T).entries(name)
    if task == "fine":
        numbers["by_transformation"] = {name: found.one(t).number for t, name in enumerate(table.transformations)}
    return numbers
