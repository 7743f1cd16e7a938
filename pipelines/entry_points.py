"""Plug-ins of installed packages: entry points, imported once a name is asked for that nothing else has registered."""

from __future__ import annotations

import logging
import threading
from importlib import metadata

log = logging.getLogger(__name__)

BACKBONES, COMMANDS, REPORT, SOURCES, STAGES, TRANSFORMATIONS = (
    f"substyle.{kind}" for kind in ("backbones", "commands", "report", "sources", "stages", "transformations")
)
_LOCK = threading.RLock()
_loaded: set[str] = set()


def load_entry_points(group: str) -> None:
    """Import the entry points of a group once; they register families, commands, sources and so on.

    One that fails is named in a warning and does not hinder the others.
    """
    with _LOCK:
        if group in _loaded:
            return
        _loaded.add(group)  # first: an entry point may ask for names itself
        for point in sorted(metadata.entry_points(group=group), key=lambda each: (each.name, each.value)):
            try:
                point.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever the package raises)
                package = f"{point.dist.name} {point.dist.version}" if point.dist else "a package"
                reason = f"{type(error).__name__}: {error}"
                log.warning("%s: entry point %s = %s of %s failed: %s", package, point.name, point.value, group, reason)
