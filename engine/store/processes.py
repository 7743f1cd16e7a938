"""Whether a process of this host is still the one that was met before."""

from __future__ import annotations

import os
import time
from pathlib import Path


def started(pid: int) -> str | None:
    """When a process began, in clock ticks since the system's start; None where the system does not tell.

    A number of a process is used again after its end; together with its start it is unique until the next boot.
    """
    fields = _stat(pid)
    return fields[19] if fields else None  # the 22nd field of proc(5)


def age() -> float | None:
    """Seconds since this process began, to a hundredth; None where the system does not tell."""
    start = started(os.getpid())
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(start) / os.sysconf("SC_CLK_TCK") if start else None


def is_running(pid: int, start: str | None = None) -> bool:
    """Whether a process of that number runs, and began at ``start`` where that is known."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no process has such a number
        return False
    except PermissionError:
        return True  # it runs as another user
    fields = _stat(pid)
    if not fields:
        return True
    ended = fields[0] in "ZX"  # a process that was killed and that nobody has waited for
    return not ended and (start is None or fields[19] == start)


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from the third, the state, on; empty where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name in parentheses may hold blanks
