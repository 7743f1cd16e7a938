"""Names of transformations."""

from __future__ import annotations

from collections.abc import Iterable


def family(name: str) -> str:
    """The transformation without its severity: ``jpeg`` of ``jpeg@3``."""
    return name.partition("@")[0]


def count_families(names: Iterable[str]) -> int:
    """Number of transformations; severities of one count as one."""
    return len(set(map(family, names)))
