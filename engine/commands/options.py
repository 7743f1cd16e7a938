"""Options shared by several commands."""

from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path
from typing import Any

from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs
from substyle.kernels.errors import ConfigError


def fields_of(options: argparse.Namespace, table: str) -> dict[str, Any]:
    """Fields of a table of study files that options set, such as ``--retries`` of ``executor``."""
    start = f"{table}."
    return {name.removeprefix(start): value for name, value in _set(options).items() if name.startswith(start)}


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of a study that the command line sets, by dotted name; ``--set`` has precedence over other options.

    Raises:
        ConfigError: a ``--set`` without a field.
    """
    found = {name.removeprefix("study."): value for name, value in _set(options).items()}
    for text in getattr(options, "set", ()):
        name, equals, value = map(str.strip, text.partition("="))
        if not equals or not all(name.split(".")):
            raise ConfigError("--set", text, "FIELD=VALUE, such as probes.mlp_steps=300")
        try:
            (found[name],) = tomllib.loads(f"value = {value}").values()
        except (ValueError, RecursionError):  # a word without quotes, or another field on a further line
            found[name] = value
    return found


def _set(options: argparse.Namespace) -> dict[str, Any]:
    """Options that are fields, by ``<table>.<field>``. Paths are relative to this folder, not to that of a study."""
    found = {name: value for name, value in vars(options).items() if "." in name and value is not None}
    return {name: Path(os.path.abspath(value)) if isinstance(value, Path) else value for name, value in found.items()}


def default_out(name: str) -> Path:
    """Default of ``--out``: ``runs/<name>``, or ``runs/<name>-results`` if that folder holds photographs or a store."""
    out = Path("runs") / name
    if out.is_dir() and any(out.iterdir()) and outputs.claimed(out) is None:
        return out.with_name(f"{name}-results")
    return out


def out_of(store: EmbeddingStore) -> Path:
    """Default of ``--out`` for a store: the folder of the run that created it, else a folder named after the store."""
    if isinstance(store.path, Path):
        path = store.path.resolve()
        return path.parent if outputs.claimed(path.parent) is not None else default_out(path.stem)
    return default_out(store.path.stem)
