"""Commands `run`, `stage`, `report`, `compare`."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from substyle.engine import observability
from substyle.engine.base_config import SHARED, changed
from substyle.engine.commands.embed import backbone_choices
from substyle.engine.commands.metrics import exported
from substyle.engine.commands.options import changes, out_of
from substyle.engine.config import Study
from substyle.engine.report.data import labelled
from substyle.engine.report.tables import headline_table
from substyle.engine.stages import registry
from substyle.engine.stages.added import embed_added
from substyle.engine.stages.execution import computed, config_alone, kept
from substyle.engine.stages.registry import AnyStage
from substyle.engine.stages.results import read_results, validate_results
from substyle.engine.stages.stage import Run, entry_of, table_of
from substyle.engine.stages.stamp import StaleError
from substyle.engine.stages.tables import reported_tables, tables
from substyle.engine.store.files import write_durably
from substyle.engine.store.identity import PhotographsError, Remedies
from substyle.engine.store.layout import PIXELS
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs
from substyle.engine.study.compare import compare_results, outcomes_of
from substyle.engine.study.file import load_study, naming_file, shipped_studies, study_of
from substyle.engine.study.outputs import RESULTS, require_current
from substyle.engine.study.plan import require_stated, require_study, store_of
from substyle.engine.study.quick import quick
from substyle.engine.study.runner import report_study, run_study
from substyle.errors import ConfigError, MissingError
from substyle.pipelines import packaged_photographs
from substyle.pipelines.sources import open_source
from substyle.pipelines.storage import Place

# options for photographs, and the equivalent fields of study files
_FIELDS = {
    "backbone": "backbones",
    "checkpoint": "checkpoint of a backbone",
    "suite": "suite",
}


def study_asked(options: argparse.Namespace) -> Study:
    """Create the study of `run` from a study file or from photographs and options.

    Raises:
        ConfigError: an option that is not valid with a study file or with photographs, no backbone for photographs, or
            an invalid study file.
    """
    study = _of_file(options) if is_study(options) else _of_photographs(options)
    return quick(study, changes(options)) if options.quick else study


def is_study(options: argparse.Namespace) -> bool:
    """Whether the argument is a study file, not photographs."""
    return isinstance(options.study, Path) and options.study.suffix == ".toml"


def _of_file(options: argparse.Namespace) -> Study:
    for option, field in _FIELDS.items():
        given = getattr(options, option)
        if given is not None and given != []:
            raise ConfigError(f"--{option}", given, f"only with IMAGES; set {field} in {options.study} instead")
    return load_study(options.study, **_overrides(options))


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line sets in place of a study file or of defaults."""
    return {
        "allow_plugins": options.allow_plugins,
        "changes": changes(options),
    }


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
    data = {"name": outputs.name_of(given), "backbones": backbone_choices(options.backbone, options.checkpoint)}
    data |= {"suite": options.suite} if options.suite is not None else {}
    overrides = _overrides(options)
    for field, option in (("backbones", "--backbone"), ("images", "IMAGES")):
        if field in overrides["changes"]:
            raise ConfigError("--set", field, f"fields that a study file without IMAGES has; pass {option}")
    return dataclasses.replace(study_of(data, **overrides), images=given)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle run STUDY.toml`, or `substyle run IMAGES --backbone NAME`."""
    with exported(options.metrics):
        return _profiled(options) if options.profile else _run(options)


def _profiled(options: argparse.Namespace) -> dict[str, Any]:
    """Run a study and print the time spent in each part."""
    with observability.recording() as recorded:
        began = observability.Mark.now()
        answer = _run(options)
        observability.add("run", "whole run", began)
    path = Path(answer["out"]) / "trace.json"
    write_durably(path, recorded.to_json())
    totals = recorded.totals()
    whole = totals["run", "whole run"].wall
    print(f"\n{'stage':10} {'part':24} {'seconds':>9} {'share':>6} {'cores':>6} {'calls':>7} {'items/s':>12}")
    for (stage, name), total in totals.items():
        print(
            f"{stage:10} {name[:24]:24} {total.wall:9.2f} {total.wall / whole:6.1%} {total.busy:6.2f} "
            f"{total.calls:7} {total.rate:>12}"
        )
    print(f"\ntrace for chrome://tracing or Perfetto: {path}")
    rows = [
        {"stage": stage, "name": name, "seconds": t.wall, "cpu_seconds": t.cpu, "items": t.items, "calls": t.calls}
        for (stage, name), t in totals.items()
    ]
    return {**answer, "trace": str(path), "profile": rows}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    if options.packaged:
        _take_packaged(options)
    study = study_asked(options)
    out: Path = options.out or (Path("runs") / study.name if is_study(options) else outputs.default_out(study.name))
    store = options.store or store_of(study, out)
    with naming_file(options.study) if is_study(options) else nullcontext():
        results = run_study(
            study, out, images=options.images, store_path=store, fresh=options.fresh, quiet=options.quiet
        )
    return _show(results, out, store)


def _take_packaged(options: argparse.Namespace) -> None:
    """Let a study have photographs that installed packages ship."""
    if options.images is not None or not is_study(options):
        raise ConfigError("--packaged", "with photographs", "a study without --images")
    options.images = Path("runs") / "photographs"
    packaged_photographs.ensure(options.images)
    # crops of one picture are not independent, whatever the study says of photographs in general
    options.set = ['resample_by="folder"', *options.set]
    if not options.quiet:
        print('packaged photographs: resample_by = "folder"', file=sys.stderr)


def report(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle report STORE`."""
    store, out, study = of_store(options)
    try:
        results = report_study(store, out, study, images=options.images, quiet=options.quiet)
    except StaleError as error:
        if options.study is None or not error.command:
            raise
        given = ["--study", str(options.study), *(word for text in options.set for word in ("--set", text))]
        raise StaleError(f"{error} {shlex.join(given)}") from None
    return _show(results, out, store.path)


def stage(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle stage NAMES STORE`: print the main numbers. Returns results as results.json has them."""
    store, out, study = of_store(options)
    names, known = options.stage.split(","), registry.alone()
    if unknown := set(names) - set(known):
        raise ConfigError("stage", min(unknown), ", ".join(known))
    stages = [known[name] for name in names]
    answer: dict[str, Any] = {"out": str(out), "backbones": {}}
    with outputs.locked(out, store.path, store.uuid):
        run = _run_of(options, stages, store, out, study)
        for each in stages:
            run.results[each.name] = found = computed(each, run)
            embed_added(run, each, found)
            for name, result in found.items():
                if name:
                    answer["backbones"].setdefault(name, {}).update(each.of_backbone(result))
                else:
                    answer[each.name] = entry_of(each, result)
                for line in each.lines(result):
                    print(f"{name or each.name}  {line}")
    return answer


