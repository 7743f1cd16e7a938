"""Probes of each backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from substyle.engine import devices
from substyle.engine.backbones.registry import is_derived
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import budget_of
from substyle.engine.probes.outcomes import ProbeOutcome, compare_outcomes
from substyle.engine.probes.run import run_probes
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.execution import config_of, folder_of, settings_of
from substyle.engine.stages.probes import section
from substyle.engine.stages.stage import JSON, Run, Stage, Unit
from substyle.engine.stages.stamp import note_of
from substyle.engine.store.layout import network_facts, slug
from substyle.errors import ConfigError


class ProbesStage(Stage[ProbeConfig, ProbeOutcome]):
    """Train and score the probes of backbones.

    Controls have no multi-task probe: it takes longest and says nothing about an untrained embedding. Adapted and
    fine-tuned backbones have none either, and hold out no transformation in turn: they were trained on all of these.
    """

    name = "probes"
    version = 7
    config = ProbeConfig
    alike = True
    at_once = staticmethod(lambda config: devices.resolve(config.device).torch_device)
    report = section

    def units(self, run: Run, config: ProbeConfig) -> Iterable[Unit]:
        """Each backbone. Raises ConfigError if one was fine-tuned on transformations that are held out."""
        for name, table in run.tables.items():
            trained = run.store.backbone(name).facts["spec"].get("finetuned", {}).get("transformations", [])
            roles = zip(table.transformations, table.roles, strict=True)
            if seen := sorted({name for name, role in roles if role == "held_out"}.intersection(trained)):
                given = f"{name}, trained on {', '.join(seen)}"
                raise ConfigError("backbone", given, "a backbone that was not trained on held-out transformations")
        return super().units(run, config)

    def compute(self, run: Run, config: ProbeConfig, unit: Unit, folder: Path) -> None:
        """Write probes, scores and results."""
        entry, settings = run.store.backbone(unit.name), run.store.settings
        spec = entry.facts["spec"]
        adapted = is_derived(entry.name) or "finetuned" in spec
        fixed = adapted or (spec["control"] and config.rotate == "networks")
        own = replace(config, rotate="none", redraws=0) if fixed else config
        metadata = {
            "canvas": settings.canvas,
            "seed": settings.seed,
            "orientation": settings.orientation,
            "crop_pct": settings.crop_pct,
            "network": network_facts(spec),
            "checkpoint": entry.facts.get("checkpoint"),
        }
        multitask = not adapted and not spec["control"]
        table = run.tables[unit.name]
        run_probes(table, own, out_dir=folder, quiet=run.quiet, metadata=metadata, multitask=multitask).save(folder)

    def inputs(self, run: Run, config: ProbeConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """Whether ``auto`` rounds embeddings to int8, which depends on the memory of the machine."""
        if before is not None:
            return {"rounded": True} if before.get("rounded") else {}
        device = devices.resolve(config.device).torch_device
        asked = config.expert.table
        return {"rounded": True} if asked == "auto" and budget_of(run.tables[unit.name], device).rounds else {}

    def stated(self, stored: Mapping[str, Any]) -> JSON:
        """All settings in one table, and whether ``auto`` has rounded embeddings."""
        found = super().stated(stored)
        expert: JSON = found.pop("expert", {})
        return found | expert | ({"rounded": True} if stored.get("rounded") else {})

    def load(self, run: Run, folder: Path) -> ProbeOutcome:
        """Load the results."""
        return ProbeOutcome.load(folder)

    def of_backbone(self, result: ProbeOutcome) -> Mapping[str, Any]:
        """Results by task."""
        return result.results

    def lines(self, result: ProbeOutcome) -> Iterator[str]:
        """Accuracy of each head: of all transformations, of held-out ones, or on original photographs."""
        for task, heads in result.results.items():
            for head, score in heads.items() if isinstance(heads, dict) else ():
                found = map(score.get, ("accuracy", "held_out", "original")) if isinstance(score, dict) else ()
                if (value := next((each for each in found if each is not None), None)) is not None:
                    yield f"{task}  {head}  {value['value']:.3f}"

    def of_document(self, run: Run, document: ResultsDocument) -> Mapping[str, Any]:
        """Comparisons of backbones, and what was resampled."""
        outcomes: Mapping[str, ProbeOutcome] = run.results.get(self.name, {})
        found: JSON = {"comparisons": compare_outcomes(outcomes)}
        if outcome := next(iter(outcomes.values()), None):
            groups = outcome.keys if outcome.group_N is None else set(outcome.group_N)
            found["resampled"] = {"by": outcome.resample_by, "groups": len(groups)}
        return found


STAGE = ProbesStage()


def probe_settings(run: Run, unit: Unit, before: Mapping[str, Any] | None) -> JSON | None:
    """The settings of probes, as an input of stages that train others of a backbone.

    Where a run has no settings, they are those of the probes beside these results, else those that were stored.

    Args:
        before: what was stored, if results are loaded.
    """
    if before is None or config_of(STAGE, run) is not None:
        config, stored = probe_config(run), None if before is None else before.get("probes") or {}
        return settings_of(STAGE, config) | STAGE.inputs(run, config, unit, stored)
    if (note := note_of(folder_of(STAGE, run, Unit(unit.name, slug(unit.name))))) is not None:
        found = {each.name: note.stamp.settings.get(each.name) for each in fields(ProbeConfig)}
        return found | ({"rounded": True} if note.stamp.settings.get("rounded") else {})
    return before.get("probes")


def probe_config(run: Run) -> ProbeConfig:
    """The settings of probes of a run, for stages that train others; default ones without a study."""
    return config_of(STAGE, run) or ProbeConfig(seed=run.store.settings.seed)


def probe_file(out: Path, backbone: str, task: str, head: str = "linear") -> Path:
    """File of a probe in an output folder, if it was trained and saved (`is_result`)."""
    return out / STAGE.name / slug(backbone) / f"{task}-{head}.safetensors"
