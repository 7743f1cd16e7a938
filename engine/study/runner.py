"""Run a study: embed, probe, analyze, shift, report. Complete stages are skipped."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine import devices, observability
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.config import EmbedConfig, Settings, Study, labels_of, names_of
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.preflight import check_study
from substyle.engine.embedding.prepare import PixelPipeline, prepare_backbones
from substyle.engine.embedding.run import complete, embed, embed_compiled, repair, require_same
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.evaluate import resample
from substyle.engine.report.page import ReportFiles, write_report
from substyle.engine.report.tracking import tracked
from substyle.engine.store import catalog, identity, lock
from substyle.engine.store.files import read_object, remove, write_durably, writing
from substyle.engine.store.identity import RUN
from substyle.engine.store.layout import HEADER, DifferentError, slug
from substyle.engine.store.manifest import Fractions
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table, store_facts
from substyle.engine.study import outputs, stages
from substyle.engine.study.adapt import adapt, adaptable, derive
from substyle.engine.study.attack import attack, attackable
from substyle.engine.study.domains import store_path as store_path_of
from substyle.engine.study.domains import transfer
from substyle.engine.study.outputs import (
    RESULTS,
    STORE,
    Note,
    Stamp,
    file_digest,
    finish,
    note_of,
    photographs_digest,
    require_fresh,
)
from substyle.engine.study.similarity import compare
from substyle.engine.study.stages import PROBES, assemble
from substyle.kernels.errors import ConfigError, MissingError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord, Source, SourceConfig, absolute_root, describe, kind_of, open_source
from substyle.pipelines.storage import Place, place

HEAD = "linear"
SHIFT = "shift"
BOOTSTRAP = 2000


def shift(
    folders: Mapping[str, Path | str],
    compiled: Sequence[CompiledBackbone],
    out: Path,
    settings: Settings,
    config: EmbedConfig,
    *,
    study: EmbeddingStore,
    tables: Mapping[str, EmbeddingTable],
    adapted: Sequence[str] = (),
    source: SourceConfig | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score each backbone's linear class probe on other photographs of the same classes (distribution shift).

    Args:
        folders: photographs with classes, by name; classes unknown to the probe are ignored.
        compiled: the compiled backbones of the study.
        out: output folder with the trained probes; embeddings are written to ``out/shift/<name>.zarr``, replacing a
            store of other photographs.
        study: store of the study.
        tables: tables that the probes were trained on, by backbone.
        adapted: adapted backbones, whose embeddings are derived from those of ``compiled``.
        source: source configuration of the study; its applicable fields are used for these photographs.

    Returns:
        ``{"accuracy", "ci95", "images"}`` by backbone and name.

    Raises:
        ConfigError: a folder has none of the probe's classes.
    """
    began = time.perf_counter()
    plain = Settings(settings.seed, settings.canvas, ("identity",), settings.orientation)
    stores = {
        name: _embedded(
            *(f"shift {name}", folder, out / SHIFT / f"{slug(name)}.zarr", compiled, plain, config),
            source=source,
            quiet=quiet,
        )
        for name, folder in folders.items()
    }
    for store in stores.values():
        for name in adapted:
            derive(store, name, quiet=quiet)
    answer: dict[str, dict[str, Any]] = {}
    for backbone in [*(name for each in compiled for name in each.names), *adapted]:
        answer[backbone] = scores = {}
        probe_path = _probe(out, backbone)
        if not probe_path.is_file():
            continue
        probe = Probe.load(probe_path)
        for name, store in stores.items():
            scores[name] = _score(store, backbone, probe, name)
        folder = out / SHIFT / slug(backbone)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "shift.json", json.dumps(scores).encode())
        stamp = _stamp(study, tables[backbone], out, stores, folders)
        finish(folder, stamp, time.perf_counter() - began)
    return answer


