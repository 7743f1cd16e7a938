"""Run a study: embed, probe, analyze, shift, report. Complete stages are skipped."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from substyle.engine import devices, observability
from substyle.engine.analysis.neighbors import search_device
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.config import HERE, BackboneChoice, EmbedConfig, Study, labels_of, names_of
from substyle.engine.devices import AUTO
from substyle.engine.embedding.plan import EmbedPlan, definitions_of
from substyle.engine.embedding.preflight import SplitCounts, check_study
from substyle.engine.embedding.prepare import PixelPipeline, require_asked
from substyle.engine.embedding.run import complete, embed, repair, require_embedded, require_same
from substyle.engine.report.page import ReportFiles
from substyle.engine.report.tracking import tracked
from substyle.engine.results.read import validate_results
from substyle.engine.stages import registry
from substyle.engine.stages.elsewhere import plan_elsewhere
from substyle.engine.stages.pictures import current_gallery, draw_gallery
from substyle.engine.stages.stage import Embedding, Run
from substyle.engine.stages.stamp import checksum
from substyle.engine.stages.tables import reported_tables
from substyle.engine.stages.tables import tables as open_tables
from substyle.engine.stages.training import adapt, adaptable, check_training, finetune, load_trainable
from substyle.engine.store import catalog, identity, lock
from substyle.engine.store.files import write_durably
from substyle.engine.store.identity import RUN, PhotographsError, Remedies
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs
from substyle.engine.study.document import assemble
from substyle.engine.study.outputs import RESULTS, STORE
from substyle.engine.study.report import all_tables, write_report
from substyle.kernels.errors import ConfigError, MissingError
from substyle.kernels.files import inside
from substyle.pipelines.sources import absolute_root, describe, open_source
from substyle.pipelines.storage import Place, is_remote, place


def store_of(study: Study, out: Path) -> Place:
    """Store of a study's embeddings. Raises UnsafeFileError if the one in the output folder is a link."""
    return place(study.store, "store") if study.store else place(inside(out, STORE))


def plan_of(study: Study, images: Path | str | None, store_path: Place) -> EmbedPlan:
    """Embedding plan of a study: photographs given by the caller or the study, else those of its store.

    Raises:
        MissingError: no photographs are given and there is no store.
    """
    photographs = images or study.images
    existing = EmbeddingStore.open(store_path) if catalog.exists(store_path) else None
    if photographs is not None:
        source = open_source(photographs, study.source)
    elif existing is not None and existing.has_manifest():
        source = identity.open_own(existing)
    else:
        raise MissingError("images", "set it in the study file or pass --images PATH")
    config = study.executor.here(study.embed, existing.settings.shard_rows if existing else 0)
    return EmbedPlan(
        source,
        store_path,
        PixelPipeline(study.settings(), config),
        study.limit,
        study.splits.fractions,
        executor=study.executor,
        only=True,
        remedies=RUN,
        asked=(study.embed.device, study.embed.runtime),
    )


STUDY = Remedies(*3 * ("run substyle run with the study, into another --out if the store is to be kept",))


def require_study(
    study: Study, store: EmbeddingStore, images: Path | str | None = None, *, quiet: bool = False
) -> None:
    """Check that a store has the embeddings that a study asks for now.

    Photographs are compared if the study or ``images`` names them. Of photographs that are gone, the path is compared.

    Raises:
        PhotographsError: the store has other photographs, labels, splits or settings, or more or fewer photographs.
        DifferentError: a transformation or a backbone has changed.
    """
    # nothing is computed here, so the study's devices are not needed
    own = replace(study, embed=replace(study.embed, device="cpu", runtime="auto"), executor=HERE)
    named = images or study.images
    entry = store.manifest().sources[0]
    if named is not None and _gone(named):
        if absolute_root(str(named)) != entry.root:
            raise PhotographsError(f"{store.path}: embedded from {entry.root}, not {named}; {STUDY.other}")
        print(f"{named}: not found, so its photographs are not compared with {store.path}", file=sys.stderr)
        named = None
    if named is None:
        pipeline = PixelPipeline(own.settings(), own.embed)
        store.require_definitions(definitions_of(pipeline.settings.transformations))
    else:
        plan = replace(plan_of(own, named, store.path), remedies=STUDY)
        require_same(store, plan)
        require_embedded(plan, store, quiet=quiet)
        pipeline = plan.pipeline
    stored = {entry.name for entry in store.backbones()}
    for choice in (each for each in own.backbones if stored.issuperset(each.names)):
        try:
            require_asked(store, [choice], pipeline, AUTO, AUTO)
        except (ConfigError, WeightsError) as error:  # its files are gone, or its library
            print(f"{choice.name}: not compared with {store.path}: {error}", file=sys.stderr)


def _gone(photographs: Path | str) -> bool:
    """Whether photographs are no longer where they were; patterns of file names are not looked up."""
    return not is_remote(photographs) and not re.search(r"[*?\[{]", str(photographs)) and not Path(photographs).exists()


