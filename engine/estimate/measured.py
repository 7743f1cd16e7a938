"""Results of gpu-check that take the place of assumptions in a plan."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from substyle.kernels.errors import SubstyleError

FIELDS = ("backbones", "styles", "variants", "decode_bytes")  # fields of `Efficiency` measured by gpu-check


def fact(field: str) -> str:
    """Return the key of an `Efficiency` field in the rows of gpu-check."""
    return f"plan: {field}"


def measured(card: str, folder: Path) -> tuple[dict[str, float], list[str]]:
    """Return the newest measurement of each field of `Efficiency`, and the names of the files that they are from.

    Args:
        card: short name, a key of `DEVICES`.
        folder: results of gpu-check, one file per call; may not exist.

    Raises:
        SubstyleError: a results file is invalid, or was not measured on a GPU.
    """
    found: dict[str, tuple[float, str]] = {}
    documents = [(_document(path), path.name) for path in sorted(folder.glob("gpu-*.json"))]
    for data, name in sorted(documents, key=lambda one: str(one[0]["environment"].get("created", ""))):
        if data["environment"]["card"] == card:
            found |= {field: (value, name) for field, value in fields(data["rows"]).items()}
    return {field: value for field, (value, _) in found.items()}, sorted({name for _, name in found.values()})


def fields(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Extract fields of `Efficiency` from the rows of gpu-check: medians over rows, fractions at most 1."""
    found: dict[str, float] = {}
    for field in FIELDS:
        values = [row.get("facts", {}).get(fact(field)) for row in rows]
        usable = [float(v) for v in values if isinstance(v, int | float) and 0.0 < v < math.inf]
        if usable:
            middle = statistics.median(usable)
            found[field] = middle if field == "decode_bytes" else min(middle, 1.0)
    return found


def _document(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        good = data["benchmark"] == "gpu_check" and "card" in data["environment"] and isinstance(data["rows"], list)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SubstyleError(f"{path}: not a results file of gpu-check ({type(error).__name__}: {error})") from error
    if not good or data["environment"].get("fake"):
        raise SubstyleError(f"{path}: not a measurement of gpu-check on a GPU")
    return dict(data)
