"""Run a study: embed, probe, analyze, shift, report. Complete stages are skipped."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from substyle.engine import devices, observability
from substyle.engine.analysis.neighbors import search_device
from substyle.engine.config import EmbedConfig, Study, labels_of, names_of
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.preflight import SplitCounts, check_study
from substyle.engine.embedding.prepare import require_weights
from substyle.engine.embedding.run import Early, complete, embed, repair, require_same
from substyle.engine.stages import registry
from substyle.engine.stages.added import embed_added
from substyle.engine.stages.execution import computed, kept
from substyle.engine.stages.pictures import current_gallery, draw_gallery
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.stage import Embedding, EmbeddingStage, Run
from substyle.engine.stages.stamp import checksum
from substyle.engine.stages.tables import reported_tables
from substyle.engine.stages.tables import tables as open_tables
from substyle.engine.store import catalog, lock
from substyle.engine.store.files import write_durably
from substyle.engine.store.identity import RUN
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs, provisional
from substyle.engine.study.document import assemble
from substyle.engine.study.outputs import RESULTS, STORE
from substyle.engine.study.plan import plan_of, require_elsewhere, stated_limit, store_of
from substyle.engine.study.provisional import ProvisionalReports
from substyle.engine.study.quick import costly
from substyle.engine.study.report import all_tables, write_report
from substyle.engine.study.schedule import EMBED, REPORT, Schedule
from substyle.engine.study.tracking import tracked
from substyle.errors import ConfigError
from substyle.pipelines.sources import describe
from substyle.pipelines.storage import Place, place

REPORTED = "gallery and report"  # as spans of runs name it


def run_study(
    study: Study,
    out: Path,
    *,
    images: Path | str | None = None,
    store_path: Path | Place | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a study; writes its store, ``out/results.json``, ``out/report.html`` and tables.

    Args:
        study: from `load_study`, or made in Python.
        out: output folder; complete stages in it are kept.
        images: overrides the study's photographs.
        store_path: existing or new store; default `store_of`.
        fresh: delete results and store in ``out`` first.
        quiet: hide progress.

    Returns:
        the contents of results.json.

    Raises:
        PhotographsError: the store has other photographs, or another seed or canvas.
    """
    settings = {"suite": study.suite, "seed": study.seed, "canvas": study.canvas, "images": str(images or study.images)}
    settings["backbones"] = ", ".join(names_of(study.backbones))
    with tracked(study.track, study.name, settings, out) as finished:
        results = _run(study, out, images, store_path, fresh=fresh, quiet=quiet)
        document = validate_results(results)
        finished(document, partial(all_tables, document))
    return results


def _run(
    study: Study, out: Path, images: Path | str | None, store_path: Path | Place | None, *, fresh: bool, quiet: bool
) -> dict[str, Any]:
    began = time.monotonic()
    devices.resolve(study.device)  # fail early, before hours of embedding
    search_device(study.device)
    store_path = place(store_path) if store_path else store_of(study, out)
    plan = plan_of(study, images, store_path)
    print(describe(plan.source), file=sys.stderr)
    if fresh:
        # all checks precede the deletion
        check_study(study, plan.source, out, store_path, plan.records(), writes_store=False, checks=checks())
        _start_fresh(out, store_path)
        plan = plan_of(study, images or study.images or plan.source.root, store_path)
    outputs.require_own(out, store_path, RUN)
    plan = _checked(study, plan, out, quiet=quiet)
    names = names_of(study.backbones)
    stages = {stage.name: stage.of(study) for stage in registry.stages() if stage.of(study) is not None}
    transformations = plan.pipeline.settings.transformations
    schedule = Schedule(
        names, list(stages), len(plan.records()) * len(transformations), repr((transformations, stages))
    )
    reports = ProvisionalReports(study, out, len(plan.records()), quiet=quiet)
    opened = partial(_opened, study, plan, out, quiet=quiet)
    some = partial(reports.begin, opened, embedding=True)
    early = Early(provisional.PHOTOGRAPHS, some)
    with outputs.locked(out):
        new = not plan.exists
        with schedule.during(EMBED):
            store = _embedded(study, plan, out, early if reports.wanted else None, quiet=quiet)
            if new:
                schedule.keep()
        run = opened()
        run.embedding = Embedding(plan, study.backbones, quiet=quiet)
        if not reports.begun:
            reports.begin(lambda: run)
        for stage in registry.stages():
            with observability.span("run", stage.name, len(run.tables)), schedule.during(stage.name):
                run.results[stage.name] = found = computed(stage, run)
                embed_added(run, stage, found)
                if stage.name in run.recomputed or not found:
                    schedule.keep(others=bool(found))  # this study may have nothing to compute
            reports.after(run, stage)
        run.embedding = None  # frees compiled backbones
        own = labels_of(study.backbones)
        shown = {name for name, found in run.results.items() if found}
        whole = time.monotonic() - began if new and shown <= run.recomputed else None
        results = assemble(
            *(run, study.name),
            note=study.note, threads=study.embed.cores, labels=own, limit=study.limit, wall_seconds=whole,
        )  # fmt: skip
        with observability.span("run", REPORTED), schedule.during(REPORT):
            draw_gallery(plan.source, study, store, out)
            (first, *_) = run.tables.values()
            gallery = current_gallery(store, out, first) if study.gallery else None
            if (before := outputs.unchanged_report(out, stamped(results, gallery))) is not None:
                return before
            save_report(results, out, gallery)
            schedule.keep()
    return results


