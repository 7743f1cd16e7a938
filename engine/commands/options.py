"""Options that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from substyle.engine.config import ExecutorConfig
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs
from substyle.pipelines.sources import SourceConfig


def source_config(options: argparse.Namespace, base: SourceConfig | None = None) -> SourceConfig:
    """How photographs are opened: as a study or a store says, but for what the command line says."""
    given = {
        "kind": options.source_kind,
        "image_column": options.image_column,
        "label_column": options.label_column,
        "path_column": options.path_column,
        "split_column": options.split_column,
        "splits": options.split_folders,
        "synsets": options.synsets,
        "names": options.class_names,
    }
    return dataclasses.replace(base or SourceConfig(), **{name: value for name, value in given.items() if value})


# The options that say where shards are embedded, for every command that fills a store.


def executor_config(options: argparse.Namespace, base: ExecutorConfig) -> ExecutorConfig:
    """As a study says, but for what the command line says."""
    given = {
        "kind": options.executor,
        "address": options.ray_address,
        "workers": options.workers,
        "retries": options.retries,
    }
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


# Where results go when ``--out`` is left out.


def default_out(name: str) -> Path:
    """``runs/<name>``, or ``runs/<name>-results`` where that is a folder of something else: photographs, or a store."""
    out = Path("runs") / name
    if out.is_dir() and any(out.iterdir()) and outputs.claimed(out) is None:
        return out.with_name(f"{name}-results")
    return out


def out_of(store: EmbeddingStore) -> Path:
    """Where results of a store go: to those of the run that made it, else to a folder named after it."""
    if isinstance(store.path, Path):
        path = store.path.resolve()
        return path.parent if outputs.claimed(path.parent) is not None else default_out(path.stem)
    return default_out(store.path.stem)
