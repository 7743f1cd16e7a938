"""A signal at the n-th change that a process makes to the files below a folder.

Python tells audit hooks of every file that is opened, renamed, removed or made. Counting these gives every point at
which the state on the disk changes a number. Uses the standard library alone.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def install(root: str, at: int, action: str, log: int, reads: bool = False) -> None:
    """From now on count changes below ``root``; number ``at`` sends the signal ``action`` (0 only counts).

    Args:
        action: for ``SIGKILL`` a file that was to be opened for writing is left torn.
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
        if at and number == at:
            if action == "SIGKILL" and event == "open":
                _tear(path, arguments[1])
            os.kill(os.getpid(), getattr(signal, action))

    sys.addaudithook(hook)


def _changed(event: str, arguments: tuple[object, ...]) -> str | None:
    given = arguments[0] if arguments else None
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if not (writing or event in _CHANGES) or not isinstance(given, str | bytes):
        return None
    path, folder = os.fsdecode(given), arguments[-1]
    if event in ("os.remove", "os.rmdir") and isinstance(folder, int) and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))


def _read(event: str, arguments: tuple[object, ...]) -> str | None:
    if event not in ("open", "os.listdir", "os.scandir") or not isinstance(arguments[0], str | bytes):
        return None
    return os.path.realpath(os.fsdecode(arguments[0]))


def _tear(path: str, mode: object) -> None:
    # only where the whole content was to be replaced; a file opened by its descriptor (a mutex) keeps what it has
    if isinstance(mode, str) and mode[:1] in ("w", "x"):
        with open(path + ".torn", "xb") as fresh:  # not under the name, lest the hook meets itself
            fresh.write(b'{"torn')
        os.replace(path + ".torn", path)