def kept_shift(
    study: EmbeddingStore,
    out: Path,
    tables: Mapping[str, EmbeddingTable],
    folders: Mapping[str, Path | str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Load the results of `shift`, by backbone.

    Args:
        folders: the `[shift]` table of the study; default: the folders that were scored.

    Raises:
        StaleError: the results are outdated.
    """
    found: dict[str, dict[str, Any]] = {}
    if folders is not None and not folders:
        return found
    for name, table in tables.items():
        folder = out / SHIFT / slug(name)
        note: Note | None = note_of(folder)
        if note is None:
            continue
        paths = {each: out / SHIFT / f"{slug(each)}.zarr" for each in note.stamp.settings.get("photographs", {})}
        stores = {each: EmbeddingStore.open(path) for each, path in paths.items() if catalog.exists(path)}
        now = _stamp(study, table, out, stores, note.stamp.settings.get("folders", {}) if folders is None else folders)
        require_fresh(folder, note, now, "substyle run with the study")
        found[name] = read_object(folder / "shift.json")
    return found


def _embedded(
    title: str,
    folder: Path | str,
    path: Path,
    compiled: Sequence[CompiledBackbone],
    settings: Settings,
    config: EmbedConfig,
    *,
    source: SourceConfig | None,
    quiet: bool,
    limit: int = 0,
    fractions: Fractions | None = None,
) -> EmbeddingStore:
    """Embed other photographs in a store of their own, replacing a store of other ones."""
    photographs = open_source(folder, (source or SourceConfig()).fitting(kind_of(folder)))
    print(f"{title}: {describe(photographs)}", file=sys.stderr)
    if not catalog.exists(path):
        with writing(path):
            remove(path)  # remainder of an interrupted deletion
    plan = EmbedPlan(photographs, path, PixelPipeline(settings, config), limit, fractions, title=title, only=True)
    try:
        embed_compiled(plan, compiled, quiet=quiet)
    except DifferentError as error:
        # the folder, its bytes or a backbone have changed
        print(f"{title}: {error}; re-embedding", file=sys.stderr)
        with writing(path):
            remove(path / HEADER)  # first: a partly deleted store without its header is not opened
            remove(path)
        embed_compiled(plan, compiled, quiet=quiet)
    return EmbeddingStore.open(path)


def _probe(out: Path, backbone: str) -> Path:
    return out / PROBES / slug(backbone) / f"semantic-{HEAD}.safetensors"


def _stamp(
    study: EmbeddingStore,
    table: EmbeddingTable,
    out: Path,
    stores: Mapping[str, EmbeddingStore],
    folders: Mapping[str, Path | str],
) -> Stamp:
    photographs = {
        name: photographs_digest(open_table(store, table.backbone))
        for name, store in stores.items()
        if any(entry.name == table.backbone for entry in store.backbones())
    }
    settings = {
        "photographs": photographs,
        "probe": file_digest(_probe(out, table.backbone)),
        "folders": {name: absolute_root(str(folder)) for name, folder in folders.items()},
    }
    return Stamp.of(study, table, settings)


def _score(store: EmbeddingStore, backbone: str, probe: Probe, name: str) -> dict[str, Any]:
    table = open_table(store, backbone)
    classes = probe.labels["class"]
    known = {label: classes.index(text) for label, text in enumerate(table.class_names) if text in classes}
    rows = np.flatnonzero(np.isin(table.label_N, list(known)))
    if not len(rows):
        raise ConfigError(
            f"shift.{name}", ", ".join(table.class_names) or "no classes", f"some of {', '.join(classes)}"
        )
    truth = np.array([known[label] for label in table.label_N[rows].tolist()])
    right_N = (probe.predict(table.take(0, rows)).argmax(axis=1) == truth).astype(np.float64)
    accuracy = resample(right_N[None], BOOTSTRAP, store.settings.seed).one(0)
    return {"accuracy": accuracy.number, "ci95": accuracy.ci95, "images": len(rows)}


def store_of(study: Study, out: Path) -> Place:
    """Store of a study's embeddings."""
    return place(study.store, "store") if study.store else out / STORE


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
        images: overrides the study's photographs.
        store_path: existing or new store; default `store_of`.
        fresh: delete results and store in ``out`` first.

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
    study: Study, out: Path, images: Path | str | None, store_path: Place | None, *, fresh: bool, quiet: bool
) -> dict[str, Any]:
    devices.resolve(study.probes.device, prefix="probes.")  # fail early, before hours of embedding
    store_path = store_path or store_of(study, out)
    plan = plan_of(study, images, store_path)
    print(describe(plan.source), file=sys.stderr)
    if fresh:
        # all checks precede the deletion
        check_study(study, plan.source, out, store_path, plan.records(), writes_store=False)
        _start_fresh(out, store_path)
        plan = plan_of(study, images or study.images or plan.source.root, store_path)
    outputs.require_own(out, store_path, RUN)
    plan = _checked(study, plan, out, quiet=quiet)

    def begin() -> None:
        outputs.discard_report(out)  # it may be outdated; it is rewritten from the results of the stages
        uuid = EmbeddingStore.open(store_path).uuid if catalog.exists(store_path) else ""
        outputs.claim(out, store_path, uuid)

    with observability.span("run", "embed"):
        embed(plan, study.backbones, begin=begin, quiet=quiet)
    store = EmbeddingStore.open(store_path)
    outputs.claim(out, store_path, store.uuid)
    names = names_of(study.backbones)
    chosen = study.settings().transformations
    adapted: list[str] = []
    if study.adapt.methods:
        bases = adaptable(store, names)
        with observability.span("run", "adapt", len(bases)):
            adapted = adapt(store, out, study.adapt, study.probes, backbones=bases, transformations=chosen, quiet=quiet)
        names = [*names, *adapted]
    with observability.span("run", "probe", len(names)):
        outcomes = stages.probe(store, out, study.probes, backbones=names, transformations=chosen, quiet=quiet)
    with observability.span("run", "analyze", len(names)):
        analyses = stages.analysis(store, out, study.analysis, backbones=names, transformations=chosen, quiet=quiet)
        similarity = compare(store, out, study.analysis, backbones=names, transformations=chosen, quiet=quiet)
    parts: dict[str, Mapping[str, Any]] = {"label": labels_of(study.backbones)}
    if study.attack.attacks:
        targets = study.attack.backbones or attackable(store, names_of(study.backbones))
        with observability.span("run", "attack", len(targets)):
            parts["attack"] = attack(
                *(store, out, study.attack),
                backbones=targets,
                transformations=chosen,
                source=plan.source,
                checkpoints={name: choice.checkpoint for choice in study.backbones for name in choice.names},
                device=study.probes.device,
                quiet=quiet,
            )
    tables = stages.tables(store, names, chosen)
    compiled = prepare_backbones(study.backbones, plan.samples(), quiet=quiet) if study.shift or study.domains else []
    if study.domains:
        stores = {
            name: _embedded(
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
            *(stores, study.domains, out, study.probes),
            study=store,
            own=study.name,
            tables={table.backbone: table for table in tables},
            quiet=quiet,
        )
    if study.shift:
        parts["shift"] = shift(
            study.shift,
            compiled,
            out,
            plan.pipeline.settings,
            study.embed,
            study=store,
            tables={table.backbone: table for table in tables},
            adapted=adapted,
            source=study.source,
            quiet=quiet,
        )
    results = assemble(
        *(study.name, store, out, outcomes, analyses, parts),
        tables=tables,
        threads=study.embed.cores,
        similarity=similarity,
    )
    with observability.span("run", "gallery and report"):
        draw_gallery(plan.source, study, store, out)
        save_report(results, out, stages.current_gallery(store, out, tables[0]) if study.gallery else None)
    return results


def _start_fresh(out: Path, store_path: Place) -> None:
    """Delete results and store of an output folder. Raises LockedError if a run is using the store."""
    if catalog.exists(store_path):
        inside = isinstance(store_path, Path) and store_path.resolve() == (out / STORE).resolve()
        if not inside:
            allowed = f"a store in {out}; delete this one manually, or use another"
            raise ConfigError("--fresh", str(store_path), allowed)
        with lock.hold(store_path, lock.new_run_id()):
            pass
    outputs.start_fresh(out)


def _checked(study: Study, plan: EmbedPlan, out: Path, *, quiet: bool) -> EmbedPlan:
    """Check a plan against its store and the study; print warnings. Returns the plan."""
    manifest, writes = None, True
    if plan.exists:
        store = EmbeddingStore.open(plan.store_path)
        require_same(store, plan)
        repair(plan, store)
        plan = plan.matched(store, quiet=quiet)
        manifest = store.manifest() if store.has_manifest() else None
        writes = not complete(plan, store, names_of(study.backbones))
    warnings = check_study(
        *(study, plan.source, out, plan.store_path, plan.records()), manifest=manifest, writes_store=writes
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return plan


_CANDIDATES = 8  # photographs read per photograph of the gallery


def draw_gallery(source: Source, study: Study, store: EmbeddingStore, out: Path) -> None:
    """Draw variants of a few photographs of the store, the most detailed of a seeded choice, for the report."""
    quarantined = store_facts(store).quarantined
    valid = set(store.manifest().keys) - set(quarantined)
    valid_records = [record for record in source.records if record.key in valid]
    order = np.argsort(image_keys(study.seed, [f"gallery:{record.key}" for record in valid_records]))
    candidates = list(islice(_readable(valid_records[i] for i in order.tolist()), _CANDIDATES * study.gallery))
    # photographs with much detail compress badly, and show what transformations do
    chosen = sorted(candidates, key=lambda record: len(record.read()), reverse=True)[: study.gallery]
    if chosen:
        stages.gallery(store, chosen, out, study.settings(), threads=study.embed.cores)


def _readable(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Records that are still readable, with their bytes; the source may have changed since embedding."""
    for record in records:
        try:
            data = record.read()
        except OSError:
            continue
        yield dataclasses.replace(record, read=partial(bytes, data))


def save_report(results: dict[str, Any], out: Path, gallery: Path | None) -> ReportFiles:
    """Write ``results.json`` and the report."""
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())
    return write_report(results, out, gallery=gallery)
