"""`run`, `probe`, `analyze`, `report`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from substyle.engine import outputs, stages
from substyle.engine.analysis.config import AnalysisConfig
from substyle.engine.commands.executor import executor_config
from substyle.engine.commands.folders import default_out, out_of
from substyle.engine.commands.photographs import source_config
from substyle.engine.commands.studies import is_study, study_asked
from substyle.engine.embed_config import EmbedConfig
from substyle.engine.identity import PhotographsError, Ways
from substyle.engine.outputs import RESULTS
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.report.headline import headline_table
from substyle.engine.results import assemble
from substyle.engine.runner import run_study, save_report, store_of
from substyle.engine.shift import kept_shift
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.study import Study, load_study
from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import Place


def run(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle run STUDY.toml`, or `substyle run IMAGES --backbone NAME`."""
    study = study_asked(options)
    study = dataclasses.replace(study, source=source_config(options, study.source))
    if options.limit is not None:
        study = dataclasses.replace(study, limit=options.limit)
    study = dataclasses.replace(study, executor=executor_config(options, study.executor))
    out: Path = options.out or (Path("runs") / study.name if is_study(options) else default_out(study.name))
    store = options.store or store_of(study, out)
    results = run_study(study, out, images=options.images, store_path=store, fresh=options.fresh, quiet=options.quiet)
    return _show(results, out, store)


def probe(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle probe STORE`."""
    store, out, study = _stage(options)
    config = study.probes if study else ProbeConfig(seed=store.settings.seed)
    outputs.claim(out, store.path, store.uuid)
    outcomes = stages.probe(
        store, out, config, backbones=options.backbone, transformations=_suite(study), quiet=options.quiet
    )
    for name, outcome in outcomes.items():
        for task, heads in outcome.results.items():
            for head, score in heads.items() if isinstance(heads, dict) else ():
                value = _score(score)
                if value is not None:
                    print(f"{name}  {task}  {head}  {value:.3f}")
    return {"out": str(out), "backbones": {name: outcome.results for name, outcome in outcomes.items()}}


def analyze(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle analyze STORE`."""
    store, out, study = _stage(options)
    config = study.analysis if study else AnalysisConfig(seed=store.settings.seed)
    outputs.claim(out, store.path, store.uuid)
    analyses = stages.analysis(
        store, out, config, backbones=options.backbone, transformations=_suite(study), quiet=options.quiet
    )
    for name, answer in analyses.items():
        shares = "  ".join(f"{k}-NN {v:.3f}" for k, v in answer["knn"]["transformation"].items() if v is not None)
        print(f"{name}  transformation: {shares}")
    return {"out": str(out), "backbones": analyses}


def report(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle report STORE`."""
    store, out, study = _stage(options)
    settings = None
    if study is not None:
        settings = {stages.PROBES: stages.probe_settings(study.probes), stages.ANALYSIS: asdict(study.analysis)}
    kept = stages.kept(store, out, _suite(study), settings)
    if not kept.tables:
        raise ConfigError("STORE", str(store.path), f"a store whose probe or analyze results are in {out}")
    shifts = kept_shift(store, out, {t.backbone: t for t in kept.tables}, study.shift if study else None)
    name = study.name if study else store.path.stem
    threads = (study.embed if study else EmbedConfig()).cores
    results = assemble(name, store, out, kept.outcomes, kept.analyses, shifts, tables=kept.tables, threads=threads)
    shown = study is None or study.gallery
    save_report(results, out, stages.current_gallery(store, out, kept.tables[0]) if shown else None)
    return _show(results, out, store.path)


def _suite(study: Study | None) -> Sequence[str]:
    """The transformations of a study; none without one: then all that the store has."""
    return study.settings().transformations if study else ()


def _show(results: dict[str, Any], out: Path, store: Place) -> dict[str, Any]:
    print(headline_table(results))
    quarantined = results["quarantined"]
    if quarantined:
        print(f"\n{len(quarantined)} images were quarantined; the report names them")
    page = out / "report.html"
    print(f"\nreport: {page}\nresults: {out / RESULTS}")
    return {
        "out": str(out),
        "report": str(page),
        "results": str(out / RESULTS),
        "store": str(store),
        "images": results["images"],
        "variants": results["variants"],
        "quarantined": quarantined,
        "throughput": results["throughput"],
    }


def _stage(options: argparse.Namespace) -> tuple[EmbeddingStore, Path, Study | None]:
    store = EmbeddingStore.open(options.store)
    study = load_study(options.study) if options.study else None
    if study is not None:
        _require_settings(store, study)
    out = options.out or out_of(store)
    outputs.require_own(out, store.path, Ways(*3 * ("use another --out",)))
    return store, out, study


def _require_settings(store: EmbeddingStore, study: Study) -> None:
    """Raise PhotographsError for a study whose photographs and variants are not those of the store."""
    if store.has_manifest() and all(entry.kind == "imported" for entry in store.manifest().sources):
        return  # of what was made elsewhere neither is known
    there = store.settings
    for name in ("seed", "canvas", "orientation", "style_precision"):
        old, new = getattr(there, name), getattr(study, name)
        if old != new:
            raise PhotographsError(f"{store.path}: {name} {old} there, {new} in the study; use its own store", name)


def _score(score: object) -> float | None:
    if not isinstance(score, dict):
        return None
    value = next((score[key] for key in ("accuracy", "held_out", "clean") if score.get(key) is not None), None)
    return float(value) if value is not None else None
