"""`--json`: stdout is exactly one JSON object; everything else goes to stderr. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

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
