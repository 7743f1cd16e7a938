"""A whole study: embed, probe, analyze, shift, report; what is complete is skipped."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine import identity, outputs, stages, target, trace
from substyle.engine.embed import complete, embed, repair, require_same
from substyle.engine.identity import RUN
from substyle.engine.outputs import RESULTS, STORE
from substyle.engine.plan import EmbedPlan
from substyle.engine.preflight import check_study
from substyle.engine.preparation import prepare_backbones
from substyle.engine.report.page import ReportFiles, write_report
from substyle.engine.results import assemble
from substyle.engine.shift import shift
from substyle.engine.store import header, lock
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.files import write_durably
from substyle.engine.store.load import store_facts
from substyle.engine.study import Study
from substyle.engine.workshop import Workshop
from substyle.kernels.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.places import Place, place
from substyle.pipelines.sources import ImageRecord, Source, describe, open_source


def store_of(study: Study, out: Path) -> Place:
    """Where a study keeps its embeddings."""
    return place(study.store, "store") if study.store else out / STORE


def plan_of(study: Study, images: Path | str | None, store_path: Place) -> EmbedPlan:
    """What a study embeds: the photographs that it or the caller names, else those of its store.

    Raises ConfigError when nobody names any.
    """
    photographs = images or study.images
    there = EmbeddingStore.open(store_path) if header.exists(store_path) else None
    if photographs is not None:
        source = open_source(photographs, study.source)
    elif there is not None and there.has_manifest():
        source = identity.open_own(there)
    else:
        raise ConfigError("images", "nothing", "photographs, in the study file or as --images PATH")
    config = study.executor.here(study.embed, there.settings.shard_rows if there else 0)
    return EmbedPlan(
        source,
        store_path,
        Workshop(study.settings(), config),
        study.limit,
        study.splits.fractions,
        executor=study.executor,
        only=True,
        ways=RUN,
        asked=(study.embed.device, study.embed.runtime),
    )


def run_study(
    study: Study,
    out: Path,
    *,
    images: Path | str | None = None,
    store_path: Place | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a study; writes its store, ``out/results.json``, ``out/report.html`` and tables.

    Args:
        images: photographs, instead of the study's.
        store_path: where the store is or will be; None takes `store_of`.
        fresh: delete the results and the store in ``out`` first.

    Returns:
        the content of results.json.

    Raises:
        PhotographsError: the store was made from other photographs, or with another seed or canvas.
    """
    target.resolve(study.probes.device, prefix="probes.")  # refused here, and not after hours of embedding
    store_path = store_path or store_of(study, out)
    plan = plan_of(study, images, store_path)
    print(describe(plan.source), file=sys.stderr)
    if fresh:
        # nothing is deleted before all that can be checked has been
        check_study(study, plan.source, out, store_path, plan.records(), writes_store=False)
        _start_fresh(out, store_path)
        plan = plan_of(study, images or study.images or plan.source.root, store_path)
    outputs.require_own(out, store_path, RUN)
    plan = _checked(study, plan, out, quiet=quiet)

    def begin() -> None:
        outputs.discard_report(out)  # it may not be what the study says now, and is written again from what is kept
        uuid = EmbeddingStore.open(store_path).uuid if header.exists(store_path) else ""
        outputs.claim(out, store_path, uuid)

    with trace.span("run", "embed"):
        embed(plan, study.backbones, begin=begin, quiet=quiet)
    store = EmbeddingStore.open(store_path)
    outputs.claim(out, store_path, store.uuid)
    names = [choice.name for choice in study.backbones]
    chosen = study.settings().transformations
    with trace.span("run", "probe", len(names)):
        outcomes = stages.probe(store, out, study.probes, backbones=names, transformations=chosen, quiet=quiet)
    with trace.span("run", "analyze", len(names)):
        analyses = stages.analysis(store, out, study.analysis, backbones=names, transformations=chosen, quiet=quiet)
    tables = stages.tables(store, names, chosen)
    shifts: Mapping[str, Mapping[str, Any]] = {}
    if study.shift:
        compiled = prepare_backbones(study.backbones, plan.samples(), quiet=quiet)
        shifts = shift(
            study.shift,
            compiled,
            out,
            plan.workshop.settings,
            study.embed,
            study=store,
            tables={table.backbone: table for table in tables},
            source=study.source,
            quiet=quiet,
        )
    results = assemble(study.name, store, out, outcomes, analyses, shifts, tables=tables, threads=study.embed.cores)
    with trace.span("run", "gallery and report"):
        draw_gallery(plan.source, study, store, out)
        save_report(results, out, stages.current_gallery(store, out, tables[0]) if study.gallery else None)
    return results


def _start_fresh(out: Path, store_path: Place) -> None:
    """Delete the results and the store of a folder. Raises LockedError where a run is filling the store."""
    if header.exists(store_path):
        inside = isinstance(store_path, Path) and store_path.resolve() == (out / STORE).resolve()
        if not inside:
            allowed = f"a store in {out}; delete this one yourself, or name another"
            raise ConfigError("--fresh", str(store_path), allowed)
        with lock.hold(store_path, lock.new_run_id()):
            pass
    outputs.start_fresh(out)


def _checked(study: Study, plan: EmbedPlan, out: Path, *, quiet: bool) -> EmbedPlan:
    """The plan, once its photographs are known to be the store's and nothing speaks against the study."""
    manifest, writes = None, True
    if plan.exists:
        store = EmbeddingStore.open(plan.store_path)
        require_same(store, plan)
        repair(plan)
        plan = plan.matched(store, quiet=quiet)
        manifest = store.manifest() if store.has_manifest() else None
        writes = not complete(plan, [choice.name for choice in study.backbones])
    warnings = check_study(
        *(study, plan.source, out, plan.store_path, plan.records()), manifest=manifest, writes_store=writes
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return plan


def draw_gallery(source: Source, study: Study, store: EmbeddingStore, out: Path) -> None:
    """Pictures of the variants of a few photographs of the store, the same ones each time, for the report."""
    quarantined = store_facts(store).quarantined
    valid = set(store.manifest().keys) - set(quarantined)
    there = [record for record in source.records if record.key in valid]
    order = np.argsort(image_keys(study.seed, [f"gallery:{record.key}" for record in there]))
    chosen = list(islice(_readable(there[i] for i in order.tolist()), study.gallery))
    if chosen:
        stages.gallery(store, chosen, out, study.settings(), threads=study.embed.cores)


def _readable(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Those that can still be read, with their bytes: a source may have changed since it was embedded."""
    for record in records:
        try:
            data = record.read()
        except OSError:
            continue
        yield dataclasses.replace(record, read=partial(bytes, data))


def save_report(results: dict[str, Any], out: Path, gallery: Path | None) -> ReportFiles:
    """Write ``results.json`` and the report beside it."""
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())
    return write_report(results, out, gallery=gallery)
