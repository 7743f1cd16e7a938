"""Stages by name, in the order in which a study runs them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from substyle.engine.stages.stage import Stage
from substyle.engine.stages.stamp import with_leftovers
from substyle.engine.store.files import remove, writing

# modules of this package, imported when they are first used: some import much
NAMES = ["probes", "analysis", "similarity", "attack", "domains", "shift", "mistakes"]
REPORTED = ("probes", "analysis")  # backbones with results of one of these are reported
_found: dict[str, Stage[Any, Any]] = {}


def stage(name: str) -> Stage[Any, Any]:
    """Return a stage by name."""
    if name not in _found:
        _found[name] = import_module(f"substyle.engine.stages.{name}").STAGE
    return _found[name]


def stages() -> Iterator[Stage[Any, Any]]:
    """All stages in order."""
    return map(stage, NAMES)


def discard(out: Path, slug: str) -> None:
    """Delete the results of a backbone."""
    with writing(out):
        for path in (path for name in NAMES for path in with_leftovers(out / name / slug)):
            remove(path)