def report_study(
    store: EmbeddingStore,
    out: Path,
    study: Study | None,
    *,
    images: Path | str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write results.json and the report of an output folder anew from the results in it.

    Args:
        study: what results must have been computed for; None: settings are as stored.
        images: overrides the study's photographs.

    Returns:
        the contents of results.json.

    Raises:
        ConfigError: there are no results.
        StaleError: results are outdated.
    """
    allowed = f"a store with probe or analyze results in {out}"
    if not out.is_dir():
        raise ConfigError("STORE", str(store.path), allowed)
    with outputs.locked(out):
        tables = reported_tables(store, out, study.settings().transformations if study else ())
        if not tables:
            raise ConfigError("STORE", str(store.path), allowed)
        run = Run(store, out, {table.backbone: table for table in tables}, study, quiet=quiet)
        for stage in registry.stages():
            run.results[stage.name] = computed(stage, run) if stage.in_reports else kept(stage, run)
        if study is not None:
            require_elsewhere(study, out, quiet=quiet)
        name, note = (study.name, study.note) if study else (store.path.stem, "")
        threads = (study.embed if study else EmbedConfig()).cores
        own = labels_of(study.backbones) if study else {}
        limit = stated_limit(study, store, images) if study else 0
        results = assemble(run, name, note=note, threads=threads, labels=own, limit=limit)
        shown = study is None or study.gallery
        save_report(results, out, current_gallery(store, out, tables[0]) if shown else None)
    return results


def _opened(study: Study, plan: EmbedPlan, out: Path, *, quiet: bool) -> Run:
    """The run of a study, with the embeddings that its store has now and no results."""
    store = EmbeddingStore.open(plan.store_path)
    tables = open_tables(store, names_of(study.backbones), study.settings().transformations)
    by_name = {table.backbone: table for table in tables}
    checkpoints = {name: choice.checkpoint for choice in study.backbones for name in choice.names}
    return Run(store, out, by_name, study, source=plan.source, checkpoints=checkpoints, quiet=quiet)


def _embedded(study: Study, plan: EmbedPlan, out: Path, early: Early | None, *, quiet: bool) -> EmbeddingStore:
    """Embed by the backbones of a study. Returns the store."""

    def begin() -> None:
        uuid = EmbeddingStore.open(plan.store_path).uuid if catalog.exists(plan.store_path) else ""
        outputs.claim(out, plan.store_path, uuid)

    with observability.span("run", "embed"):
        embed(plan, study.backbones, begin=begin, early=early, quiet=quiet)
    store = EmbeddingStore.open(plan.store_path)
    outputs.claim(out, plan.store_path, store.uuid)
    return store


def _start_fresh(out: Path, store_path: Place) -> None:
    """Delete results and store of an output folder. Raises LockedError if a run is using the store."""
    if catalog.exists(store_path):
        inside = isinstance(store_path, Path) and store_path.resolve() == (out / STORE).resolve()
        if not inside:
            allowed = f"a store in {out}; delete this one manually, or use another"
            raise ConfigError("--fresh", str(store_path), allowed)
        with lock.hold(store_path, lock.new_run_id()):
            pass
    if out.exists():
        with outputs.locked(out):
            outputs.start_fresh(out)


def checks() -> list[Callable[[Study, SplitCounts], list[str]]]:
    """Checks of all stages, before anything is computed."""
    return [_idle, *(stage.check for stage in registry.stages())]


def _idle(study: Study, counts: SplitCounts) -> list[str]:
    """Warn of tables that do nothing, of stages that are off by default."""
    tables = [each for each in registry.stages() if each.name in study.stages and each.switch]
    idle = [each for each in tables if each.of(study) is None and not getattr(each.config(), each.switch)]
    return [f"[{each.name}] does nothing: {each.switch} is empty" for each in idle]


def _checked(study: Study, plan: EmbedPlan, out: Path, *, quiet: bool) -> EmbedPlan:
    """Check a plan against its store and the study; print warnings. Returns the plan."""
    manifest, writes, stored = None, True, set[str]()
    if plan.exists:
        store = EmbeddingStore.open(plan.store_path)
        require_same(store, plan)
        repair(plan, store)
        plan = plan.matched(store, quiet=quiet)
        manifest = store.manifest() if store.has_manifest() else None
        writes = not complete(plan, store, names_of(study.backbones))
        stored = {entry.name for entry in store.backbones()}
    warnings = check_study(
        *(study, plan.source, out, plan.store_path, plan.records()),
        manifest=manifest,
        writes_store=writes,
        checks=[*checks(), costly] if writes else checks(),
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    require_weights(study.backbones, plan.pipeline)
    for stage in registry.stages():
        if isinstance(stage, EmbeddingStage):
            stage.check_networks(study, plan.pipeline, stored)
    return plan


def stamped(results: dict[str, Any], gallery: Path | None) -> dict[str, Any]:
    """Results with the stamp of the gallery that the report shows, and their checksum."""
    if gallery is not None:
        results["identity"] |= outputs.digests(gallery.parent, (gallery.name,))
    results["checksum"] = checksum(results)
    return results


def save_report(results: dict[str, Any], out: Path, gallery: Path | None) -> None:
    """Write ``results.json`` and the report."""
    stamped(results, gallery)
    with outputs.replacing_report(out) as new:
        write_durably(new / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())
        write_report(validate_results(results), new, gallery=gallery, pictures=out)
