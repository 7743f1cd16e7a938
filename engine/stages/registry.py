"""Stages by name, in the order in which a study runs them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from substyle.engine.config import Study
from substyle.engine.report.data import ComparedScore
from substyle.engine.report.parts import parts
from substyle.engine.report.section import Section
from substyle.engine.results.model import BackboneResults, ResultsDocument
from substyle.engine.stages.execution import code_of
from substyle.engine.stages.stage import Stage, TrainingStage
from substyle.engine.stages.stamp import with_leftovers
from substyle.engine.store.files import writing
from substyle.errors import ConfigError
from substyle.files import remove
from substyle.pipelines.entry_points import STAGES as ENTRY_POINTS
from substyle.pipelines.entry_points import Registry

AnyStage = Stage[Any, Any]
S = TypeVar("S", bound=AnyStage)
REPORTED = ("probes", "analysis")  # backbones with results of one of these are reported
_CORE = ("probes", "few_shot", "parameters", "labels", "shortcut", "analysis", "similarity", "shift", "mistakes")
_WITHOUT_TABLE = ("similarity", "mistakes")  # other fields of a study are their settings
_SECOND, _LAST = 1, 2  # positions: of stages of the core, and of others; those that add backbones are before both
STAGES: Registry[AnyStage] = Registry("stage", ENTRY_POINTS)


def stage(name: str) -> AnyStage:
    """Return a stage by name."""
    stages()
    return STAGES[name]


def stages() -> tuple[AnyStage, ...]:
    """All stages in order, also of installed packages."""
    for name in _CORE:
        if name not in STAGES:  # imported when they are first used
            STAGES.add(name, import_module(f"substyle.engine.stages.{name}").STAGE, _SECOND)
    return STAGES.all()


def alone() -> dict[str, AnyStage]:
    """Stages that are computed without a run of a study, by name."""
    return {each.name: each for each in stages() if each.of_store}


def registered() -> list[str]:
    """Names of the stages whose settings are in `Study.stages`, such as those of plug-ins and installed packages."""
    known = {*(each.name for each in fields(Study)), *_WITHOUT_TABLE}
    return [each.name for each in stages() if each.name not in known]


def sections_of(stage: AnyStage, results: ResultsDocument) -> Iterable[Section]:
    """Sections of the report; labels are in place of names of backbones."""
    make: Callable[[ResultsDocument], Iterable[Section]] | None = getattr(stage.report or stage, "sections", None)
    return make(results) if make else ()


def scores_of(stage: AnyStage, backbone: BackboneResults) -> Iterable[ComparedScore]:
    """Fractions of a backbone that `substyle compare` compares between runs."""
    make: Callable[[BackboneResults], Iterable[ComparedScore]] | None = getattr(stage.report or stage, "scores", None)
    return make(backbone) if make else ()


def folders() -> list[str]:
    """Folders of the results of all stages, in an output folder."""
    return [each.directory or each.name for each in stages()]


_RESERVED = ("figures", "gallery", "stages", "tables", "tensorboard", "wandb")


def register_stage(stage: S) -> S:
    """Register a stage and return it. It runs after those that are known, or before them if it adds backbones.

    Its settings are a table of its name in study files.

    Raises:
        ConfigError: the name is taken, or is not lower-case letters, digits and underscores.
    """
    results = (*BackboneResults.model_fields.items(), *ResultsDocument.model_fields.items())
    taken = {
        *dir(Study),
        *_CORE,
        *STAGES,
        *_RESERVED,
        *(each for name, field in results for each in (name, field.alias)),
    }
    taken |= {*dir(BackboneResults), *dir(ResultsDocument), *(part.name for part in parts())}
    taken |= {*(each.name for each in fields(Study)), *(each.directory for each in STAGES.values())}
    for name in (stage.name, stage.directory or stage.name):
        if name in taken or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError("stage", name, "an unused name of lower-case letters, digits and underscores")
    code_of(stage)  # of the files as they are now
    STAGES.add(stage.name, stage, -len(STAGES) if isinstance(stage, TrainingStage) else _LAST)
    return stage


def settings_of(name: str, table: object) -> object:
    """The settings of a registered stage from its table in a study file. Raises ConfigError for an invalid field."""
    config = stage(name).config
    if not isinstance(table, dict):
        raise ConfigError(name, table, "a table")
    try:
        return config(**table)
    except TypeError as error:  # of dataclasses; those of `validated` raise ConfigError
        allowed = ", ".join(each.name for each in fields(config))
        raise ConfigError(name, ", ".join(table), f"values of {allowed} ({error})") from error


def discard(out: Path, slug: str) -> None:
    """Delete the results of a backbone."""
    with writing(out):
        for path in (path for name in folders() for path in with_leftovers(out / name / slug)):
            remove(path)
