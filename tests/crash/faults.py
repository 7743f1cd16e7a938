"""Something happens at the n-th change a process makes to the files below a folder: a signal, or an error of the disk.

Python tells audit hooks of every file that is opened, renamed, removed or made. Counting these gives every point at
which the state on the disk changes a number, so that a run can be stopped at each of them in turn. Uses the standard
library alone.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
import threading

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_FAILING = ("open", "os.rename", "os.mkdir", "os.link")  # what a full or read-only disk refuses
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TORN = b'{"torn'  # what a process has written of a file when it is killed


def install(root: str, at: int, action: str, log: int, reads: bool = False) -> None:
    """From now on count changes below ``root``; at number ``at`` do the action.

    Args:
        at: counted from 1; 0 only counts.
        action: name of a signal (``SIGKILL``: a file that was to be opened for writing is left torn), or of an error
            (``ENOSPC``), which this and every later change then meets.
        log: descriptor that gets a line for every change: its number, kind and path.
        reads: count the opening of files and the listing of folders instead of changes.
    """
    counter = itertools.count(1)
    # so that every change before a number is in the log; a handler of a signal may come in between, in the same thread
    lock = threading.RLock()
    inside = os.path.join(os.path.realpath(root), "")

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        path = _read(event, arguments) if reads else _changed(event, arguments)
        if path is None or not path.startswith(inside):
            return
        with lock:
            number = next(counter)
            os.write(log, f"{number} {event} {path.removeprefix(inside)}\n".encode())
        if not at or number < at:
            return
        if not action.startswith("SIG"):
            if event in _FAILING:
                code = getattr(errno, action)
                raise OSError(code, os.strerror(code), path)
        elif number == at:
            if action == "SIGKILL" and event == "open":
                _tear(path, arguments[1])
            os.kill(os.getpid(), getattr(signal, action))

    sys.addaudithook(hook)


def _changed(event: str, arguments: tuple[object, ...]) -> str | None:
    """The path that an event changes, None for events that change none."""
    if event == "open":
        flags = arguments[2]
        if not (isinstance(flags, int) and flags & _WRITING):
            return None
    elif event not in _CHANGES:
        return None
    given = arguments[0]
    if not isinstance(given, str | bytes):
        return None
    path = os.fsdecode(given)
    folder = arguments[-1]
    if event in ("os.remove", "os.rmdir") and isinstance(folder, int) and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))


def _read(event: str, arguments: tuple[object, ...]) -> str | None:
    """The path that an event reads, None for other events."""
    if event not in ("open", "os.listdir", "os.scandir") or not isinstance(arguments[0], str | bytes):
        return None
    return os.path.realpath(os.fsdecode(arguments[0]))


def _tear(path: str, mode: object) -> None:
    # only where the whole content was to be replaced; a file opened by its descriptor (a mutex) keeps what it has
    if isinstance(mode, str) and mode[:1] in ("w", "x"):
        fresh = os.open(path + ".torn", os.O_WRONLY | os.O_CREAT)  # not under the name, lest the hook meets itself
        os.write(fresh, TORN)
        os.close(fresh)
        os.replace(path + ".torn", path)
