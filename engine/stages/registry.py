"""Stages by name, in the order in which a study runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from substyle.engine.config import Study
from substyle.engine.report.parts import parts
from substyle.engine.results.model import BackboneResults, ResultsDocument
from substyle.engine.stages.stage import Stage
from substyle.engine.stages.stamp import with_leftovers
from substyle.engine.store.files import writing
from substyle.kernels.errors import ConfigError
from substyle.kernels.files import remove
from substyle.pipelines.entry_points import STAGES, load_entry_points

# modules of this package, imported when they are first used (some import much), in order; whether their settings are a
# table of study files that is no field of `Study`
_OWN = {
    "probes": False,
    "few_shot": True,
    "parameters": True,
    "labels": True,
    "shortcut": True,
    "analysis": False,
    "similarity": False,
    "domains": False,
    "shift": False,
    "mistakes": False,
}
NAMES = [*_OWN]
AnyStage = Stage[Any, Any]
S = TypeVar("S", bound=AnyStage)
REPORTED = ("probes", "analysis")  # backbones with results of one of these are reported
_found: dict[str, AnyStage] = {}
_registered = [name for name, own in _OWN.items() if own]


def stage(name: str) -> AnyStage:
    """Return a stage by name."""
    if name not in _found:
        _found[name] = import_module(f"substyle.engine.stages.{name}").STAGE
    return _found[name]


def alone() -> dict[str, AnyStage]:
    """Stages that are computed without a run of a study, by name."""
    return {each.name: each for each in stages() if each.without_run}


def registered() -> list[str]:
    """Names of the stages whose settings are in `Study.stages`, such as those of plug-ins and installed packages."""
    load_entry_points(STAGES)
    return _registered


def stages() -> Iterator[AnyStage]:
    """All stages in order, also of installed packages."""
    load_entry_points(STAGES)
    return map(stage, NAMES)


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
    taken = {*dir(Study), *NAMES, *_RESERVED, *(each for name, field in results for each in (name, field.alias))}
    taken |= {*dir(BackboneResults), *dir(ResultsDocument), *(part.name for part in parts())}
    taken |= {*(each.name for each in fields(Study)), *(each.directory for each in _found.values())}
    for name in (stage.name, stage.directory or stage.name):
        if name in taken or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError("stage", name, "an unused name of lower-case letters, digits and underscores")
    _ = stage.code  # of the files as they are now
    _found[stage.name] = stage
    NAMES.insert(0 if stage.adds_backbones else len(NAMES), stage.name)
    _registered.append(stage.name)
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
