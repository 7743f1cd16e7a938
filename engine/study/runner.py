"""Run a study: embed, probe, analyze, shift, report. Complete stages are skipped."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from substyle.engine import devices, observability
from substyle.engine.analysis.neighbors import search_device
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.config import HERE, BackboneChoice, Study, labels_of, names_of
from substyle.engine.devices import AUTO
from substyle.engine.embedding.plan import EmbedPlan, definitions_of
from substyle.engine.embedding.preflight import check_study
from substyle.engine.embedding.prepare import PixelPipeline, prepare_backbones, require_asked
from substyle.engine.embedding.run import complete, embed, repair, require_embedded, require_same
from substyle.engine.report.page import ReportFiles, write_report
from substyle.engine.report.tracking import tracked
from substyle.engine.store import catalog, identity, lock
from substyle.engine.store.files import write_durably
from substyle.engine.store.identity import RUN, PhotographsError, Remedies
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study import outputs, stages
from substyle.engine.study.attack import attack, attackable
from substyle.engine.study.domains import store_path as store_path_of
from substyle.engine.study.domains import transfer
from substyle.engine.study.outputs import RESULTS, STORE
from substyle.engine.study.pictures import current_gallery, draw_gallery, mistakes
from substyle.engine.study.shift import embedded, kept_replicates, plan_elsewhere, shift, shift_path, shifts_of
from substyle.engine.study.similarity import compare
from substyle.engine.study.stages import assemble
from substyle.engine.study.train import adapt, adaptable, derive, finetune, load_trainable
from substyle.kernels.errors import ConfigError, MissingError
from substyle.kernels.files import inside
from substyle.pipelines.sources import absolute_root, describe, open_source
from substyle.pipelines.storage import Place, is_remote, place
from substyle.pipelines.transforms.registry import suite


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
        ways=RUN,
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
        plan = replace(plan_of(own, named, store.path), ways=STUDY)
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
    """Check that stores of domains and shifts in an output folder have the photographs of a study as they are now.

    Raises as `require_study`.
    """
    own, embed = study.settings(), replace(study.embed, device="cpu", runtime="auto")
    plain = replace(own, transformations=("identity",))
    places = [(f"domain {n}", folder, store_path_of(out, n), own, study.limit) for n, folder in study.domains.items()]
    places += [(f"shift {n}", folder, shift_path(out, n), plain, 0) for n, folder in study.shift.items()]
    for title, folder, path, settings, limit in places:
        if not catalog.exists(path):
            continue
        if _gone(folder):
            print(f"{title}: {folder} not found, so its photographs are not compared with {path}", file=sys.stderr)
            continue
        plan = plan_elsewhere(title, folder, path, settings, embed, source=study.source, limit=limit)
        require_embedded(replace(plan, ways=STUDY), EmbeddingStore.open(path), quiet=quiet)
    if study.corruptions and catalog.exists(path := shift_path(out, study.corruptions)):
        EmbeddingStore.open(path).require_definitions(definitions_of(suite(study.corruptions)))


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
        finished(results)
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
        check_study(study, plan.source, out, store_path, plan.records(), writes_store=False)
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
        tables = stages.tables(store, [*names_of(choices), *adapted], chosen)
        with observability.span("run", "probe", len(tables)):
            outcomes = stages.probe(store, out, study.probes, tables, quiet=quiet)
        with observability.span("run", "analyze", len(tables)):
            analyses = stages.analysis(store, out, study.analysis, tables, quiet=quiet)
            similarity = compare(store, out, study.analysis, tables, quiet=quiet)
        parts: dict[str, Mapping[str, Any]] = {"label": labels_of(study.backbones)}
        if study.attack.attacks:
            targets = study.attack.backbones or attackable(store, names_of(study.backbones))
            with observability.span("run", "attack", len(targets)):
                parts["attack"] = attack(
                    *(store, out, study.attack),
                    backbones=targets,
                    probed=names_of(study.backbones),
                    transformations=chosen,
                    source=plan.source,
                    checkpoints={name: choice.checkpoint for choice in study.backbones for name in choice.names},
                    device=study.probes.device,
                    quiet=quiet,
                )
        parts |= _elsewhere(study, plan, store, out, choices, adapted, tables, quiet=quiet)
        if study.gallery:
            parts["mistakes"] = mistakes(store, out, tables)
        results = assemble(
            *(study.name, store, out, outcomes, analyses, parts),
            tables=tables,
            threads=study.embed.cores,
            similarity=similarity,
            shifted=kept_replicates(out, parts.get("shift", {})),
        )
        with observability.span("run", "gallery and report"):
            draw_gallery(plan.source, study, store, out)
            save_report(results, out, current_gallery(store, out, tables[0]) if study.gallery else None)
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


def _elsewhere(
    study: Study,
    plan: EmbedPlan,
    store: EmbeddingStore,
    out: Path,
    choices: Sequence[BackboneChoice],
    adapted: Sequence[str],
    tables: Sequence[EmbeddingTable],
    *,
    quiet: bool,
) -> dict[str, Mapping[str, Any]]:
    """Score probes on photographs of other domains and after a shift, by backbone."""
    parts: dict[str, Mapping[str, Any]] = {}
    if not (shifts_of(study) or study.domains):
        return parts
    compiled = prepare_backbones(choices, plan.samples(), quiet=quiet)
    by_backbone = {table.backbone: table for table in tables}
    if study.domains:
        stores = {
            name: embedded(
                *(f"domain {name}", folder, store_path_of(out, name), compiled, plan.pipeline.settings, study.embed),
                source=study.source,
                quiet=quiet,
                limit=study.limit,
                fractions=study.splits.fractions,
            )
            for name, folder in study.domains.items()
        }
        for each in stores.values():
            for name in adapted:
                derive(each, name, quiet=quiet)
        parts["domains"] = transfer(
            *(stores, study.domains, out, study.probes), study=store, own=study.name, tables=by_backbone, quiet=quiet
        )
    if shifts_of(study):
        parts["shift"] = shift(
            *(shifts_of(study), compiled, out, plan.pipeline.settings, study.embed),
            study=store,
            tables=by_backbone,
            own=plan.source,
            analysis=study.analysis,
            adapted=adapted,
            source=study.source,
            quiet=quiet,
        )
    return parts


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
        *(study, plan.source, out, plan.store_path, plan.records()), manifest=manifest, writes_store=writes
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
    results["checksum"] = outputs.checksum(results)
    write_durably(out / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())
    return write_report(results, out, gallery=gallery)
