"""`run`, `embed`, `probe`, `analyze`, `report`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from substyle.engine import stages
from substyle.engine.analysis.config import AnalysisConfig
from substyle.engine.commands.photographs import source_config
from substyle.engine.embed import embed as embed_all
from substyle.engine.plan import EmbedPlan
from substyle.engine.precision import as_precision
from substyle.engine.preparation import BackboneChoice, EmbedConfig, Settings, Workshop
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.report.headline import headline_table
from substyle.engine.results import assemble, suite_name
from substyle.engine.runner import RESULTS, STORE, kept_results, run_study, save_report
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.load import definitions
from substyle.engine.store.lock import Part
from substyle.engine.study import Study, load_study
from substyle.kernels.errors import ConfigError
from substyle.pipelines.plugins import load_plugin
from substyle.pipelines.sources import SourceConfig, open_source
from substyle.pipelines.suites import suite


def run(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle run STUDY.toml`."""
    study = load_study(options.study)
    study = dataclasses.replace(study, source=source_config(options, study.source))
    if options.limit is not None:
        study = dataclasses.replace(study, limit=options.limit)
    out: Path = options.out or Path("runs") / study.name
    results = run_study(study, out, images=options.images, quiet=options.quiet)
    return _show(results, out)


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle embed IMAGES --store STORE --backbone NAME`; what is left out is taken from a store that exists."""
    for plugin in options.plugin:
        load_plugin(plugin)
    path: Path = options.store
    there = EmbeddingStore.open(path) if (path / "zarr.json").is_file() else None
    config = EmbedConfig(
        batch=options.batch,
        threads=options.threads,
        precision=options.precision,
        dtype=options.dtype or (there.settings.dtype if there else "float16"),
        shard_rows=options.shard_rows,
    )
    images = options.images or (Path(there.settings.source) if there else None)
    if images is None:
        raise ConfigError("IMAGES", "nothing", "a folder of photographs (only a store that exists knows its own)")
    own = there is not None and os.path.abspath(images) == os.path.abspath(there.settings.source)
    source = source_config(options, SourceConfig.from_options(there.source_options()) if there and own else None)
    settings = Settings(
        seed=_first(options.seed, there.settings.seed if there else 0),
        canvas=_first(options.canvas, there.settings.canvas if there else 224),
        transformations=suite(options.suite or _suite_of(there)),
        orientation=options.orientation or (there.settings.orientation if there else "ignore"),
        style_precision=as_precision(
            options.style_precision or (there.settings.style_precision if there else "bf16"), "--style-precision"
        ),
    )
    plan = EmbedPlan(
        open_source(images, source), path, Workshop(settings, config), options.limit, part=Part.parse(options.part)
    )
    summary = embed_all(plan, _choices(options.backbone, options.checkpoint), quiet=options.quiet)
    for key, reason in summary.quarantined.items():
        print(f"quarantined {key}: {reason}")
    rate = summary.variants / summary.seconds["total"] if summary.new_shards else 0.0
    print(
        f"{path}: {summary.images} photographs × {len(settings.transformations)} variants, {summary.shards} shards, "
        f"{summary.new_shards} of them new" + (f", {rate:.0f} variants/s" if rate else "")
    )
    return {**dataclasses.asdict(summary), "store": str(path)}


def probe(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle probe STORE`."""
    store, out, study = _stage(options)
    config = study.probes if study else ProbeConfig(seed=store.settings.seed)
    outcomes = stages.probe(store, out, config, backbones=options.backbone, quiet=options.quiet)
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
    analyses = stages.analysis(store, out, config, backbones=options.backbone, quiet=options.quiet)
    for name, answer in analyses.items():
        shares = "  ".join(f"{k}-NN {v:.3f}" for k, v in answer["knn"]["transformation"].items() if v is not None)
        print(f"{name}  transformation: {shares}")
    return {"out": str(out), "backbones": analyses}


def report(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle report STORE`."""
    store, out, study = _stage(options)
    outcomes, analyses, shifts = kept_results(store, out)
    if not outcomes and not analyses:
        raise ConfigError("STORE", str(store.path), f"a store whose probe or analyze results lie in {out}")
    name = study.name if study else store.path.stem
    threads = (study.embed if study else EmbedConfig()).cores
    results = assemble(name, store, out, outcomes, analyses, shifts, threads=threads)
    save_report(results, out)
    return _show(results, out)


def _show(results: dict[str, Any], out: Path) -> dict[str, Any]:
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
        "store": str(out / STORE),
        "images": results["images"],
        "variants": results["variants"],
        "quarantined": quarantined,
        "throughput": results["throughput"],
    }


def _stage(options: argparse.Namespace) -> tuple[EmbeddingStore, Path, Study | None]:
    store = EmbeddingStore.open(options.store)
    study = load_study(options.study) if options.study else None
    return store, options.out or options.store.resolve().parent, study


def _suite_of(store: EmbeddingStore | None) -> str:
    entries = store.backbones() if store else []
    if store is None or not entries:
        return "substance31"
    return suite_name(tuple(str(d["name"]) for d in definitions(store, entries[0])))


def _choices(names: Sequence[str], checkpoints: Sequence[str]) -> list[BackboneChoice]:
    paths: dict[str, Path] = {}
    for text in checkpoints:
        name, equals, path = text.partition("=")
        if not equals or name not in names:
            raise ConfigError("--checkpoint", text, f"NAME=PATH with NAME one of {', '.join(names)}")
        paths[name] = Path(path)
    return [BackboneChoice(name, paths.get(name)) for name in names]


def _score(score: object) -> float | None:
    if not isinstance(score, dict):
        return None
    value = next((score[key] for key in ("accuracy", "held_out", "clean") if score.get(key) is not None), None)
    return float(value) if value is not None else None


def _first(value: int | None, other: int) -> int:
    return other if value is None else value
