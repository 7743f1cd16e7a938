"""The study of a row as a file that can be run, though anybody may have written the row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from substyle.engine.backbones.presets import ABOUT
from substyle.engine.base_config import SHARED
from substyle.engine.config import Study
from substyle.engine.extensions.site.row import Row
from substyle.engine.probes.config import ExpertConfig
from substyle.engine.stages import registry
from substyle.engine.store.layout import PIXELS
from substyle.errors import ConfigError
from substyle.pipelines.libraries.library import toml_key, toml_lines

# names of backbones and of transformations that are not those of files or code
_HUB = re.compile(
    rf"(?:(?:(?:timm|package|control|{'|'.join(ABOUT)}):(?:random:)?)?\w[\w.]*|open_clip:[\w-]+/[\w-]+"
    r"|(?:timm|open_clip|transformers):hf-hub:\w[\w.-]*/\w[\w.-]*)(?:@[\w.:=,+-]+)?"
)
_TRANSFORMATIONS = re.compile(r"(?!python\.|.*\.toml)\w[\w.]*(?:@[\d.]+)?")


def study_file(row: Row) -> str:
    """The study of a row as TOML, as far as it is recorded; empty if settings are not.

    Anybody may have written the row: the file has names that the package knows, numbers and words of lists, and no
    path, address or device. Its first line says what is missing.
    """
    if row.study.settings is None:
        return ""
    own = row.study.model_dump(include={"name", "note", "limit", *PIXELS}, exclude_none=True)
    own |= {"resample_by": row.data.resampled_by, "bootstrap": row.study.settings.get("probes", {}).get("bootstrap")}
    missing = ["photographs, plug-ins, weights", "[source]", "[embed]"]
    missing += ["limit"] * (row.study.limit is None) + ["[splits]"] * (row.study.splits is None)
    name, suite = row.backbone.base or row.backbone.name, row.suite.name or ""
    transformations = all(map(_TRANSFORMATIONS.fullmatch, re.split("[+,]", suite)))
    for key, value, safe in (("backbones", [name], _HUB.fullmatch(name)), ("suite", suite, transformations)):
        if safe:
            own[key] = value
        else:
            missing.append(f"{key} (the name may be that of a file)")
    lines = toml_lines(_recorded(own))
    lines += ["", "[splits]", *toml_lines(_recorded(row.study.splits))] if row.study.splits else []
    tables, named = {*registry.REPORTED, *registry.registered()}, {each.name for each in fields(Study)}
    for stage, settings in row.study.settings.items():
        known = _settings(stage) if stage in tables else {}
        kept = {name: value for name, value in settings.items() if known.get(name) and value is not None}
        expert = [each.name for each in fields(ExpertConfig) if each.name in kept and stage == "probes"]
        if expert:  # results.json has settings of probes in one table
            kept["expert"] = {name: kept.pop(name) for name in expert}
        try:
            if stage in tables:
                registry.settings_of(stage, kept)
                missing += [f"{stage}.{name}" for name in settings if not known.get(name) and name not in SHARED]
                lines += ["", f"[{stage}]", *toml_lines(_recorded(kept))]
            elif stage in named or stage not in registry.STAGES:
                missing.append(f"[{toml_key(stage[:80])}]")
        except ConfigError:
            missing.append(f"[{stage}]")
    return "\n".join([f"# Not in this file: {', '.join(dict.fromkeys(missing))}.", *lines]) + "\n"


@cache
def _settings(stage: str) -> dict[str, bool]:
    """Fields of the settings of a stage, and whether they hold nothing but numbers and words of a list."""
    schema = TypeAdapter(registry.stage(stage).config).json_schema()
    tables = [schema, *schema.get("$defs", {}).values()]
    fields = {name: field for table in tables for name, field in table["properties"].items() if name not in SHARED}
    return {name: _is_plain(field) for name, field in fields.items()}


def _is_plain(schema: Mapping[str, Any]) -> bool:
    parts = [*schema.get("anyOf", ()), *schema.get("prefixItems", ()), *filter(None, [schema.get("items")])]
    if parts:
        return all(map(_is_plain, parts))
    return "enum" in schema or "const" in schema or schema.get("type") in ("integer", "number", "boolean", "null")


def _recorded(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """A value without nulls, which TOML does not have."""
    if isinstance(value, dict):
        return {name: _recorded(each) for name, each in value.items() if each is not None}
    return [_recorded(each) for each in value if each is not None] if isinstance(value, list) else value
