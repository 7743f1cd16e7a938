"""Commands `run`, `demo`, `adapt`, `attack`, `probe`, `analyze`, `report`, `predict`, `compare` and `schema`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from substyle.engine.backbones.families.adapter import PREFIX, path_of
from substyle.engine.commands.embed import backbone_choices
from substyle.engine.commands.options import default_out, executor_config, out_of, source_config
from substyle.engine.config import AnalysisConfig, Study
from substyle.engine.probes.adapters import AdaptConfig
from substyle.engine.probes.attacks import ATTACKS, AttackConfig
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.report.compare import compare_results
from substyle.engine.report.data import labelled
from substyle.engine.report.tables import headline_table
from substyle.engine.results.read import read_results, results_schema, validate_results
from substyle.engine.stages.attack import attackable
from substyle.engine.stages.registry import stage
from substyle.engine.stages.stage import Run
from substyle.engine.stages.stamp import StaleError
from substyle.engine.stages.tables import reported_tables, tables
from substyle.engine.stages.training import adapt as adapt_store
from substyle.engine.stages.training import derive
from substyle.engine.store.identity import PhotographsError, Remedies
from substyle.engine.store.layout import PIXELS
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study import outputs
from substyle.engine.study.file import find_study, load_study, shipped_studies, study_of, study_schema
from substyle.engine.study.outputs import RESULTS, require_current
from substyle.engine.study.predict import PREDICTIONS, write_predictions
from substyle.engine.study.predict import predict as predict_all
from substyle.engine.study.runner import report_study, require_study, run_study, store_of
from substyle.kernels import files
from substyle.kernels.errors import ConfigError, MissingError
from substyle.pipelines import packaged_photographs
from substyle.pipelines.sources import SourceConfig, open_source
from substyle.pipelines.storage import Place, is_remote

# options for photographs, and the equivalent fields of study files
_FIELDS = {
    "backbone": "backbones",
    "checkpoint": "checkpoint of a backbone",
    "suite": "suite",
    "seed": "seed",
    "canvas": "canvas",
}


def study_asked(options: argparse.Namespace) -> Study:
    """Create the study of `run` and `profile` from a study file or from photographs and options.

    Raises:
        ConfigError: an option that is not valid with a study file or with photographs, no backbone for photographs, or
            an invalid study file.
    """
    return _of_file(options) if is_study(options) else _of_photographs(options)


def is_study(options: argparse.Namespace) -> bool:
    """Whether the argument is a study file, not photographs."""
    return isinstance(options.study, Path) and options.study.suffix == ".toml"


def _of_file(options: argparse.Namespace) -> Study:
    for option, field in _FIELDS.items():
        given = getattr(options, option)
        if given is not None and given != []:
            raise ConfigError(f"--{option}", given, f"only with IMAGES; set {field} in {options.study} instead")
    return load_study(
        options.study, device=options.device, runtime=options.runtime, allow_plugins=options.allow_plugins
    )


def _of_photographs(options: argparse.Namespace) -> Study:
    given = options.study
    if (
        not options.backbone
        and isinstance(given, Path)
        and not given.exists()
        and not re.search(r"[*?\[{]", str(given))
    ):
        names = shipped_studies()
        near = get_close_matches(str(given), names, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError("STUDY", str(given), f"photographs, a study file, or one of {', '.join(names)}{meant}")
    if options.images is not None:
        raise ConfigError("--images", str(options.images), f"only with a study file; {options.study} is photographs")
    if not options.backbone:
        hint = "pass at least one, such as package:efficientnet_lite0; `substyle backbones` lists them"
        raise MissingError("--backbone", hint)
    chosen = backbone_choices(options.backbone, options.checkpoint)
    data: dict[str, Any] = {
        "name": name_of(options.study),
        "backbones": [{"name": c.name} | ({"checkpoint": c.checkpoint} if c.checkpoint else {}) for c in chosen],
    }
    data |= {name: getattr(options, name) for name in ("suite", "seed", "canvas") if getattr(options, name) is not None}
    study = study_of(data, device=options.device, runtime=options.runtime)
    return dataclasses.replace(study, images=options.study)


def name_of(images: Path | str) -> str:
    """Name of a study of photographs: the folder's name, or the file's without its suffix."""
    if is_remote(images):
        name = PurePosixPath(str(images)).stem
    else:
        path = Path(os.path.abspath(images))
        name = path.name if path.is_dir() else path.stem
    name = name.encode("utf-8", "backslashreplace").decode()  # file names may not be valid UTF-8
    # removes special characters of patterns such as train-{0000..0146}.tar
    return re.sub(r"-*[\\{}*?\[\]]+-*", "-", name).strip("-. ") or "photographs"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle run STUDY.toml`, or `substyle run IMAGES --backbone NAME`."""
    study = study_asked(options)
    study = dataclasses.replace(
        study,
        source=source_config(options, study.source),
        limit=study.limit if options.limit is None else options.limit,
        executor=executor_config(options, study.executor),
        track=study.track if options.track is None else dataclasses.replace(study.track, to=options.track),
    )
    out: Path = options.out or (Path("runs") / study.name if is_study(options) else default_out(study.name))
    store = options.store or store_of(study, out)
    results = run_study(study, out, images=options.images, store_path=store, fresh=options.fresh, quiet=options.quiet)
    return _show(results, out, store)


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle demo`: run a study on photographs that installed packages ship, or on those of ``--images``."""
    study = options.study or ("photographs" if options.images else "demo")
    if options.images is None:
        options.images = Path("runs") / "photographs"
        packaged_photographs.ensure(options.images)
    elif options.out is None:
        name = name_of(options.images)
        options.out = default_out(f"{name}-{Path(options.study).stem}" if options.study else name)
    options.study = find_study(study) or Path(f"{study}.toml")
    return run(options)


def probe(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle probe STORE`."""
    store, out, study = _stage(options)
    config = study.probes if study else ProbeConfig(seed=store.settings.seed)
    with outputs.locked(out, store.path, store.uuid):
        run = _run_of(store, out, tables(store, options.backbone, _suite(study)), options, probes=config)
        outcomes = stage("probes").computed(run)
    for name, outcome in outcomes.items():
        for task, heads in outcome.results.items():
            for head, score in heads.items() if isinstance(heads, dict) else ():
                found = map(score.get, ("accuracy", "held_out", "clean")) if isinstance(score, dict) else ()
                if (value := next((each for each in found if each is not None), None)) is not None:
                    print(f"{name}  {task}  {head}  {value:.3f}")
    return {"out": str(out), "backbones": {name: outcome.results for name, outcome in outcomes.items()}}


def analyze(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle analyze STORE`."""
    store, out, study = _stage(options)
    config = study.analysis if study else AnalysisConfig(seed=store.settings.seed)
    with outputs.locked(out, store.path, store.uuid):
        opened = tables(store, options.backbone, _suite(study))
        run = _run_of(store, out, opened, options, analysis=config, similarity=config)
        analyses = stage("analysis").computed(run)
        similarity: dict[str, Any] = next(iter(stage("similarity").computed(run).values()), {})
    for name, answer in analyses.items():
        shares = "  ".join(f"{k}-NN {v:.3f}" for k, v in answer["knn"]["transformation"].items() if v is not None)
        print(f"{name}  transformation: {shares}")
    return {"out": str(out), "backbones": analyses, "similarity": similarity}


