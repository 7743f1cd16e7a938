"""Arithmetic inside compiled networks."""

from __future__ import annotations

from typing import Final, Literal

from substyle.kernels.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
AUTO = "auto"  # of backbones: left to the gate
INT8: Final = "int8"  # of backbones: 8-bit products, what is between them in 16 bits
FP8: Final = "fp8"  # of backbones: the same with products of E4M3 numbers
EightBits = Literal["int8", "fp8"]
EIGHT_BITS: tuple[EightBits, ...] = (INT8, FP8)


def as_precision(name: str, field: str = "precision") -> Precision:
    """A precision by name. Raises ConfigError naming those there are."""
    for known in PRECISIONS:
        if name == known:
            return known
    raise ConfigError(field, name, ", ".join(PRECISIONS))


def check_precision(field: str, name: str) -> None:
    """Raise ConfigError unless it is a precision that a backbone can be asked for."""
    allowed = (AUTO, *PRECISIONS, *EIGHT_BITS)
    if name not in allowed:
        raise ConfigError(field, name, ", ".join(allowed))


def as_eight_bits(name: str) -> EightBits | None:
    """A precision of 8 bits by name, None for another."""
    return next((known for known in EIGHT_BITS if name == known), None)
