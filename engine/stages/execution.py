"""Compute the results of a stage, unit by unit, keep them, and load those that are up to date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from substyle.engine.stages import at_once
from substyle.engine.stages.at_once import Places, Work
from substyle.engine.stages.stage import JSON, EmbeddingStage, Run, Stage, TrainingStage, Unit, each_backbone, table_of
from substyle.engine.stages.stamp import (
    StaleError,
    Stamp,
    compute_into,
    fits,
    note_of,
    require_fresh,
    table_digest,
)
from substyle.engine.store.table import open_table, open_tables
from substyle.errors import SubstyleError
from substyle.pipelines.plugins import PACKAGE, files_digest
from substyle.pipelines.transforms.style import generator_of

C = TypeVar("C")  # settings, a dataclass
R = TypeVar("R")  # results of a unit
_KNOWN = (PACKAGE, "abc", "builtins", "typing")  # modules whose classes are not of a plug-in


def config_of(stage: Stage[C, Any], run: Run) -> C | None:
    """The settings of a stage in a run; None if it is off or there is no study."""
    given: C | None = run.configs.get(stage.name)
    return stage.of(run.study) if given is None and run.study is not None else given


def config_alone(stage: Stage[C, Any], run: Run) -> C | None:
    """The settings where a stage alone is computed, on demand: those of the study, with `Stage.on_demand`."""
    if not stage.on_demand:
        return config_of(stage, run)
    assert run.study is not None
    config: Any = table_of(stage, run.study)
    found: C = replace(config, **{name: getattr(config, name) or own for name, own in stage.on_demand.items()})
    return found


def settings_of(stage: Stage[C, Any], config: C) -> JSON:
    """The settings that change the results of a unit, as they are stored: without the index of a GPU."""
    found: JSON = {name: own for name, own in asdict(config).items() if name not in stage.ignored}  # type: ignore[call-overload]
    return found | ({"device": found["device"].partition(":")[0]} if "device" in found else {})


def folder_of(stage: Stage[Any, Any], run: Run, unit: Unit) -> Path:
    """Folder of a unit's results."""
    return run.out / (stage.directory or stage.name) / unit.folder


def command_of(stage: Stage[Any, Any], run: Run, unit: Unit) -> str:
    """The command that computes a unit again; empty if only ``substyle run`` does."""
    if not stage.of_store:
        return ""
    chosen = unit.name and any(each.name == "backbones" for each in fields(stage.config))
    return f"substyle stage {stage.name} {run.store.path}" + (f" --backbone {unit.name}" if chosen else "")


@cache
def code_of(stage: Stage[Any, Any]) -> str:
    """Digest of the files of a plug-in's stage; "" for stages of this package."""
    modules = dict.fromkeys(kind.__module__ for kind in type(stage).__mro__)
    return "-".join(files_digest(each) for each in modules if each.partition(".")[0] not in _KNOWN)


def stamp_of(stage: Stage[C, Any], run: Run, config: C, unit: Unit, before: Mapping[str, Any] | None = None) -> Stamp:
    """The stamp of current inputs, with the version of the stage, and the files of a plug-in.

    Args:
        before: what was stored, if results are loaded.

    Raises:
        StaleError: results of all backbones together are of one that the store does not have.
    """
    own = {"plugin": code_of(stage)} if code_of(stage) else {}
    settings = {**settings_of(stage, config), **stage.inputs(run, config, unit, before), **own}
    (first, *_) = run.tables.values()
    if stage.together:
        tables = list(run.tables.values())
        if before is not None:
            if not set(before["backbones"]) <= {entry.name for entry in run.store.backbones()}:
                raise StaleError(
                    f"{folder_of(stage, run, unit)}: outdated, of another store", command_of(stage, run, unit)
                )
            tables = open_tables(run.store, list(before["backbones"]), first.transformations)
        settings["backbones"] = {table.backbone: table_digest(run.store, table) for table in tables}
        first = tables[0]
    elif stage.any_order:
        first = open_table(run.store, unit.name, sorted(first.transformations))
    else:
        first = run.tables[unit.name]
    made = Stamp.of(run.store, first, settings)
    return replace(made, code=f"version {stage.version}; {made.code}")