def report(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle report STORE`."""
    store, out, study = _stage(options)
    try:
        results = report_study(store, out, study, quiet=options.quiet)
    except StaleError as error:
        if options.study is None or not error.command:
            raise
        raise StaleError(f"{error} --study {shlex.quote(str(options.study))}") from None
    return _show(results, out, store.path)


def _run_of(
    store: EmbeddingStore, out: Path, opened: Sequence[EmbeddingTable], options: argparse.Namespace, **configs: object
) -> Run:
    """What a command of one stage computes from."""
    return Run(store, out, {table.backbone: table for table in opened}, configs=configs, quiet=options.quiet)


def _suite(study: Study | None) -> Sequence[str]:
    """The transformations of a study; empty (all of the store) without one."""
    return study.settings().transformations if study else ()


def _show(results: dict[str, Any], out: Path, store: Place) -> dict[str, Any]:
    print(headline_table(labelled(validate_results(results))))
    quarantined = results["quarantined"]
    if quarantined:
        print(f"\nquarantined images: {len(quarantined)}, listed in the report")
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


def adapt(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle adapt STORE --backbone NAME`, or `substyle adapt STORE --adapter FILE`."""
    store, out, study = _stage(options)
    if options.adapter is not None:
        name = f"{PREFIX}{os.path.relpath(options.adapter)}"
        derive(store, name, quiet=options.quiet)
    else:
        probes = study.probes if study else ProbeConfig(seed=store.settings.seed)
        config = dataclasses.replace(study.adapt if study else AdaptConfig(), methods=(options.method,))
        with outputs.locked(out, store.path, store.uuid):
            (name,) = adapt_store(
                *(store, out, config, probes),
                backbones=[options.backbone],
                transformations=_suite(study),
                quiet=options.quiet,
            )
    entry = store.backbone(name)
    print(f"{name}: embeddings of width {entry.dim} in {store.path}")
    return {
        "backbone": name,
        "dim": entry.dim,
        "file": str(path_of(name)),
        "onnx": str(path_of(name).with_suffix(".onnx")),
    }


def attack(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle attack STORE`."""
    store, out, study = _stage(options)
    config = study.attack if study else AttackConfig(seed=store.settings.seed)
    if not config.attacks:
        config = dataclasses.replace(config, attacks=ATTACKS)
    if options.photographs is not None:
        config = dataclasses.replace(config, photographs=options.photographs)
    with outputs.locked(out, store.path, store.uuid):
        opened = reported_tables(store, out)
        run = _run_of(store, out, opened, options)
        run.results["probes"] = stage("probes").kept(run)  # refuses outdated ones
        names = options.backbone or config.backbones or attackable(store, [entry.name for entry in store.backbones()])
        if not names:
            raise ConfigError("STORE", str(store.path), "a store with networks; name controls with --backbone")
        run.study, run.configs = study, {"attack": dataclasses.replace(config, backbones=tuple(names))}
        chosen = [*(study.backbones if study else ()), *backbone_choices(names, options.checkpoint)]
        run.checkpoints = {name: choice.checkpoint for choice in chosen for name in choice.names}
        if options.images:
            run.source = open_source(options.images, study.source if study else SourceConfig())
        attacks = stage("attack").computed(run)
    for name, found in attacks.items():
        for row, scores in found["attacks"].items():
            detector = (scores["detection"].get("detector") or {}).get("auroc")
            suffix = "" if detector is None else f"  detector AUROC {detector:.3f}"
            print(f"{name}  {row}  success {scores['success']:.3f}{suffix}")
    return {"out": str(out), "backbones": attacks}


def _stage(options: argparse.Namespace) -> tuple[EmbeddingStore, Path, Study | None]:
    store = EmbeddingStore.open(options.store)
    study = load_study(options.study, allow_plugins=options.allow_plugins) if options.study else None
    if study is not None:
        _require_settings(store, study)
        if store.has_manifest() and all(entry.kind != "imported" for entry in store.manifest().sources):
            require_study(study, store, options.images, quiet=options.quiet)
    elif options.images is not None and options.command != "attack":
        raise ConfigError("--images", str(options.images), "only with --study")
    out = options.out or out_of(store)
    outputs.require_own(out, store.path, Remedies(*3 * ("use another --out",)))
    return store, out, study


def _require_settings(store: EmbeddingStore, study: Study) -> None:
    """Raise PhotographsError if settings of the study differ from those of the store."""
    stored, known = store.settings, list(PIXELS)
    sources = store.manifest().sources if store.has_manifest() else ()
    if sources and all(entry.kind == "imported" for entry in sources):
        known = [name for name in PIXELS if all(name in entry.options for entry in sources)]
        if unknown := sorted(set(PIXELS) - set(known)):
            print(f"{store.path}: imported without {', '.join(unknown)}, which are not checked", file=sys.stderr)
    for name in known:
        old, new = getattr(stored, name), getattr(study, name)
        if old != new:
            raise PhotographsError(
                f"{store.path}: {name} is {old} in the store and {new} in the study; use the study's own store", name
            )


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle predict PROBE IMAGES`."""
    if options.out is not None and options.out.suffix not in PREDICTIONS:
        raise ConfigError("--out", str(options.out), f"a file name that ends in {' or '.join(PREDICTIONS)}")
    answer = predict_all(
        options.probe, options.images, source=source_config(options), checkpoint=options.checkpoint,
        download=options.download, top=options.top, quiet=options.quiet,
    )  # fmt: skip
    if options.out is not None:
        write_predictions(answer, options.out)
        print(f"{options.out}: predictions of {len(answer['predictions'])} photographs")
    for row in answer["predictions"] if options.out is None else ():
        for output, labels in row["outputs"].items():
            ranked = "  ".join(f"{label['label']} {label['probability']:.3f}" for label in labels)
            print(f"{row['key']}  {output}: {ranked}")
    for row in answer["quarantined"]:
        print(f"quarantined {row['key']}: {row['reason']}")
    return answer if answer["predictions"] else answer | {"ok": False}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle compare RUN RUN …`."""
    paths = [path / RESULTS if path.is_dir() else path for path in options.runs]
    runs = [(_name(path, paths), read_results(path)) for path in paths]
    for path, (_, results) in zip(paths, runs, strict=True):
        require_current(path.parent, results)
    made = compare_results(runs, options.out)
    for difference in made.setup:
        print(f"setups differ in {difference.what}: {', '.join(difference.values)}")
    print(made.text())
    page = options.out / "compare.html"
    print(f"\ncomparison of {', '.join(name for name, _ in runs)}: {page}")
    return {
        "page": str(page),
        "setup": {d.what: list(d.values) for d in made.setup},
        "files": [str(f) for f in made.files],
    }


def _name(path: Path, paths: list[Path]) -> str:
    """The name of the run's folder, or the full path if two runs share it."""
    folders = [p.resolve().parent.name for p in paths]
    return path.resolve().parent.name if folders.count(path.resolve().parent.name) == 1 else str(path)


def schema(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle schema`: print the JSON Schema of study files, or of results.json."""
    made = results_schema() if options.results else study_schema()
    text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        files.write(options.out, text)
    return made