def _run_of(
    options: argparse.Namespace, stages: Sequence[AnyStage], store: EmbeddingStore, out: Path, study: Study | None
) -> Run:
    """What stages alone are computed from; without a study, from default settings."""
    asked = [each.name for each in stages]
    reads = {name for at, each in enumerate(stages) for name in each.reads if name not in asked[:at]}
    whole, names = study or _defaults(options, stages, store), [store.backbone(name).name for name in options.backbone]
    chosen_by_settings = [each for each in stages if hasattr(each.config, "backbones")]
    for each in chosen_by_settings if names else ():
        table: Any = table_of(each, whole)
        own = changed(table, backbones=tuple(names))
        whole = dataclasses.replace(whole, stages={**whole.stages, each.name: own})
    if len(chosen_by_settings) == len(stages):
        names = []  # results of all are read
    opened = reported_tables(store, out, _suite(study)) if reads else []
    opened = [table for table in opened if table.backbone in (names or [table.backbone])]
    if len(opened) < max(1, len(set(names))):
        opened = tables(store, names, _suite(study))
    run = Run(store, out, {table.backbone: table for table in opened}, study, quiet=options.quiet)
    run.results = {name: kept(registry.stage(name), run) for name in reads}  # refuses outdated ones
    run.study = whole
    run.configs = {each.name: _config(each, run) for each in stages}
    chosen = list(run.study.backbones)
    chosen += backbone_choices([entry.name for entry in store.backbones()], options.checkpoint)
    run.source = open_source(options.images, run.study.source) if options.images else None
    run.checkpoints = {name: choice.checkpoint for choice in chosen if choice.checkpoint for name in choice.names}
    return run


