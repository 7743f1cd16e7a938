"""Other photographs: class probes on distribution shifts, and probes of one domain on another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from substyle.engine.analysis.robustness import Replicates, robustness
from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.resampling import BootstrapResult
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.elsewhere import embedded, store_stamps
from substyle.engine.stages.execution import folder_of
from substyle.engine.stages.probes import probe_file
from substyle.engine.stages.shift import domains, section
from substyle.engine.stages.shift.accuracy import shift_scores
from substyle.engine.stages.shift.checks import check_corruptions, check_domains, check_shift
from substyle.engine.stages.shift.config import ShiftConfig
from substyle.engine.stages.stage import JSON, Elsewhere, EmbeddingStage, JsonStage, Run, Unit
from substyle.engine.stages.stamp import file_digest, is_result
from substyle.engine.stages.tables import NewPhotographs
from substyle.engine.store.files import read_arrays, write_arrays
from substyle.engine.store.layout import slug
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.transforms.registry import suite

_REPLICATES = "replicates.npz"


class ShiftStage(JsonStage[ShiftConfig], EmbeddingStage[ShiftConfig, JSON]):
    """Score probes on photographs that are not the study's, or not as the study has them.

    ``shift``: the linear class probe on other photographs of the same classes, and on the study's test photographs in
    the suite of ``corruptions``: ``{"accuracy", "images"}`` by name, of several transformations their mean
    accuracy. Bootstrap replicates of sensitivity and loss are kept beside them.

    ``domains``: linear probes of each domain on the test photographs of all domains, by task, training domain and test
    domain: ``accuracy`` (transformation: of all transformations), ``seen`` and ``held_out`` (kind), ``original`` and
    ``transformed`` (class, on photographs of classes that the probe knows by name), each with its interval over
    photographs, ``images``, whether the probe has ``converged``, and for transformation ``by_transformation``.

    Embeddings are written to ``shift/<name>.zarr`` and ``shift/domains/<name>.zarr``, replacing a store of other
    photographs, and probes of other domains to ``shift/domains/<name>.results``.
    """

    name = "shift"
    version = 4
    config = ShiftConfig
    report = section

    def of(self, study: Study) -> ShiftConfig | None:
        """Photographs of `[shift]` and `[domains]`, and the suite of ``corruptions``."""
        return ShiftConfig.of(study)

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError for photographs that no probe can be scored on; warn of unknown classes."""
        check_domains(study)
        check_corruptions(study, counts)
        return check_shift(study.shift, counts, study.probes, study.source)

    def elsewhere(self, study: Study, out: Path) -> Iterator[Elsewhere]:
        """All photographs, in stores below an output folder.

        Of `[shift]` the original ones, of ``corruptions`` the study's test photographs in its suite, and of `[domains]`
        all variants.
        """
        paths, settings = _paths(ShiftConfig.of(study), out), study.settings()
        original = replace(settings, transformations=("identity",))
        for name, folder in study.shift.items():
            yield Elsewhere(f"shift {name}", folder, paths[name], original)
        if name := study.corruptions:
            yield Elsewhere(f"shift {name}", None, paths[name], replace(settings, transformations=suite(name)))
        for name, folder in study.domains.items():
            path, fractions = domains.path_of(out, name), study.splits.fractions
            yield Elsewhere(f"domain {name}", folder, path, settings, study.limit, fractions)

    def prepare(self, run: Run, config: ShiftConfig) -> None:
        """Embed the photographs by all backbones, and train the probes of other domains."""
        assert run.study is not None
        for each in self.elsewhere(run.study, run.out):
            embedded(run, each)
        domains.train(run, config)

    def inputs(self, run: Run, config: ShiftConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The embeddings of the photographs, and the probes."""
        others, own = domains.stores(run, config), run.tables[unit.name]
        probes = domains.probes(run, config, unit.name, others)
        return {
            "shifted": store_stamps(_stores(run, config), unit.name),
            "domain": store_stamps(others, unit.name, own.transformations),
            "probe": file_digest(_probe(run, unit)),
            "probes": {f"{name}/{task}": file_digest(path) for (task, name), path in probes.items()},
        }

    def stated(self, stored: Mapping[str, Any]) -> JSON:
        """All settings, with digests of the photographs in place of their paths."""
        digests = {
            name: {key: stamp["photographs"] for key, stamp in stored[of].items()}
            for name, of in (("folders", "shifted"), ("domains", "domain"))
        }
        return super().stated(stored) | digests

    def compute(self, run: Run, config: ShiftConfig, unit: Unit, folder: Path) -> None:
        """Write scores, and replicates for shifts."""
        photographs = run.once((self.name, "photographs"), NewPhotographs)  # near-duplicates, alike for most backbones
        table, found = run.tables[unit.name], {}
        if (stores := _stores(run, config)) and is_result(_probe(run, unit)):
            probe = Probe.load(_probe(run, unit))
            found["shift"], kept = shift_scores(table, probe, stores, photographs, config)
            write_arrays(folder / _REPLICATES, **{key: each.array() for key, each in kept.items()})
        if config.domains:
            found["domains"] = domains.domain_scores(run, config, unit.name, photographs)
        self.write(folder, found)

    def of_backbone(self, result: JSON) -> Mapping[str, Any]:
        """Scores on shifts and domains."""
        return result

    def of_document(self, run: Run, document: ResultsDocument) -> Mapping[str, Any]:
        """How well sensitivity tells the loss under each shift, over networks."""
        own = _replicates(run, self)
        rows = robustness({name: own[name] for name in document.networks() if name in own})
        return {"robustness": rows} if rows else {}


STAGE = ShiftStage()


def _paths(config: ShiftConfig | None, out: Path) -> dict[str, Path]:
    """Stores of shifts by name."""
    return {name: out / "shift" / f"{slug(name)}.zarr" for name in config.shifts} if config else {}


def _stores(run: Run, config: ShiftConfig) -> dict[str, EmbeddingStore]:
    return run.stores(_paths(config, run.out))


def _probe(run: Run, unit: Unit) -> Path:
    """The class probe."""
    return probe_file(run.out, unit.name, "class")


def _replicates(run: Run, stage: ShiftStage) -> dict[str, Replicates]:
    """Sensitivity, and loss of class accuracy by shift, of backbones with results and labelled test images."""
    found = {}
    scores: Mapping[str, JSON] = run.results.get(stage.name, {})
    for name in (name for name, own in scores.items() if own.get("shift")):
        kept = read_arrays(folder_of(stage, run, Unit(name, slug(name))) / _REPLICATES)
        each = {key: BootstrapResult.of(array) for key, array in kept.items()}
        moved = each.pop("sensitivity")
        if each and moved.number is not None:
            found[name] = Replicates(moved, {key.partition("/")[2]: lost for key, lost in each.items()})
    return found
