"""Attentive probes of the tokens of networks, which are embedded in a store of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine import devices
from substyle.engine.config import BackboneChoice, Study, names_of
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed
from substyle.engine.extensions.attentive import section
from substyle.engine.extensions.attentive.config import AttentiveConfig
from substyle.engine.extensions.attentive.family import PREFIX, count_of
from substyle.engine.extensions.attentive.heads import token_grid
from substyle.engine.extensions.attentive.means import averaged
from substyle.engine.extensions.attentive.section import Attentive, Differences
from substyle.engine.observability import stage
from substyle.engine.probes.batches import Features, pick_dtype
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import SAMPLE, hold, over
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.mlp import train_mlp
from substyle.engine.probes.outcomes import ProbeOutcome, compare_heads, corrected
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.single_task import Single, report
from substyle.engine.probes.tasks import Advance, class_task, kind_task, transformation_task
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.elsewhere import embed_anew, store_stamps
from substyle.engine.stages.probes import probe_config, probe_settings
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JSON, EmbeddingStage, Run, Unit, table_of
from substyle.engine.store import catalog
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.errors import ConfigError
from substyle.kernels.dispatch import threads
from substyle.pipelines.storage import place

TASKS = {"transformation": transformation_task, "kind": kind_task, "class": class_task}
_FEWEST = 4_096  # rows to standardise by
_NONE = -1  # split of photographs that the study leaves out


class AttentiveStage(EmbeddingStage[AttentiveConfig, ProbeOutcome]):
    """Train attentive and efficient probes on tokens, and linear probes on their mean.

    Tokens of the photographs of the study are embedded in ``attentive/tokens.zarr``.
    """

    name = "attentive"
    version = 3
    config = AttentiveConfig
    switch = "backbones"
    ignored = ("backbones",)
    alike = True
    backbone_results = Attentive
    document_results = Differences
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError for a backbone that the study does not have."""
        known = names_of(study.backbones)
        if unknown := [name for name in table_of(self, study).backbones if name not in known]:
            raise ConfigError("attentive.backbones", ", ".join(unknown), f"backbones of the study: {', '.join(known)}")
        return []

    def check_networks(self, study: Study, pipeline: PixelPipeline, stored: Collection[str]) -> None:
        """Load the networks, which must have tokens."""
        for choice in study.backbones:
            if not {*choice.names} <= {*stored}:
                for own in _choices([choice], table_of(self, study)):
                    _ = pipeline.backbone(own).spec

    def prepare(self, run: Run, config: AttentiveConfig) -> None:
        """Embed the tokens."""
        assert run.embedding is not None
        plan, choices = run.embedding.plan, _choices(run.embedding.choices, config)
        fresh = EmbedPlan(
            plan.given or plan.source,
            place(_path(run)),
            plan.pipeline,
            plan.limit,
            plan.fractions,
            title="tokens",
            executor=plan.executor,
            only=True,
            asked=plan.asked,
        )
        embed_anew(fresh, lambda own: embed(own, choices, quiet=run.quiet))

    def units(self, run: Run, config: AttentiveConfig) -> Iterable[Unit]:
        """The backbones of the settings."""
        return [unit for unit in super().units(run, config) if unit.name in config.backbones]

    def inputs(self, run: Run, config: AttentiveConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The settings of probes, and the tokens; of loaded results those that they had, if their store is gone."""
        tokens = (before or {}).get("tokens")
        if before is None or catalog.exists(_path(run)):
            stores = run.stores({"tokens": _path(run)})
            tokens = store_stamps(stores, _name(config, unit.name))
        return {"probes": probe_settings(run, unit, before), "tokens": tokens}

    def compute(self, run: Run, config: AttentiveConfig, unit: Unit, folder: Path) -> None:
        """Write scores and results."""
        probes = probe_config(run)
        store = EmbeddingStore.open(_path(run))
        entry, own = store.backbone(_name(config, unit.name)), run.tables[unit.name]
        table = open_table(store, entry.name, own.transformations)
        splits = dict(zip(own.keys, own.split_N.tolist(), strict=True))  # a store that grew has split new ones apart
        split_N = np.array([splits.get(key, _NONE) for key in table.keys], np.int8)
        table = replace(table, backbone=unit.name, split_N=split_N)
        count = count_of(entry.facts["spec"]["pooling"])
        steps = 3 * probes.mlp_steps * len(config.heads) * len(TASKS)
        with threads(probes.threads), stage(f"attentive {unit.name}", steps, "steps", quiet=run.quiet) as bar:
            attentive(table, count, probes, config, bar.advance).save(folder)

    def load(self, run: Run, folder: Path) -> ProbeOutcome:
        """Load the results."""
        return ProbeOutcome.load(folder)

    def of_backbone(self, result: ProbeOutcome) -> Mapping[str, Any]:
        """Results by task and head."""
        return {self.name: result.results}

    def of_document(self, run: Run, document: ResultsDocument) -> Mapping[str, Any]:
        """Paired differences to the linear probes of the mean, with p values after Holm's correction."""
        rows = []
        for name, outcome in run.results.get(self.name, {}).items():
            tasks = [task for task in TASKS if f"{task}/linear" in outcome.scores]
            heads = dict.fromkeys(score.partition("/")[2] for score in outcome.scores)
            pairs = [(f"{task}/{head}", f"{task}/linear") for head in heads if head != "linear" for task in tasks]
            rows += compare_heads(name, outcome, pairs)
        return {self.name: {"differences": corrected(rows)}} if rows else {}


STAGE = register_stage(AttentiveStage())


def _path(run: Run) -> Path:
    return run.out / AttentiveStage.name / "tokens.zarr"


def _name(config: AttentiveConfig, backbone: str) -> str:
    return f"{PREFIX}{config.grid}:{backbone}"


def _choices(choices: Iterable[BackboneChoice], config: AttentiveConfig) -> list[BackboneChoice]:
    """The backbones that output tokens, with the checkpoints and precisions of the study's."""
    return [
        replace(choice, name=_name(config, name), label=None)
        for choice in choices
        for name in choice.names
        if name in config.backbones
    ]


def attentive(
    table: EmbeddingTable,
    count: int,
    probes: ProbeConfig,
    config: AttentiveConfig,
    advance: Advance = lambda count: None,
) -> ProbeOutcome:
    """Train and score heads of P = ``count`` tokens, and linear heads of their mean.

    Args:
        table: tokens (T, N, P · D), one after another.

    Returns:
        an outcome with the heads ``linear``, ``attentive`` and ``efficient``, and ``tokens`` and ``dim`` of a token.
    """
    tasks = tuple(name for name in probes.tasks if name in TASKS)
    expert = replace(probes.expert, equal_width=0)
    few = replace(probes, tasks=tasks, heads=("linear",), rotate="none", redraws=0, resamples=0, expert=expert)
    outcome = run_probes(averaged(table, count), few, out_dir=None, quiet=True)
    device = devices.resolve(probes.device).torch_device
    held, width = hold(table, probes, device), table.width // count
    group_N, images = table.groups(probes.resample_by), table.rows(TEST)
    for name in tasks:
        task = TASKS[name](table, probes.seed)
        if task is None:
            continue
        rng = np.random.default_rng([probes.seed, 0x737464])
        rows = task.sample(task.train_N, max(SAMPLE // count, _FEWEST), rng)
        features = Features(
            held, over(table, *rows, parts=count), held.device, pick_dtype(probes.expert.precision, device)
        )
        for head in config.heads:
            grid = token_grid(config, probes, head, count, width)
            made = train_mlp(features, task, probes, advance=advance, settings=grid)
            single = Single(task, made, score(features, task, made.heads, images), None)
            outcome.results[name][head] = report(table, single, probes, group_N[images])
            outcome.scores[f"{name}/{head}"] = single.scores.mean_TN
    return replace(outcome, results={"tokens": count, "dim": width, **outcome.results})
