"""Options shared by several commands."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from substyle.engine.config import ExecutorConfig
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study import outputs
from substyle.pipelines.sources import SourceConfig


def source_config(options: argparse.Namespace, base: SourceConfig | None = None) -> SourceConfig:
    """Source configuration of a study or store, overridden by the command line."""
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


def executor_config(options: argparse.Namespace, base: ExecutorConfig) -> ExecutorConfig:
    """Executor configuration of a study, overridden by the command line."""
    given = {
        "kind": options.executor,
        "address": options.ray_address,
        "workers": options.workers,
        "retries": options.retries,
    }
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


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
