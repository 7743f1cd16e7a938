"""Study files: TOML to `Study`."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

import substyle
from substyle.engine.backbones.families.python_function import PREFIX
from substyle.engine.base_config import SHARED, BootstrapConfig, ResourceConfig, SamplingConfig
from substyle.engine.config import Study
from substyle.engine.probes.config import ExpertConfig
from substyle.engine.stages import registry
from substyle.engine.words import TASKS
from substyle.errors import ConfigError
from substyle.pipelines import limits
from substyle.pipelines.plugins import ALLOW, code_allowed
from substyle.pipelines.sources.metadata import Origin
from substyle.pipelines.storage import below
from substyle.pipelines.transforms.registry import load_plugin
from substyle.pipelines.validation import require_bounded

STUDIES = Path(substyle.__file__).with_name("studies")


def find_study(name: str | Path) -> Path | None:
    """Return the file of a study: the given one, or that of a study of the package by name, such as ``demo``.

    None if it is neither; what exists at the given path has precedence over names.
    """
    path = Path(name)
    if path.suffix == ".toml":
        return path
    shipped = next((each for each in STUDIES.glob("*.toml") if each.stem == str(name)), None)
    return None if shipped is None or path.exists() else shipped


def shipped_studies() -> list[str]:
    """Names of the studies of the package."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def load_study(
    path: Path | str,
    *,
    allow_plugins: bool = False,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Study:
    """Read a study file. Paths in it are relative to its folder.

    Args:
        path: the file, or the name of a study of the package, such as ``demo``.
        allow_plugins: accept a file with ``plugins`` or ``python:`` backbones, which are run; so does
            ``SUBSTYLE_ALLOW_PLUGINS=1``.
        changes: values in place of those of the file, by field such as ``device`` or ``probes.mlp_steps``.

    Raises:
        ConfigError: the file cannot be read, is not TOML, has an invalid field, or has plug-ins that are not allowed.
    """
    path = find_study(path) or Path(path)
    try:
        data = tomllib.loads(limits.read_text(path))
    except OSError as error:
        names = ", ".join(shipped_studies())
        raise ConfigError("study", str(path), f"a readable study file ({error.strerror}), or one of {names}") from error
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or an integer with too many digits
        raise ConfigError("study", str(path), f"a TOML file ({error})") from error
    folder, allow = path.parent, allow_plugins or code_allowed()
    try:
        study = study_of(data, allow_plugins=allow, changes=changes, folder=folder)
    except ConfigError as error:
        if error.field not in changes:  # which are of the command line
            error.args = (f"{path}: {error}",)
        raise
    _require_allowed("backbones", [c.name for c in study.backbones if c.name.startswith(f"{PREFIX}:")], allow)
    source = study.source
    choices = tuple(replace(c, checkpoint=folder / c.checkpoint) if c.checkpoint else c for c in study.backbones)
    return replace(
        study,
        backbones=choices,
        images=below(folder, study.images, "images") if study.images else None,
        store=below(folder, study.store, "store") if study.store else None,
        source=replace(
            source,
            synsets=folder / source.synsets if source.synsets else None,
            names=folder / source.names if source.names else None,
            group=Origin.of(source.group, "group", "source.group").below(folder) if source.group else "",
        ),
        suite=re.sub(r"[^+,]+\.toml", lambda part: str(folder / part[0].strip()), study.suite),
        plugins=tuple(folder / plugin for plugin in study.plugins),
        shift={name: below(folder, location, f"shift.{name}") for name, location in study.shift.items()},
        domains={name: below(folder, location, f"domains.{name}") for name, location in study.domains.items()},
        stages={
            name: table.below(folder) if hasattr(table, "below") else table for name, table in study.stages.items()
        },
    )


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Name a study file in errors about values that it has, and that the command line has not replaced."""
    try:
        yield
    except ConfigError as error:
        value: Any = tomllib.loads(limits.read_text(path))
        for part in error.field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and value == error.given:
            error.args = (f"{path}: {error}",)
        raise


def _run_plugins(named: object, folder: Path, allow: bool) -> None:
    """Run the plug-ins of a study file first: other fields may name the kind of source that one registers."""
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        return  # none, or refused with the other fields
    _require_allowed("plugins", named, allow)
    for file in named:
        load_plugin(folder / file)


def _require_allowed(field: str, named: Sequence[str], allow: bool) -> None:
    if named and not allow:
        allowed = f"code that you trust: pass --allow-plugins, or set {ALLOW}=1"
        raise ConfigError(field, ", ".join(named), allowed)


def study_of(
    data: Mapping[str, Any],
    *,
    allow_plugins: bool = False,
    changes: Mapping[str, Any] = MappingProxyType({}),
    folder: Path = Path(),
) -> Study:
    """Create a study from parsed TOML. Relative paths are kept.

    Args:
        data: fields of `Study`.
        allow_plugins, changes: as in `load_study`.
        folder: the folder to which plug-ins are relative, which are run.

    Raises:
        ConfigError: an invalid field, or plug-ins that are not allowed.
    """
    data = _in_words_of_today(_changed(data, changes))
    require_bounded(data)
    _require_none_moved(data)
    _run_plugins(data.get("plugins"), folder, allow_plugins or code_allowed())
    if "stages" in data:
        raise ConfigError("stages", data["stages"], "a table [<stage>] for each stage of a plug-in")
    others = data.keys() - {each.name for each in fields(Study)}  # importing all stages is slow
    tables = {name: data.pop(name) for name in registry.registered() if name in others} if others else {}
    study = Study(**data)
    return replace(study, stages={name: registry.settings_of(name, table) for name, table in tables.items()})


# lists of tasks
_LISTS = (("probes", "tasks"), ("finetune", "objectives"))


def _in_words_of_today(data: dict[str, Any]) -> dict[str, Any]:
    """A study with tasks in the words of today, of which lines on stderr tell."""
    for table, name in _LISTS:
        values = data[table].get(name) if isinstance(data.get(table), dict) else None
        values = values if isinstance(values, list | tuple) else []
        former = [each for each in values if isinstance(each, str) and each in TASKS]
        for each in former:
            print(f"{table}.{name}: {each} is called {TASKS[each]} now", file=sys.stderr)
        if former:
            data = {**data, table: {**data[table], name: [TASKS.get(each, each) for each in values]}}
    return data


_BY_NAME = ("shift", "domains")  # tables whose fields are names of the user
# fields that have another place since this version
_MOVED = {
    **{f"probes.{each.name}": f"probes.expert.{each.name}" for each in fields(ExpertConfig)},
    "probes.rotate_controls": 'probes.rotate = "networks"',
    **dict.fromkeys(("probes.extractability", "probes.orders"), "the table [extractability]"),
    **{f"probes.{name}": "the table [complexity]" for name in ("complexity", "complexity_depths", "complexity_widths")},
    **{f"probes.{name}": "the table [attentive]" for name in ("token_heads", "attentive_steps", "queries")},
    "attentive.steps": "probes.mlp_steps",
    "attentive.weight_decays": "probes.expert.mlp_weight_decays",
}


def _require_none_moved(data: Mapping[str, Any]) -> None:
    for table, values in data.items():
        for name in values if isinstance(values, dict) and table not in _BY_NAME else ():
            place = f"{name} of the whole study" if name in SHARED else _MOVED.get(f"{table}.{name}")
            if place is not None:
                raise ConfigError(f"{table}.{name}", values[name], f"{place} instead")


def _changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of parsed TOML with other values, by dotted name. Raises ConfigError for a field of what is no table."""
    made = dict(data)
    for name, value in changes.items():
        *way, last = name.split(".")
        table = made
        for i, part in enumerate(way, 1):
            inner = table.get(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(name, value, f"a field of a table; {'.'.join(way[:i])} is none")
            table[part] = table = dict(inner)
        table[last] = value
    return made


def study_schema() -> dict[str, Any]:
    """JSON Schema of study files, draft 7, which TOML editors support, with the tables of registered stages."""
    made = TypeAdapter(Study).json_schema()
    del made["properties"]["stages"]
    for name in registry.registered():
        table = TypeAdapter(registry.stage(name).config).json_schema()
        made["$defs"] |= table.pop("$defs", {})
        made["properties"][name] = table
    for kind in (BootstrapConfig, SamplingConfig, ResourceConfig):  # pydantic forgets docstrings of inherited fields
        made["properties"] |= TypeAdapter(kind).json_schema()["properties"]
    for table in (*made["$defs"].values(), *(made["properties"][name] for name in registry.registered())):
        for name in SHARED:
            table.get("properties", {}).pop(name, None)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **made}
