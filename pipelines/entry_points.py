"""Registries of what plug-ins add, also those of installed packages: their entry points are imported when a name is
asked for that nothing else has added.
"""

from __future__ import annotations

import logging
import threading
from importlib import metadata
from typing import TypeVar

from substyle.errors import ConfigError

log = logging.getLogger(__name__)

BACKBONES, COMMANDS, REPORT, SOURCES, STAGES, TRANSFORMATIONS = (
    f"substyle.{kind}" for kind in ("backbones", "commands", "report", "sources", "stages", "transformations")
)
T = TypeVar("T")
_POSITION = 100  # of what names none
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


class Registry(dict[str, T]):
    """What names stand for, by position and then in the order of registration.

    Args:
        what: for messages, what is registered.
        group: entry points of installed packages, whose modules register more.
    """

    def __init__(self, what: str, group: str) -> None:
        super().__init__()
        self.what, self.group = what, group
        self._positions: dict[str, int] = {}

    def add(self, name: str, registered: T, position: int = _POSITION) -> None:
        """Register something. Raises ConfigError if the name is taken."""
        if name in self:
            raise ConfigError(self.what, name, "an unused name")
        self[name], self._positions[name] = registered, position
        for later in [other for other in self if self._positions.get(other, _POSITION) > position]:
            self[later] = self.pop(later)

    def find(self, name: str) -> T | None:
        """Return what a name stands for, None if nothing; imports entry points if nothing else has registered it."""
        if name not in self:
            self.load()
        return self.get(name)

    def all(self) -> tuple[T, ...]:
        """Return everything, also of installed packages."""
        self.load()
        return tuple(self.values())

    def load(self) -> None:
        """Import the entry points."""
        load_entry_points(self.group)
