"""Names of transformations."""

from __future__ import annotations


def family(name: str) -> str:
    """The transformation without its severity: ``jpeg`` of ``jpeg@3``."""
    return name.partition("@")[0]