def _config(stage: AnyStage, run: Run) -> object:
    """Settings of a stage. Raises MissingError if the study has none, and the stage no default."""
    config, study = config_alone(stage, run), run.study
    assert study is not None
    if config is None and stage.name in registry.registered():
        return table_of(stage, study)
    if config is None:
        raise MissingError(stage.name, "set it in a study file, or with --set")
    return config


def _defaults(options: argparse.Namespace, stages: Sequence[AnyStage], store: EmbeddingStore) -> Study:
    """The study of stages alone without a study file: default settings, and those of the command line."""
    asked, names = changes(options), [each.name for each in stages]
    for name, value in asked.items():
        of_stage = name.partition(".")[0] in names and ("." in name or isinstance(value, dict))
        if name not in SHARED and not of_stage:
            allowed = f"{', '.join(SHARED)}, and fields of {', '.join(names)}; others with --study"
            raise ConfigError("--set", name, allowed)
    data = {"name": store.path.stem, "backbones": [entry.name for entry in store.backbones()]}
    return study_of(data | {"seed": store.settings.seed}, changes=asked)


def _suite(study: Study | None) -> Sequence[str]:
    """The transformations of a study; empty (all of the store) without one."""
    return study.settings().transformations if study else ()


def _show(results: dict[str, Any], out: Path, store: Place) -> dict[str, Any]:
    print(headline_table(labelled(validate_results(results))))
    quarantined = results["quarantined"]
    if quarantined:
        print(f"\nquarantined images: {len(quarantined)}, listed in the report")
    left_out = results.get("left_out", {})
    for name, count in left_out.items():
        print(f"photographs without a variant of {name}: {count}")
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
        "left_out": left_out,
        "throughput": results["throughput"],
    }


def of_store(options: argparse.Namespace) -> tuple[EmbeddingStore, Path, Study | None]:
    """Store, output folder and study of a command on a store."""
    store = EmbeddingStore.open(options.store)
    study = None
    if options.study:
        study = load_study(options.study, allow_plugins=options.allow_plugins, changes=changes(options))
    if study is not None:
        _require_settings(store, study)
        if store.has_manifest():
            if all(entry.kind != "imported" for entry in store.manifest().sources):
                require_study(study, store, options.images, quiet=options.quiet)
            else:
                require_stated(study, store)
    elif options.images is not None and not _reads_photographs(options):
        raise ConfigError("--images", str(options.images), "only with --study")
    elif options.set and options.command == "report":
        raise ConfigError("--set", options.set[0], "only with --study")
    out = options.out or out_of(store)
    outputs.require_own(out, store.path, Remedies(*3 * ("use another --out",)))
    return store, out, study


def _reads_photographs(options: argparse.Namespace) -> bool:
    """Whether a command reads the photographs of a store without a study."""
    names = options.stage.split(",") if options.command == "stage" else [options.command]
    return any(each.name in names and each.photographs for each in registry.stages())


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


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle compare RUN RUN …`."""
    paths = [path / RESULTS if path.is_dir() else path for path in options.runs]
    runs = [(_name(path, paths), read_results(path)) for path in paths]
    for path, (_, results) in zip(paths, runs, strict=True):
        require_current(path.parent, results)
    outcomes = [outcomes_of(path.parent, results) for path, (_, results) in zip(paths, runs, strict=True)]
    made = compare_results(runs, options.out, outcomes)
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
