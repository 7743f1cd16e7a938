"""Plain documents as TOML, with what no TOML writer would write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEEP, BIG = "@deep@", "@big@"  # stand for nesting and a number that Python's own writers refuse


def toml(document: Mapping[str, Any]) -> bytes:
    """A document as TOML, one line for each of its fields; a null has no field."""
    lines = [f"{_key(key)} = {_value(value)}" for key, value in document.items() if value is not None]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, str) and value in (BIG, DEEP):
        return "0x" + "f" * 5_000 if value == BIG else "[" * 100 + "]" * 100
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(inner) for inner in value if inner is not None) + "]"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
