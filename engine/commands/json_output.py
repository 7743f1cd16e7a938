"""`--json`: stdout is exactly one JSON object; everything else goes to stderr. Imports nothing heavy."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STDOUT, STDERR = 1, 2  # file descriptors
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # with changes of direction


def requested(arguments: Sequence[str]) -> bool:
    """Whether the arguments include ``--json``, possibly abbreviated, even if they are otherwise invalid."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any("--json".startswith(name) for name in (text.split("=")[0] for text in options) if len(name) > 2)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr for Python, C code and child processes."""
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
        last: redirect later output, such as that of libraries' exit handlers, to stderr.
    """
    print(text, flush=True)
    if last:
        saved = _redirect()
        if saved is not None:
            os.close(saved)
        sys.stdout = sys.stderr


class _Printable:
    """A text stream that shows control characters, such as those of file names, as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write printable text, line breaks and tabs."""
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


def printable(text: str) -> str:
    """Escape control characters, which terminals obey, except line breaks and tabs."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def wrapped(text: str, indent: int = 2) -> str:
    """Break a line at 100 columns, where it has spaces, and indent what follows."""
    return textwrap.fill(*(text, 100), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


@contextmanager
def printable_stdout() -> Iterator[None]:
    """Print names that files contain without obeying their control characters."""
    stream = sys.stdout
    if stream is not None:
        sys.stdout = _Printable(stream)
    try:
        yield
    finally:
        sys.stdout = stream


def discard_stdout() -> None:
    """Redirect stdout to /dev/null, so that flushing it at exit does not fail."""
    with suppress(AttributeError, OSError, ValueError):  # no stream, or one without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _redirect() -> int | None:
    """Redirect descriptor 1 to stderr. Returns a copy of the original, or None if the process has no stdout."""
    if sys.__stdout__ is None:  # closed at startup: descriptor 1 may be any other file
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
    """Flush buffers of descriptor 1 in Python and C stdio while it still points to stderr."""
    import ctypes

    with suppress(AttributeError, OSError, ValueError):
        if stream is not None and stream.fileno() == STDOUT:
            stream.flush()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).fflush(None)
