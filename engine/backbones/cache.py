"""The cache of compiled artefacts: graphs, blobs and gate results, each under the hash of all it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def root() -> Path:
    """Folder of the cache: $SUBSTYLE_CACHE, else substyle under $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("SUBSTYLE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "substyle"


def key(facts: dict[str, Any]) -> str:
    """24 hex digits for plain JSON facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def device() -> str:
    """What a compiled blob is tied to on a CPU: model and instruction sets."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        return "|".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    return platform.processor() or platform.machine()


def cpu_model() -> str:
    """The CPU's name for people."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fetch(name: str, make: Callable[[], bytes]) -> bytes:
    """The bytes kept under a name, made and kept when they are not there. Concurrent makers do no harm."""
    path = root() / name
    if path.is_file():
        return path.read_bytes()
    data = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
    return data
