"""Arithmetic inside compiled networks."""

from __future__ import annotations

from typing import Literal

from substyle.kernels.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


def as_precision(name: str, field: str = "precision") -> Precision:
    """A precision by name. Raises ConfigError naming those there are."""
    for known in PRECISIONS:
        if name == known:
            return known
    raise ConfigError(field, name, ", ".join(PRECISIONS))
