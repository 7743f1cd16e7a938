"""results.json as the report reads it: checked once, then looked up without fear of what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from substyle.kernels.errors import SubstyleError

SCHEMA = 1
HEADS = ("linear", "mlp")
Results = dict[str, Any]

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "images": int,
    "transformations": list,
    "backbones": dict,
}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "version": str,
    "created": str,
    "suite": str,
    "splits": dict,
    "classes": list,
    "chance": dict,
    "quarantined": list,
    "indistinct": dict,
    "throughput": dict,
    "environment": dict,
    "comparisons": list,
}
_SECTIONS = (
    "fine",
    "coarse",
    "coarse_rotation",
    "semantic",
    "multitask",
    "knn",
    "balance",
    "retrieval",
    "clusters",
    "sensitivity",
    "equivariance",
    "steerability",
    "shift",
    "spec",
    "runtime",
    "gate",
)
_SHARES = {"accuracy", "seen", "held_out", "clean", "obfuscated", "same_image", "same_transformation", "neither"}


def validate_results(results: object) -> None:
    """Check that this is a results.json that the report can read.

    Checks the schema number, the sections that must be there, the kind of every section that may be, that shares lie
    in [0, 1] and that every number is finite.

    Raises:
        SubstyleError: naming the place and what is wrong with it.
    """
    if not isinstance(results, dict):
        raise SubstyleError(f"results: expected an object, got {type(results).__name__}")
    if results.get("schema") != SCHEMA:
        raise SubstyleError(f"results.schema: got {results.get('schema')!r}, this version reads {SCHEMA}")
    for key, kind in _REQUIRED.items():
        if key not in results:
            raise SubstyleError(f"results.{key}: missing")
        _check_kind(f"results.{key}", results[key], kind)
    for key, kind in _OPTIONAL.items():
        if results.get(key) is not None:
            _check_kind(f"results.{key}", results[key], kind)
    _check_rows(results)
    _check_backbones(results)
    for place, key, value in _numbers(results, "results"):
        if not math.isfinite(value):
            raise SubstyleError(f"{place}: {value} is not a finite number")
        if key in _SHARES and not -1e-6 <= value <= 1 + 1e-6:
            raise SubstyleError(f"{place}: {value} is not a share between 0 and 1")


def _check_rows(results: Results) -> None:
    for i, transformation in enumerate(results["transformations"]):
        _check_kind(f"results.transformations[{i}]", transformation, dict)
        for key in ("name", "coarse", "role"):
            _check_kind(f"results.transformations[{i}].{key}", transformation.get(key), str)
    for i, row in enumerate(results.get("comparisons") or []):
        _check_kind(f"results.comparisons[{i}]", row, dict)
        for key, kind in (("task", str), ("a", str), ("b", str), ("difference", (int, float))):
            _check_kind(f"results.comparisons[{i}].{key}", row.get(key), kind)
    for i, row in enumerate(results.get("quarantined") or []):
        _check_kind(f"results.quarantined[{i}]", row, dict)


def _check_backbones(results: Results) -> None:
    for name, backbone in results["backbones"].items():
        place = f"results.backbones[{name!r}]"
        _check_kind(place, backbone, dict)
        for section in _SECTIONS:
            if backbone.get(section) is not None:
                _check_kind(f"{place}.{section}", backbone[section], dict)
        for task in ("fine", "coarse", "semantic"):
            for head, scores in (backbone.get(task) or {}).items():
                _check_kind(f"{place}.{task}.{head}", scores, dict)


def _check_kind(place: str, value: object, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        raise SubstyleError(f"{place}: expected {expected}, got {type(value).__name__}")


def _numbers(value: object, place: str, key: str = "") -> Iterator[tuple[str, str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{place}.{name}", str(name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{place}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield place, key, float(value)


def read_results(path: Path) -> Results:
    """Read and check a results.json. Raises SubstyleError that names the file."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SubstyleError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SubstyleError(f"{path}: not JSON ({error})") from error
    try:
        validate_results(results)
    except SubstyleError as error:
        raise SubstyleError(f"{path}: {error}") from error
    checked: Results = results
    return checked


def dig(value: object, *path: str) -> Any:  # noqa: ANN401 (JSON)
    """The value at a path of keys; None where any part of the way is missing or null."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def ordered(results: Results) -> list[str]:
    """Names of the backbones, in the order given, controls last."""
    return sorted(results["backbones"], key=lambda name: bool(dig(results, "backbones", name, "control")))


def real(results: Results) -> list[str]:
    """Names of the backbones that are no controls."""
    return [name for name in ordered(results) if not dig(results, "backbones", name, "control")]


def heads(results: Results) -> list[str]:
    """The heads that any probe of any backbone was trained with, linear first."""
    found = {
        head
        for backbone in results["backbones"].values()
        for task in ("fine", "coarse", "semantic")
        for head, scores in (backbone.get(task) or {}).items()
        if scores
    }
    return [head for head in HEADS if head in found] + sorted(found.difference(HEADS))


def head_name(head: str) -> str:
    """A head's name in prose."""
    return "MLP" if head == "mlp" else head


def transformations(results: Results) -> list[str]:
    """Names of the transformations, in suite order."""
    return [row["name"] for row in results["transformations"]]
