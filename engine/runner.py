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

from substyle.engine import stages, target, trace
from substyle.engine.embed import embed
from substyle.engine.plan import EmbedPlan
from substyle.engine.preparation import prepare_backbones
from substyle.engine.probes.outcome import ProbeOutcome
from substyle.engine.report.page import ReportFiles, write_report
from substyle.engine.results import assemble
from substyle.engine.shift import shift
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.files import read_json, write_durably
from substyle.engine.store.layout import METADATA
from substyle.engine.store.load import store_facts
from substyle.engine.study import Study
from substyle.engine.workshop import Workshop
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines.places import Place, place
from substyle.pipelines.sources import ImageRecord, Source, describe, open_source

STORE, RESULTS = "store.zarr", "results.json"


def store_of(study: Study, out: Path) -> Place:
    """Where a study keeps its embeddings."""
    return place(study.store, "store") if study.store else out / STORE


def plan_of(study: Study, images: Path | str | None, store_path: Place) -> EmbedPlan:
    """What a study embeds. Raises ConfigError when neither the study nor the caller names images."""
    photographs = images or study.images
    if photographs is None:
        raise ConfigError("images", "nothing", "photographs, in the study file or as --images PATH")
    there = EmbeddingStore.open(store_path) if (store_path / METADATA).is_file() else None
    config = study.executor.here(study.embed, there.settings.shard_rows if there else 0)
    workshop, source = Workshop(study.settings(), config), open_source(photographs, study.source)
    return EmbedPlan(source, store_path, workshop, study.limit, study.splits.fractions, executor=study.executor)


def run_study(
    study: Study,
    out: Path,
    *,
    images: Path | str | None = None,
    store_path: Place | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a study; writes its store, ``out/results.json``, ``out/report.html`` and tables.

    Args:
        images: photographs, instead of the study's.
        store_path: where the store is or will be; None takes `store_of`.

    Returns:
        the content of results.json.
    """
    target.resolve(study.probes.device, prefix="probes.")  # refused here, and not after hours of embedding
    store_path = store_path or store_of(study, out)
    plan = plan_of(study, images, store_path)
    print(describe(plan.source), file=sys.stderr)
    with trace.span("run", "embed"):
        embed(plan, study.backbones, quiet=quiet)
    store = EmbeddingStore.open(store_path)
    names = [choice.name for choice in study.backbones]
    with trace.span("run", "probe", len(names)):
        outcomes = stages.probe(store, out, study.probes, backbones=names, quiet=quiet)
    with trace.span("run", "analyze", len(names)):
        analyses = stages.analysis(store, out, study.analysis, backbones=names, quiet=quiet)
    shifts: Mapping[str, Mapping[str, Any]] = {}
    if study.shift:
        compiled = prepare_backbones(study.backbones, plan.samples(), quiet=quiet)
        shifts = shift(
            study.shift, compiled, out, plan.workshop.settings, study.embed, source=study.source, quiet=quiet
        )
    results = assemble(study.name, store, out, outcomes, analyses, shifts, threads=study.embed.cores)
    with trace.span("run", "gallery and report"):
        draw_gallery(plan.source, study, store, out)
        save_report(results, out)
    return results


def draw_gallery(source: Source, study: Study, store: EmbeddingStore, out: Path) -> None:
    """Pictures of the variants of a few photographs of the store, the same ones each time, for the report."""
    quarantined = store_facts(store).quarantined
    valid = set(store.manifest().keys) - set(quarantined)
    there = [record for record in source.records if record.key in valid]
    order = np.argsort(image_keys(study.seed, [f"gallery:{record.key}" for record in there]))
    chosen = list(islice(_readable(there[i] for i in order.tolist()), study.gallery))
    if chosen:
        stages.gallery(chosen, out, study.settings(), threads=study.embed.cores)


def _readable(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Those that can still be read, with their bytes: a source may have changed since it was embedded."""
    for record in records:
        try:
            data = record.read()
        except OSError:
            continue
        yield dataclasses.replace(record, read=partial(bytes, data))


def save_report(results: dict[str, Any], out: Path) -> ReportFiles:
    """Write ``results.json`` and the report beside it."""
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())
    gallery = out / "gallery"
    return write_report(results, out, gallery=gallery if gallery.is_dir() else None)


def kept_results(store: EmbeddingStore, out: Path) -> tuple[dict[str, ProbeOutcome], dict[str, Any], dict[str, Any]]:
    """What probe, analyze and shift have left in a folder, by backbone."""
    outcomes, analyses, shifts = {}, {}, {}
    for entry in store.backbones():
        folder = out / "probes" / entry.slug
        if stages.finished(folder):
            outcomes[entry.name] = ProbeOutcome.load(folder)
        folder = out / "analysis" / entry.slug
        if stages.finished(folder):
            analyses[entry.name] = _kept(folder / "analysis.json")
        path = out / "shift" / f"{entry.slug}.json"
        if path.is_file():
            shifts[entry.name] = _kept(path)
    return outcomes, analyses, shifts


def _kept(path: Path) -> dict[str, Any]:
    kept = read_json(path)
    if not isinstance(kept, dict):
        raise SubstyleError(f"{path}: is not what a stage writes")
    return kept
