"""Transfer of probes between domains: trained on the photographs of one, scored on those of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from substyle.engine.config import Study
from substyle.engine.embedding.blobs import require_shown
from substyle.engine.embedding.plan import limited
from substyle.engine.embedding.preflight import SplitCounts, check_splits, count_splits, opened
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcomes import ProbeOutcome, metrics
from substyle.engine.probes.resampling import Resampled, resample
from substyle.engine.stages.domains import section
from substyle.engine.stages.domains.section import ByTask
from substyle.engine.stages.elsewhere import ElsewhereStage, absolute, store_stamps
from substyle.engine.stages.execution import computed
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.probes import probe_file
from substyle.engine.stages.stage import JSON, Elsewhere, Run, Unit
from substyle.engine.stages.stamp import file_digest, is_result
from substyle.engine.stages.tables import NewPhotographs
from substyle.engine.store.layout import TEST, ResampleBy, slug
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError
from substyle.pipelines.validation import validated

HEAD: Final = "linear"
TASKS = ("fine", "coarse", "semantic")
_Paths: TypeAlias = Mapping[tuple[str, str], Path]  # of probes, by task and training domain


@validated("domains")
class DomainsConfig:
    """Settings of the stage.

    Attributes:
        own: name of the study, whose photographs are a domain too.
        folders: photographs of the other domains by name.
        tasks: tasks of the probes.
        seed, bootstrap, resample_by: of the intervals, as those of probes.
    """

    own: str
    folders: dict[str, Path | str]
    tasks: tuple[str, ...]
    seed: int
    bootstrap: int
    resample_by: ResampleBy


class DomainsStage(ElsewhereStage[DomainsConfig]):
    """Train linear probes on each domain and score them on the test photographs of all domains.

    Results are by task, training domain and test domain: ``accuracy`` (fine: of all transformations), ``seen`` and
    ``held_out`` (coarse), ``clean`` and ``obfuscated`` (semantic, on photographs of classes that the probe knows by
    name), each with its interval over photographs, ``images``, whether the probe has ``converged``, and for fine
    ``by_transformation``. Probes of other domains are written to ``domains/<name>.results``.
    """

    name = "domains"
    stamps = "domains"
    config = DomainsConfig
    backbone_results = ByTask
    report = section

    def of(self, study: Study) -> DomainsConfig | None:
        """Photographs of `[domains]`, and settings of the probes."""
        own = study.probes
        tasks = tuple(task for task in own.tasks if task in TASKS)
        found = DomainsConfig(study.name, absolute(study.domains), tasks, own.seed, own.bootstrap, own.resample_by)
        return found if study.domains else None

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError if probes of other domains cannot be trained, or their photographs cannot be opened."""
        return check_domains(study)

    def elsewhere(self, study: Study, out: Path) -> Iterable[Elsewhere]:
        """Photographs of the domains in all variants."""
        for name, folder in study.domains.items():
            path, settings = self.path(out, name), study.settings()
            yield Elsewhere(f"domain {name}", folder, path, settings, study.limit, study.splits.fractions)

    def prepare(self, run: Run, config: DomainsConfig) -> None:
        """Embed the photographs by all backbones, and train the probes of other domains."""
        super().prepare(run, config)
        assert run.study is not None
        own = run.study.probes
        tasks = tuple(task for task in own.tasks if task in config.tasks)
        nothing: dict[str, Any] = {"rotate": False, "redraws": 0, "resamples": 0, "equal_width": 0}
        linear: ProbeConfig = replace(own, tasks=tasks, heads=(HEAD,), **nothing)
        for name, store in self.stores(run, config).items():
            configs = {PROBES.name: linear}
            computed(PROBES, Run(store, _results(run.out, name), run.opened(store), configs=configs, quiet=run.quiet))

    def inputs(self, run: Run, config: DomainsConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The embeddings of other domains, and the probes of all."""
        stores = self.stores(run, config)
        return {
            self.stamps: store_stamps(stores, unit.name, run.tables[unit.name].transformations),
            "probes": {
                f"{name}/{task}": file_digest(path)
                for (task, name), path in _probes(run, config, unit.name, (config.own, *stores)).items()
            },
        }

    def compute(self, run: Run, config: DomainsConfig, unit: Unit, folder: Path) -> None:
        """Write the scores."""
        everywhere = _tables(run, config, unit.name)
        probes = _probes(run, config, unit.name, everywhere)
        self.write(folder, _transferred(everywhere, probes, self.new_photographs(run), config))


STAGE = DomainsStage()


def check_domains(study: Study) -> list[str]:
    """Raise ConfigError if probes of other domains cannot be trained, or their photographs cannot be opened."""
    if study.domains and ("linear" not in study.probes.heads or not study.probes.save):
        raise ConfigError("domains", ", ".join(study.domains), "linear in probes.heads and probes.save = true")
    for name, folder in study.domains.items():
        if name == study.name:
            raise ConfigError(f"domains.{name}", str(folder), "another name than the study's, which is a domain too")
        source = opened(f"domains.{name}", folder, study.source)
        require_shown(source, study.settings().transformations, f"domains.{name}")
        records = limited(source.records, study.seed, study.limit)
        try:
            check_splits(count_splits(records, source, seed=study.seed, fractions=study.splits.fractions))
        except ConfigError as error:
            raise ConfigError(f"domains.{name}", error.given, error.allowed) from None
    return []


def _tables(run: Run, config: DomainsConfig, backbone: str) -> dict[str, EmbeddingTable]:
    """Tables of a backbone by domain, that of the study first."""
    stores = STAGE.stores(run, config).items()
    return {config.own: run.tables[backbone]} | {name: run.opened(store)[backbone] for name, store in stores}


def _transferred(
    everywhere: Mapping[str, EmbeddingTable], paths: _Paths, photographs: NewPhotographs, config: DomainsConfig
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


def _results(out: Path, name: str) -> Path:
    """Folder of a domain's probes; without a suffix, folders are those of backbones."""
    return out / "domains" / f"{slug(name)}.results"


def _probes(run: Run, config: DomainsConfig, backbone: str, domains: Iterable[str]) -> dict[tuple[str, str], Path]:
    """Files of the probes by task and training domain."""
    out = {name: run.out if name == config.own else _results(run.out, name) for name in domains}
    return {(task, name): probe_file(out[name], backbone, task, HEAD) for task in config.tasks for name in out}


def _scored(
    probes: Mapping[tuple[str, str], Probe],
    domain: str,
    table: EmbeddingTable,
    config: DomainsConfig,
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
        found = resample(score_TN[:, known_N], config.bootstrap, config.seed, group_N[known_N])
        cells[key] = {"images": int(known_N.sum()), **_numbers(found, table, key[0])}
    return cells


def _numbers(found: Resampled, table: EmbeddingTable, task: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, weight_T in metrics(table, task, HEAD).items():
        numbers |= found.mean(weight_T).entries(name)
    if task == "fine":
        numbers["by_transformation"] = {name: found.one(t).number for t, name in enumerate(table.transformations)}
    return numbers
