"""Transfer of probes between domains: trained on the photographs of one, scored on those of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.outcomes import GENERAL, ProbeOutcome, metrics
from substyle.engine.probes.resampling import Resampled, resample
from substyle.engine.results.model import entry_of
from substyle.engine.stages.execution import computed
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.probes import probe_file
from substyle.engine.stages.shift.config import ShiftConfig
from substyle.engine.stages.stage import Run
from substyle.engine.stages.stamp import is_result
from substyle.engine.stages.tables import NewPhotographs
from substyle.engine.store.layout import TEST, slug
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable

HEAD: Final = "linear"


def path_of(out: Path, name: str) -> Path:
    """Path of the store of a domain, below an output folder."""
    return out / "shift" / "domains" / f"{slug(name)}.zarr"


def stores(run: Run, config: ShiftConfig) -> dict[str, EmbeddingStore]:
    """Stores of the other domains by name."""
    return run.stores({name: path_of(run.out, name) for name in config.domains})


def train(run: Run, config: ShiftConfig) -> None:
    """Train the probes of other domains."""
    assert run.study is not None
    own = run.study.probes
    tasks = tuple(task for task in own.tasks if task in config.tasks)
    expert = replace(own.expert, equal_width=0)
    linear = replace(own, tasks=tasks, heads=(HEAD,), rotate="none", redraws=0, resamples=0, expert=expert)
    for name, store in stores(run, config).items():
        configs = {PROBES.name: linear}
        computed(PROBES, Run(store, _results(run.out, name), run.opened(store), configs=configs, quiet=run.quiet))


def _results(out: Path, name: str) -> Path:
    """Folder of a domain's probes; without a suffix, folders are those of backbones."""
    return path_of(out, name).with_suffix(".results")


def probes(run: Run, config: ShiftConfig, backbone: str, others: Iterable[str]) -> dict[tuple[str, str], Path]:
    """Files of the probes of a backbone by task and training domain.

    Args:
        others: names of the other domains, none if there are no domains.
    """
    out = {name: _results(run.out, name) for name in others}
    if config.domains:
        out = {config.own: run.out, **out}
    return {(task, name): probe_file(out[name], backbone, task, HEAD) for task in config.tasks for name in out}


def domain_scores(run: Run, config: ShiftConfig, backbone: str, photographs: NewPhotographs) -> dict[str, Any]:
    """Scores of the probes of all domains on all domains, by task, training domain and test domain."""
    everywhere = {config.own: run.tables[backbone]}  # the study's own first
    everywhere |= {name: run.opened(store)[backbone] for name, store in stores(run, config).items()}
    paths = {
        key: path
        for key, path in probes(run, config, backbone, list(everywhere)[1:]).items()
        if is_result(path)  # photographs without classes have no class probe
    }
    trained_on = {key: Probe.load(path) for key, path in paths.items()}
    outcomes = {folder: ProbeOutcome.load(folder) for folder in {path.parent for path in paths.values()}}
    found: dict[str, Any] = {}
    for name, other in everywhere.items():
        new_N = {
            trained: photographs.of(other, table, f"domain {name}, probes of {trained}", other.rows(TEST))
            for trained, table in everywhere.items()
            if trained != name
        }
        for (task, trained), cell in _scored(trained_on, name, other, config, new_N).items():
            if cell is not None:
                cell["converged"] = bool(outcomes[paths[task, trained].parent].results[task][HEAD]["converged"])
            found.setdefault(task, {}).setdefault(trained, {})[name] = cell
    return found


def _scored(
    probes: Mapping[tuple[str, str], Probe],
    domain: str,
    table: EmbeddingTable,
    config: ShiftConfig,
    new_N: Mapping[str, NDArray[np.bool_]],
) -> dict[tuple[str, str], dict[str, Any] | None]:
    """Scores of probes on the test photographs of a domain's table, read once; None where none can be scored.

    Args:
        new_N: by other training domain, which images of the table are not among its training photographs.
    """
    images = table.rows(TEST)
    score_KTN = {key: np.full((len(table.transformations), len(images)), np.nan, np.float32) for key in probes}
    truth_KTN = {key: probe.truth(table, images, own=key[1] == domain) for key, probe in probes.items()}
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
        found = resample(score_TN[:, known_N], config.bootstrap, config.seed, group_N[known_N], unit=config.resample_by)
        cells[key] = {"images": int(known_N.sum()), **_numbers(found, table, key[0])}
    return cells


def _numbers(found: Resampled, table: EmbeddingTable, task: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, weight_T in metrics(table, task, HEAD).items():
        mean = found.mean(weight_T)
        # one that generalises to unseen transformations has no interval over them here
        numbers[name] = entry_of(mean.value, one_way=mean.ci95) if (task, name) in GENERAL else mean.entry()
    if task == "transformation":
        numbers["by_transformation"] = {name: found.one(t).number for t, name in enumerate(table.transformations)}
    return numbers
