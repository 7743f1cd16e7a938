"""One run owns a store: a lock file with the holder's run id, host, pid and start."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from substyle.kernels.errors import SubstyleError

NAME = "lock.json"


class LockedError(SubstyleError):
    """Another run holds the store."""


@contextmanager
def hold(store: Path, run: str) -> Iterator[None]:
    """Own the store for the block.

    A lock whose process is dead (same host, no such pid) is taken over with a message.

    Raises:
        LockedError: a live run, or one on another host, holds it.
    """
    path = store / NAME
    mine = {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat()}
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _take_over(path)
            continue
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(mine))
        break
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take_over(path: Path) -> None:
    try:
        holder = json.loads(path.read_text())
        run, host, pid = str(holder["run"]), str(holder["host"]), int(holder["pid"])
        since = str(holder["since"])
    except FileNotFoundError:
        return  # released meanwhile
    except (ValueError, KeyError, TypeError):
        run, host, pid, since = "unknown", socket.gethostname(), -1, "unknown"
    if host != socket.gethostname() or _alive(pid):
        raise LockedError(
            f"{path.parent}: run {run} (pid {pid} on {host}, since {since}) holds this store. "
            f"Wait for it to end; if it cannot be running any more, remove {path}."
        )
    print(f"taking over the lock of run {run} (pid {pid}, since {since}), which is no longer running", file=sys.stderr)
    path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
