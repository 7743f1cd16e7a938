"""Options shared by several commands."""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs
from substyle.errors import ConfigError


def of_source(changed: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the table ``source``, of those by dotted name."""
    return {name.removeprefix("source."): value for name, value in changed.items() if name.startswith("source.")}


def changes(options: argparse.Namespace, *allowed: str) -> dict[str, Any]:
    """Fields of a study that ``--set`` sets, by dotted name. Paths of a source are relative to this folder.

    Args:
        allowed: what may be set: fields, and tables that end in a dot. Default: everything.

    Raises:
        ConfigError: a ``--set`` without a field, or of another one.
    """
    found: dict[str, Any] = {} if getattr(options, "device", None) is None else {"device": options.device}
    for text in getattr(options, "set", ()):
        name, equals, value = map(str.strip, text.partition("="))
        if not equals or not all(name.split(".")):
            raise ConfigError("--set", text, "FIELD=VALUE, such as probes.mlp_steps=300")
        try:
            (found[name],) = tomllib.loads(f"value = {value}").values()
        except (ValueError, RecursionError):  # a word without quotes, or another field on a further line
            found[name] = value
        if allowed and name not in allowed and not name.startswith(tuple(each for each in allowed if each[-1] == ".")):
            raise ConfigError("--set", text, f"fields of {', '.join(each.rstrip('.') for each in allowed)}")
        if name in ("source.synsets", "source.names") and isinstance(found[name], str):
            found[name] = os.path.abspath(found[name])
    return found


def out_of(store: EmbeddingStore) -> Path:
    """Default of ``--out`` for a store: the folder of the run that created it, else a folder named after the store."""
    if isinstance(store.path, Path):
        path = store.path.resolve()
        return path.parent if outputs.claimed(path.parent) is not None else outputs.default_out(path.stem)
    return outputs.default_out(store.path.stem)