def computed(stage: Stage[C, R], run: Run) -> dict[str, R]:
    """Compute missing and outdated results. Returns all results by key of the unit; none if the stage is off.

    Raises:
        StaleError: an input changed during the computation.
    """
    config = config_of(stage, run)
    if config is None and run.study is None and stage.in_reports:
        config = _usual(stage, run)
    if config is None:
        return {}
    run.begin(stage.name)
    units = list(dict.fromkeys(stage.units(run, config)))
    run.folders[stage.name] = [folder_of(stage, run, unit) for unit in units]
    if isinstance(stage, EmbeddingStage):
        stage.prepare(run, config)
    stamps = {unit: stamp_of(stage, run, config, unit) for unit in units}
    outdated = [unit for unit in units if not fits(folder_of(stage, run, unit), stamps[unit])]
    run.outdated = outdated
    if outdated and run.embedding is not None and not isinstance(stage, EmbeddingStage):
        run.embedding.release()  # a stage may want nearly all of a GPU's memory
    if units and outdated == units:
        run.recomputed.add(stage.name)
    reading = Lock()

    def now(unit: Unit) -> Stamp:
        with reading:
            return stamp_of(stage, run, config, unit)

    where = places(stage, run, config, outdated)

    def into(unit: Unit, work: Work) -> None:
        compute_into(folder_of(stage, run, unit), stamps[unit], partial(now, unit), work, beside=where.count)

    if where.count > 1:
        ordered = sorted(outdated, key=lambda unit: at_once.longest_first(run.tables[unit.name]))
        by_key = {unit.key: unit for unit in ordered}
        own: Any = config
        if getattr(config, "threads", 0):
            own = replace(own, threads=where.threads)
        works = {key: partial(stage.compute, _alone(run, unit), own, unit) for key, unit in by_key.items()}
        at_once.compute(stage.name, works, lambda key, work: into(by_key[key], work), where, quiet=run.quiet)
    else:
        for unit in outdated:
            into(unit, partial(stage.compute, run, config, unit))
    return {unit.key: stage.load(run, folder_of(stage, run, unit)) for unit in units}


def kept(stage: Stage[C, R], run: Run) -> dict[str, R]:
    """Load the results of the backbones of a run by key of the unit; missing ones are left out.

    Raises:
        StaleError: results are outdated.
    """
    config = config_of(stage, run)
    if run.study is not None and config is None:
        return {}
    found = {}
    for unit in _reported(stage, run, config):
        folder = folder_of(stage, run, unit)
        if (note := note_of(folder)) is None:
            continue
        command = command_of(stage, run, unit)
        own = _restored(stage, folder, note.stamp.settings, command) if config is None else config
        if stage.alike:
            config = own
        require_fresh(folder, note, stamp_of(stage, run, own, unit, note.stamp.settings), command)
        found[unit.key] = stage.load(run, folder)
        run.folders.setdefault(stage.name, []).append(folder)
    return found


def places(stage: Stage[C, Any], run: Run, config: C, outdated: Iterable[Unit]) -> Places:
    """Where units are computed."""
    if stage.at_once is None:
        return Places()
    tables, device = [run.tables[unit.name] for unit in outdated], stage.at_once(config)
    return Places.of(tables, device, getattr(config, "threads", 0), alone=":" in getattr(config, "device", ""))


def _reported(stage: Stage[C, Any], run: Run, config: C | None) -> Iterable[Unit]:
    """What a report may show: each backbone of the settings, and no trainings of backbones that are added."""
    if isinstance(stage, TrainingStage):
        return []
    if stage.together:
        note = note_of(folder_of(stage, run, Unit()))
        known = () if note is None else note.stamp.settings.get("backbones", ())
        return [Unit()] if len(set(known).intersection(run.tables)) > 1 else []
    names = getattr(config, "backbones", ()) or run.tables
    return [unit for unit in each_backbone(run) if unit.name in names]


def _usual(stage: Stage[C, Any], run: Run) -> C:
    """The settings of stored results, or default ones with the seed of the store."""
    for folder in (folder_of(stage, run, unit) for unit in _reported(stage, run, None)):
        with suppress(StaleError):
            if (note := note_of(folder)) is not None:
                return _restored(stage, folder, note.stamp.settings, "")
    seeded = any(each.name == "seed" for each in fields(stage.config))  # type: ignore[arg-type]
    return stage.config(**({"seed": run.store.settings.seed} if seeded else {}))


def _restored(stage: Stage[C, Any], folder: Path, settings: Mapping[str, Any], command: str) -> C:
    """The settings that results were computed with."""
    names = [each.name for each in fields(stage.config)]  # type: ignore[arg-type]
    try:
        return stage.config(**{name: settings[name] for name in names if name in settings})
    except (SubstyleError, TypeError, ValueError) as error:
        raise StaleError(f"{folder}: outdated, of another version of substyle ({error})", command) from error


def _alone(run: Run, unit: Unit) -> Run:
    """What the computation of a unit reads in another process."""
    table = run.tables[unit.name]
    recorded = zip(table.transformations, table.generators or ("",) * len(table.transformations), strict=True)
    table = replace(table, generators=tuple(generator_of(name, known) for name, known in recorded))  # also of plug-ins
    nothing: JSON = {"study": None, "configs": {}, "results": {}, "embedding": None, "source": None, "_once": {}}
    return replace(run, tables={unit.name: table}, quiet=True, **nothing)
