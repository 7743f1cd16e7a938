"""Options that several commands share, and `--json`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

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


# `--json`: stdout is exactly one JSON object; everything else goes to stderr.

STDOUT, STDERR = 1, 2  # file descriptors


def requested(arguments: Sequence[str]) -> bool:
    """Whether a command line has ``--json``, also one that does not parse. argparse accepts abbreviations."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any("--json".startswith(name) for name in (text.split("=")[0] for text in options) if len(name) > 2)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send everything that is written to stdout to stderr: by Python, by C code, by child processes."""
    stream, saved = sys.stdout, _redirect()
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        _flush(stream)
        if saved is not None:
            os.dup2(saved, STDOUT)
            os.close(saved)
        sys.stdout = stream


def write(text: str, *, last: bool) -> None:
    """Write the JSON object to stdout.

    Args:
        last: nothing may follow it: what exit handlers of libraries write goes to stderr.
    """
    print(text, flush=True)
    if last:
        saved = _redirect()
        if saved is not None:
            os.close(saved)
        sys.stdout = sys.stderr


def discard_stdout() -> None:
    """Point stdout at /dev/null, so that the interpreter does not fail at exit to flush what cannot be written."""
    with suppress(AttributeError, OSError, ValueError):  # no stream, or one without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _redirect() -> int | None:
    """Point descriptor 1 at stderr. Returns a copy of what it was, or None where the process has no stdout."""
    if sys.__stdout__ is None:  # closed from the start: the number may belong to any other file
        return None
    try:
        saved = os.dup(STDOUT)
    except OSError:
        return None
    try:
        os.dup2(STDERR, STDOUT)
    except OSError:  # stderr is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return saved


def _flush(stream: TextIO | None) -> None:
    """Write out what is buffered for descriptor 1, here and in C's stdio, while it still points at stderr."""
    import ctypes

    with suppress(AttributeError, OSError, ValueError):
        if stream is not None and stream.fileno() == STDOUT:
            stream.flush()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).fflush(None)
