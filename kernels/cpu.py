"""The CPU of this machine, as /proc/cpuinfo describes it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def _lines(*starts: str) -> tuple[str, ...]:
    """Different lines that begin with one of these words."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    return tuple(sorted({line for line in text.splitlines() if line.startswith(starts)}))


def identity() -> str:
    """Model and features, which compiled code depends on."""
    found = _lines("model name", "flags", "Features", "CPU part")
    return "|".join(found) or platform.processor() or platform.machine()


def model() -> str:
    """Name for people."""
    found = [line.partition(":")[2].strip() for line in _lines("model name")]
    return (*found, platform.processor() or platform.machine())[0]


def has(*features: str) -> bool:
    """Whether the CPU has one of these features, such as ``amx_bf16``."""
    return not {*features}.isdisjoint(word for line in _lines("flags", "Features") for word in line.split())
