"""Adapters: one layer on top of a frozen embedding, trained on the embeddings of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from substyle.engine.config import BackboneChoice, Study, names_of
from substyle.engine.embedding.preflight import SplitCounts, require_trained_on
from substyle.engine.extensions.adapt import section
from substyle.engine.extensions.adapt.config import AdaptConfig
from substyle.engine.extensions.adapt.family import PREFIX, Adapter
from substyle.engine.extensions.adapt.fitting import fit_multitask, fit_pisco
from substyle.engine.observability import stage
from substyle.engine.stages.execution import config_of, settings_of
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.probes import probe_config
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JSON, Run, TrainingStage, Unit, table_of
from substyle.engine.stages.stamp import photographs_digest
from substyle.engine.store.layout import TRAIN, BackboneEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import ConfigError


class AdaptStage(TrainingStage[AdaptConfig]):
    """Train adapters, and add the adapted backbones to the study: results are their names, ``adapt:<file>``.

    Writes ``adapters/<backbone>-<method>/<digest>.safetensors`` and ``.onnx``.
    """

    name = "adapt"
    version = 2
    config = AdaptConfig
    switch = "methods"
    on_demand = MappingProxyType({"methods": ("multitask",)})
    of_store = True  # embeddings of adapted backbones are derived
    directory = "adapters"
    prefix = PREFIX
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError if there is nothing to train on."""
        methods, known = table_of(self, study).methods, len(counts.classes(TRAIN))
        if known < 2 and "multitask" in methods:
            allowed = f"pisco, because the study has {known} training classes"
            raise ConfigError("adapt.methods", ", ".join(methods), allowed)
        require_trained_on("adapt.methods", methods, study)
        return []

    def units(self, run: Run, config: AdaptConfig) -> Iterable[Unit]:
        """Each method on each backbone of a study that is no control and not adapted.

        On a store alone, on its backbones, and on controls if there are no others.

        Raises:
            ConfigError: a backbone cannot be adapted.
        """
        if run.embedding is not None:
            assert run.study is not None
            chosen = adaptable(run.store, names_of(run.study.backbones))
        else:
            chosen = adaptable(run.store, list(run.tables))
            chosen = chosen or [name for name in run.tables if not name.startswith(PREFIX)]
            if not chosen:
                raise ConfigError("backbone", next(iter(run.tables)), "a backbone that is not adapted yet")
        entries = [run.store.backbone(name) for name in chosen]
        return [Unit(each.name, f"{each.slug}-{method}", (method,)) for each in entries for method in config.methods]

    def inputs(self, run: Run, config: AdaptConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The method, and the settings of probes, with which adapters are trained."""
        probes = probe_config(run)
        return {"method": unit.variant[0], **settings_of(PROBES, probes), **PROBES.inputs(run, probes, unit, before)}

    def compute(self, run: Run, config: AdaptConfig, unit: Unit, folder: Path) -> None:
        """Train an adapter.

        Raises:
            SubstyleError: the photographs do not support the method.
        """
        method, probes = unit.variant[0], probe_config(run)
        entry, table = run.store.backbone(unit.name), run.tables[unit.name]
        with stage(f"adapt {entry.name}", 3 * probes.multitask_steps, "steps", quiet=run.quiet) as bar:
            bar.note(method)
            made = fit_multitask(table, probes, bar.advance) if method == "multitask" else fit_pisco(table, probes)
        metadata = {
            "method": method,
            "backbone": entry.name,
            "checkpoint": entry.facts.get("checkpoint"),
            "weights_hash": entry.facts["spec"]["weights_hash"],
            "relu": made.relu,
            "canvas": run.store.settings.canvas,
            "store": run.store.uuid,
            "photographs": photographs_digest(table),
            **made.facts,
        }
        adapter = Adapter(made.weight_ED, made.bias_E, metadata)
        adapter.save(folder / f"{adapter.digest}.safetensors")

    def added(self, run: Run, found: Mapping[str, str]) -> Sequence[BackboneChoice]:
        """The adapted backbones."""
        return [BackboneChoice(name) for name in found.values()]

    def replaced(self, run: Run, found: Mapping[str, str]) -> Iterable[BackboneEntry]:
        """Earlier adapters of the same backbones and methods."""
        config = config_of(self, run)
        trained = {(unit.name, *unit.variant) for unit in self.units(run, config)} if config else set()
        for entry in run.store.backbones():
            made = entry.facts.get("adapter", {})
            if (made.get("backbone"), made.get("method")) in trained and entry.name not in found.values():
                yield entry


STAGE = register_stage(AdaptStage())


def adaptable(store: EmbeddingStore, names: Sequence[str]) -> list[str]:
    """Return the backbones among ``names`` that are neither controls nor adapted."""
    entries = [store.backbone(name) for name in names]
    trained = [e for e in entries if not e.facts["spec"].get("control")]
    return [e.name for e in trained if not e.name.startswith(PREFIX)]