def require_elsewhere(study: Study, out: Path, *, quiet: bool = False) -> None:
    """Check that stages' stores of other photographs have these photographs as they are now.

    Raises as `require_study`.
    """
    embed = replace(study.embed, device="cpu", runtime="auto")
    for each in (each for stage in registry.stages() for each in stage.elsewhere(study, out)):
        photographs, path = each.photographs, each.path
        if not catalog.exists(path):
            continue
        store = EmbeddingStore.open(path)
        if photographs is None:  # the study's own, which are compared with the study's store
            store.require_definitions(definitions_of(each.settings.transformations))
        elif _gone(photographs):
            print(
                f"{each.title}: {photographs} not found, so its photographs are not compared with {path}",
                file=sys.stderr,
            )
        else:
            require_embedded(replace(plan_elsewhere(each, study, embed), remedies=STUDY), store, quiet=quiet)


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
    devices.resolve(study.probes.device, prefix="probes.")  # fail early, before hours of embedding
    search_device(study.analysis.device)
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
    with outputs.locked(out):
        store, choices = _embedded(study, plan, out, quiet=quiet)
        chosen = study.settings().transformations
        adapted: list[str] = []
        if study.adapt.methods:
            bases = adaptable(store, names_of(study.backbones))
            with observability.span("run", "adapt", len(bases)):
                adapted = adapt(
                    store, out, study.adapt, study.probes, backbones=bases, transformations=chosen, quiet=quiet
                )
        tables = {table.backbone: table for table in open_tables(store, [*names_of(choices), *adapted], chosen)}
        embedding = Embedding(plan, choices, adapted, quiet)
        checkpoints = {name: choice.checkpoint for choice in study.backbones for name in choice.names}
        run = Run(store, out, tables, study, {}, embedding, plan.source, checkpoints, quiet=quiet)
        for stage in registry.stages():
            with observability.span("run", stage.name, len(tables)):
                run.results[stage.name] = stage.computed(run)
        run.embedding = None  # frees compiled backbones
        results = assemble(run, study.name, threads=study.embed.cores, labels=labels_of(study.backbones))
        with observability.span("run", "gallery and report"):
            draw_gallery(plan.source, study, store, out)
            (first, *_) = tables.values()
            save_report(results, out, current_gallery(store, out, first) if study.gallery else None)
    return results


def report_study(store: EmbeddingStore, out: Path, study: Study | None, *, quiet: bool = False) -> dict[str, Any]:
    """Write results.json and the report of an output folder anew from the results in it.

    Args:
        study: what results must have been computed for; None: settings are as stored.

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
            run.results[stage.name] = stage.computed(run) if stage.in_reports else stage.kept(run)
        if study is not None:
            require_elsewhere(study, out, quiet=quiet)
        name = study.name if study else store.path.stem
        threads = (study.embed if study else EmbedConfig()).cores
        results = assemble(run, name, threads=threads, labels=labels_of(study.backbones) if study else {})
        shown = study is None or study.gallery
        save_report(results, out, current_gallery(store, out, tables[0]) if shown else None)
    return results


def _embedded(study: Study, plan: EmbedPlan, out: Path, *, quiet: bool) -> tuple[EmbeddingStore, list[BackboneChoice]]:
    """Embed by the backbones of a study, then by fine-tuned ones. Returns the store and all of these backbones."""

    def begin() -> None:
        outputs.discard_report(out)  # it may be outdated; it is rewritten from the results of the stages
        uuid = EmbeddingStore.open(plan.store_path).uuid if catalog.exists(plan.store_path) else ""
        outputs.claim(out, plan.store_path, uuid)

    with observability.span("run", "embed"):
        embed(plan, study.backbones, begin=begin, quiet=quiet)
    store = EmbeddingStore.open(plan.store_path)
    outputs.claim(out, plan.store_path, store.uuid)
    choices = list(study.backbones)
    if study.finetune.backbones:
        records = plan.readable()
        with observability.span("run", "finetune", len(study.finetune.backbones)):
            tuned = finetune(store, out, study.finetune, plan.pipeline, records, backbones=study.backbones, quiet=quiet)
            again = replace(plan, match=replace(plan.match, state=None))  # matched with what the store has now
            embed(again, tuned, quiet=quiet)
        choices += tuned
    return store, choices


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
    return [check_training, *(stage.check for stage in registry.stages())]


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
        checks=checks(),
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for choice in study.backbones:
        if choice.name in study.finetune.backbones and choice.name not in stored:
            load_trainable(choice, plan.pipeline)  # fails before hours of embedding
    return plan


def save_report(results: dict[str, Any], out: Path, gallery: Path | None) -> ReportFiles:
    """Write ``results.json`` and the report."""
    outputs.discard_report(out)  # it may have tables and figures of other sections
    out.mkdir(parents=True, exist_ok=True)
    results["checksum"] = checksum(results)
    write_durably(out / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())
    return write_report(validate_results(results), out, gallery=gallery)
