"""Fill a store: prepare backbones, own the store, run the loop; what is there already is not redone."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.executors.config import LOCAL
from substyle.engine.executors.local import LocalExecutor
from substyle.engine.executors.task import Executor, Task
from substyle.engine.loop import EmbedSummary
from substyle.engine.plan import EmbedPlan
from substyle.engine.preparation import BackboneChoice, prepare_backbones, shard_rows
from substyle.engine.samples import calibration_keys
from substyle.engine.store import compaction, creation, lock, processes
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.layout import BackboneEntry, StoreSettings
from substyle.engine.store.load import store_facts
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.splits import Fractions, assign
from substyle.engine.table import UNLABELLED
from substyle.engine.todo import todo
from substyle.engine.workshop import EmbedConfig, Settings
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.transforms import base


def embed(plan: EmbedPlan, backbones: Sequence[BackboneChoice], *, quiet: bool = False) -> EmbedSummary:
    """Embed every variant of every photograph by every backbone; what the store has already is not redone.

    Raises:
        ConfigError, StoreError, LockedError, WeightsError, GateError, OverflowError16: as their messages say; finished
            shards are kept in every case.
    """
    if not backbones:
        raise ConfigError("backbones", "none", "at least one backbone")
    start = time.perf_counter()
    done = _complete(plan, [choice.name for choice in backbones])
    if done is not None:
        _tidy(plan)
        return done
    with _workers(plan, backbones) as workers:
        compiled = prepare_backbones(backbones, plan.samples(), quiet=quiet)
        prepared, ready = _Prepared.of(plan, compiled), time.perf_counter()
        executor = workers or LocalExecutor(compiled)
        del compiled  # workers have their own; on a GPU they need the room
        summary = _fill(plan, prepared, executor, quiet=quiet)
    summary.seconds["prepare"] = ready - start
    summary.seconds["total"] = time.perf_counter() - start
    return summary


def _workers(plan: EmbedPlan, backbones: Sequence[BackboneChoice]) -> AbstractContextManager[Executor | None]:
    """Workers' executor, ready before minutes are spent on preparing; None for this process's."""
    if plan.executor.kind == LOCAL:
        return nullcontext()
    from substyle.engine.executors.ray import ray_executor  # Ray is an extra

    return ray_executor(plan.executor, plan.workshop.config, backbones)


def embed_compiled(plan: EmbedPlan, compiled: Sequence[CompiledBackbone], *, quiet: bool = False) -> EmbedSummary:
    """`embed` for backbones that are compiled and gated already, in this process."""
    return _fill(plan, _Prepared.of(plan, compiled), LocalExecutor(compiled), quiet=quiet)


@dataclass(frozen=True)
class _Prepared:
    """What a store needs to know of backbones that are prepared.

    Attributes:
        facts: of each; rows: R of a store that is made for them; records: the photographs to take.
    """

    facts: list[dict[str, object]]
    rows: int
    records: Sequence[ImageRecord]

    @staticmethod
    def of(plan: EmbedPlan, compiled: Sequence[CompiledBackbone]) -> _Prepared:
        records, workshop = plan.records(), plan.workshop
        rows = shard_rows(compiled, len(workshop.settings.transformations), len(records), workshop.config)
        return _Prepared([backbone.describe() for backbone in compiled], rows, records)


def _fill(plan: EmbedPlan, prepared: _Prepared, executor: Executor, *, quiet: bool) -> EmbedSummary:
    settings, config = plan.workshop.settings, plan.workshop.config
    summary = EmbedSummary()
    start = time.perf_counter()
    if not plan.exists:
        _create(plan, prepared)
    store = EmbeddingStore.open(plan.store_path)
    _require_same(store, settings, config)
    run = lock.new_run_id()
    with lock.hold(plan.store_path, run, plan.part, take_over=plan.take_over):
        with lock.mutex(plan.store_path):
            entries = _prepare_store(store, plan, prepared)
        lacks = todo(store, entries, settings.transformations, plan.part)
        summary.images, summary.shards = lacks.images, lacks.shards
        summary.variants = summary.images * len(settings.transformations)
        if (age := processes.age()) is not None:
            summary.seconds["ready"] = age
        executor.run(Task(store, plan, entries, run, lacks, summary), quiet=quiet)
        with lock.mutex(plan.store_path):
            compaction.compact(plan.store_path, at=1)
    summary.spend("total", start)
    return summary


def _tidy(plan: EmbedPlan) -> None:
    """Clear what a run left that was killed when all embeddings were there."""
    if EmbeddingStore.open(plan.store_path).is_tidy():
        return
    store = EmbeddingStore.open(plan.store_path)
    with lock.hold(plan.store_path, lock.new_run_id(), plan.part), lock.mutex(plan.store_path):
        store.tidy()
        compaction.compact(plan.store_path, at=1)


def _create(plan: EmbedPlan, prepared: _Prepared) -> None:
    settings, config = plan.workshop.settings, plan.workshop.config
    made = StoreSettings(
        settings.seed,
        settings.canvas,
        prepared.rows,
        config.dtype,
        plan.source.root,
        orientation=settings.orientation,
        style_precision=settings.style_precision,
    )
    keys = calibration_keys(prepared.records, settings.seed)
    try:
        creation.create(plan.store_path, made, calibration=keys, options=plan.source.options)
    except StoreError:
        if not plan.exists:  # else another part of the run was quicker
            raise


def _prepare_store(store: EmbeddingStore, plan: EmbedPlan, prepared: _Prepared) -> list[BackboneEntry]:
    """Everything but embeddings: images, groups, arrays; and what a killed run or a damaged disk left is cleared."""
    settings = plan.workshop.settings
    store.tidy()
    _add_missing(store, prepared.records, plan.source.class_names, settings.seed, plan.fractions)
    entries = [store.ensure_backbone(facts) for facts in prepared.facts]
    for entry in entries:
        for name in settings.transformations:
            transformation = base.get(name)
            store.ensure_transformation(entry, transformation.describe(), transformation.definition_hash())
    store.fit()
    slugs = [entry.slug for entry in entries]
    short = store.cut_short(store.finished().of(slugs))
    if short:
        print(f"{store.path}: chunks of {len(short)} finished shards are missing or cut short: redone", file=sys.stderr)
        compaction.withdraw(store.path, short)
    return entries


def _complete(plan: EmbedPlan, backbones: Sequence[str]) -> EmbedSummary | None:
    """The summary of a store that has everything already, None where something is to do."""
    if not plan.exists:
        return None
    store = EmbeddingStore.open(plan.store_path)
    settings = plan.workshop.settings
    _require_same(store, settings, plan.workshop.config)
    if not store.has_manifest():
        return None
    there = {entry.name: entry.slug for entry in store.backbones()}
    finished = store.finished()
    keys = set(store.manifest().keys)
    names = settings.transformations
    shards = store.shards()
    if not all(record.key in keys for record in plan.records()):
        return None
    for name in backbones:
        if name not in there or not finished.finished(there[name], names, shards).all():
            return None
        entry = store.backbone(name)
        if store.cut_short(finished.of([entry.slug])):
            return None
        for transformation in settings.transformations:
            known = base.get(transformation)
            store.ensure_transformation(entry, known.describe(), known.definition_hash())
    return EmbedSummary(len(keys), len(keys) * len(names), shards, quarantined=store_facts(store).quarantined)


def _require_same(store: EmbeddingStore, settings: Settings, config: EmbedConfig) -> None:
    there = store.settings
    pairs = {
        "seed": (there.seed, settings.seed),
        "canvas": (there.canvas, settings.canvas),
        "dtype": (there.dtype, config.dtype),
        "orientation": (there.orientation, settings.orientation),
        "style_precision": (there.style_precision, settings.style_precision),
    }
    changed = [f"{name} {old} there, {new} now" for name, (old, new) in pairs.items() if old != new]
    if changed:
        raise StoreError(f"{store.path}: the store was made differently: {'; '.join(changed)}")


def _add_missing(
    store: EmbeddingStore, records: Sequence[ImageRecord], class_names: Sequence[str], seed: int, fractions: Fractions
) -> None:
    known: Manifest | None = store.manifest() if store.has_manifest() else None
    there = set(known.keys) if known else set()
    new = [record for record in records if record.key not in there]
    if not new:
        return
    # classes keep the labels that earlier segments gave them; new ones come after
    names = list(known.class_names) if known else []
    # a class none of whose images was taken gets no label: labels are the indices of names that occur
    taken = {class_names[r.label] for r in new if r.label is not None}
    names += [name for name in class_names if name in taken and name not in names]
    number = {name: i for i, name in enumerate(names)}
    labels = [UNLABELLED if r.label is None else number[class_names[r.label]] for r in new]
    split_N = assign([r.key for r in new], labels, [r.split for r in new], seed=seed, fractions=fractions)
    store.add_images([r.key for r in new], np.array(labels, np.int64), names, split_N)
