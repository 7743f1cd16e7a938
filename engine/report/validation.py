"""Validation of results.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from substyle.engine.report.data import Results, dig
from substyle.engine.store.files import read_json
from substyle.kernels.errors import SubstyleError

SCHEMA = 1
STATUSES = ("supported", "contradicted", "undecided", "not testable")
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
    "resampled": dict,
    "quarantined": list,
    "indistinct": dict,
    "identity": dict,
    "stamps": dict,
    "throughput": dict,
    "environment": dict,
    "comparisons": list,
    "robustness": list,
    "claims": list,
}
_DEPTH = 32  # maximum nesting; results.json has 7


def _number(value: object) -> str:
    return "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"


def _whole(value: object) -> str:
    return "" if isinstance(value, int) and not isinstance(value, bool) else "an integer"


def _text(value: object) -> str:
    return "" if isinstance(value, str) else "a string"


def _flag(value: object) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _interval(value: object) -> str:
    good = isinstance(value, list) and len(value) == 2 and not any(_number(end) for end in value)
    return "" if good else "[low, high]"


def _texts(value: object) -> str:
    return "" if isinstance(value, list) and not any(map(_text, value)) else "a list of strings"


def _status(value: object) -> str:
    return "" if value in STATUSES else ", ".join(STATUSES)


def _confusion(value: object) -> str:
    labels, counts = dig(value, "labels"), dig(value, "counts")
    good = isinstance(labels, list) and isinstance(counts, list) and not any(_text(label) for label in labels)
    for row in [counts, *counts] if good else ():
        good = good and isinstance(row, list) and len(row) == len(labels)
    good = good and not any(_whole(count) or count < 0 for row in counts for count in row)
    return "" if good else "labels and a square matrix of counts"


def _parameters(value: object) -> str:
    listed = value if isinstance(value, list) else [None]
    good = all(isinstance(dig(p, "name"), str) and isinstance(dig(p, "one_of") or [], list) for p in listed)
    good = good and not any(_interval(dig(p, "uniform")) for p in listed if dig(p, "uniform") is not None)
    return "" if good else "a list of parameters"


def _by_k(value: object) -> str:
    numbers = value if isinstance(value, dict) else {"": None}
    good = all(k.isascii() and k.isdigit() and len(k) < 10 for k in numbers)
    return "" if good and not any(_number(v) for v in numbers.values() if v is not None) else "numbers by k"


def _curves(value: object) -> str:
    """Check accuracies by severity."""
    for curve in value.values() if isinstance(value, dict) else [None]:
        levels, accuracy, intervals = (dig(curve, key) for key in ("severities", "accuracy", "ci95"))
        if not all(isinstance(each, list) and len(each) == len(levels) for each in (levels, accuracy, intervals)):
            return "severities, accuracy and ci95 of one length"
        good = not any(map(_whole, levels)) and not any(_number(v) for v in accuracy if v is not None)
        good = good and not any(_interval(each) for each in intervals if each is not None)
        half, low_high = dig(curve, "halfway"), dig(curve, "halfway_ci95")
        good = good and (half is None or not _number(half)) and (low_high is None or not _interval(low_high))
        if not good:
            return "severities (integers), accuracies and intervals"
    return ""


def _finetuned(value: object) -> str:
    good = not any(_text(dig(value, key)) for key in ("backbone", "objective")) and not _whole(dig(value, "seed"))
    return "" if good and isinstance(dig(value, "settings"), dict | None) else "backbone, objective, seed and settings"


def _mistakes(value: object) -> str:
    texts = ("key", "transformation", "truth", "predicted")
    rows = value if isinstance(value, list) else [None]
    good = not any(_text(dig(row, key)) for row in rows for key in texts)
    good = good and not any(_number(dig(row, "confidence")) for row in rows)
    return "" if good else "a list of variants with truth, prediction and confidence"


def _map(value: object) -> str:
    x, y, transformation, label, names, coarse = (
        dig(value, key) for key in ("x", "y", "transformation", "class", "transformations", "coarse")
    )
    columns = (x, y, transformation, label)
    good = all(isinstance(each, list) and each and len(each) == len(x) for each in columns)
    good = good and all(isinstance(each, int) for column in columns for each in column)
    good = good and not _texts(names) and not _texts(coarse) and len(names) == len(coarse)
    good = good and min(transformation) >= 0 and max(transformation) < len(names) and min(label) >= -1
    return "" if good else "columns of one length: x, y, transformation, class; names of transformations"


# Schema of the parts that the report reads; all are optional or null. A shape is a check that returns what it expects,
# or the keys of an object, "*" being any other key.
Shape = Callable[[object], str] | dict[str, "Shape"]
_ANY: Shape = {}
_NUMBERS: Shape = {"*": _number}
_INTERVALS: Shape = {"*": _interval}
_SCORES = ("accuracy", "styles", "seen", "held_out", "gap", "clean", "obfuscated")
_TRAINED: dict[str, Shape] = {
    **dict.fromkeys(("validation", "steps", *_SCORES), _number),
    **{f"{kind}ci95": _interval for kind in ("", "two_way_")},
    **{f"{score}_{kind}ci95": _interval for score in _SCORES for kind in ("", "two_way_")},
    **{key: _number for score in ("", *(f"{s}_" for s in _SCORES)) for key in (f"{score}se", f"{score}se_training")},
    **dict.fromkeys(("converged", "edge"), _flag),
    "certificate": {},
    "confusion": _confusion,
}
_SINGLE: Shape = {"*": {**_TRAINED, "by_transformation": _NUMBERS, "by_severity": _curves}}
_GROUPED: Shape = {
    "*": {
        **_TRAINED,
        "by_transformation": {"*": {"accuracy": _number, "ci95": _interval}},
        "generators": {"*": _TRAINED},
    }
}
_TASKS: dict[str, Shape] = {"fine": _number, "fine_ci95": _interval, "semantic": _number, "semantic_ci95": _interval}
_MEASURES = ("task", "control", "selectivity", "memorised", "bits", "compression", "uniform", "needed", "expected")
_MEASURED: dict[str, Shape] = {
    **dict.fromkeys(("accuracy", *_MEASURES), _number),
    **{f"{name}_ci95": _interval for name in _MEASURES},
    "converged": _flag,
}
_SIZED = [f"{score}{kind}" for score in ("fine", "semantic", "obfuscated") for kind in ("", "_difference")]
_DETECTED: Shape = {"auroc": _number, "tpr": _number, "auroc_ci95": _interval, "tpr_ci95": _interval}
_BACKBONE: Shape = {
    "dim": _whole,
    "tokens": _whole,
    "control": _flag,
    **dict.fromkeys(("fine", "semantic"), _SINGLE),
    **dict.fromkeys(("coarse", "coarse_rotation"), _GROUPED),
    "coarse_redrawn": {"*": {**dict.fromkeys(("sets", "transformations", "mean", "sd", "low", "high"), _number)}},
    "domains": {"*": {"*": {"*": {**_TRAINED, "images": _whole, "by_transformation": _NUMBERS}}}},
    "equal_width": {"dim": _whole, "fine": _TRAINED, "rotation": _TRAINED},
    "extractability": {
        "*": {
            "*": {
                **dict.fromkeys(("selectivity", "codelength"), _MEASURED),
                "curve": {**_MEASURED, "points": {"*": {"accuracy": _number, "ci95": _interval}}},
                "shuffled": {**_MEASURED, "range95": _interval, "at_chance": _flag},
            }
        }
    },
    "complexity": {
        "*": {
            **dict.fromkeys(("depth", "width", "fine_parameters", "semantic_parameters"), _whole),
            **dict.fromkeys((*_SIZED, "fine_validation", "semantic_validation"), _number),
            **{f"{score}_ci95": _interval for score in _SIZED},
            **dict.fromkeys(("front", "fine_converged", "semantic_converged"), _flag),
            "selected": _texts,
        }
    },
    "multitask": {
        **_TRAINED,
        **_TASKS,
        "task_weight": _number,
        "single_task": _TASKS,
        "difference": {"*": {"value": _number, "ci95": _interval, "ci90": _interval}},
    },
    "knn": {"transformation": _by_k, "class": _by_k, "transformation_ci95": _INTERVALS, "class_ci95": _INTERVALS},
    "balance": _NUMBERS,
    "balance_ci95": _INTERVALS,
    "retrieval": {"*": _by_k},
    "clusters": {
        "k": _NUMBERS,
        **dict.fromkeys(("ami_transformation", "ami_class"), _number),
        **dict.fromkeys(("ami_transformation_ci95", "ami_class_ci95"), _interval),
    },
    **dict.fromkeys(("sensitivity", "equivariance", "steerability", "steerability_unchanged"), _NUMBERS),
    **dict.fromkeys(("sensitivity_ci95", "equivariance_ci95"), _INTERVALS),
    "shift": {"*": {"accuracy": _number, "ci95": _interval, "images": _whole}},
    "map": _map,
    "mistakes": {"*": {"head": _text, "scored": _whole, "wrong": _whole, "rows": _mistakes}},
    "attack": {"attacks": {"*": {"success": _number, "success_ci95": _interval, "detection": {"*": _DETECTED}}}},
    "spec": {"objective": _text, "data": _text, "parameters": _number, "finetuned": _finetuned},
    "runtime": _ANY,
    "label": _text,
    "adapter": {"backbone": _text, "method": _text},
    "gate": {"cosine_min": _number, "threshold": _number, "spot": {"cosine_min": _number}},
    "cost": _NUMBERS,
}
_COMPARISON: Shape = {
    **dict.fromkeys(("metric", "head"), _text),
    **dict.fromkeys(("ci95", "ci90", "two_way_ci95"), _interval),
    **dict.fromkeys(("se", "se_training", "p", "p_holm"), _number),
}
_SIMILARITY: Shape = {"pairs": {"*": {"*": {"*": _interval, **dict.fromkeys(("cka", "rsa", "rsa_offsets"), _number)}}}}
_SCORED: tuple[tuple[str, Shape], ...] = (("", _number), ("_ci95", _interval))
_CORRELATED: Shape = {
    "shift": _text,
    **{key + end: shape for key in ("spearman", "kendall") for end, shape in _SCORED},
    "backbones": {"*": {key + end: shape for key in ("sensitivity", "loss") for end, shape in _SCORED}},
}
_CLAIM: Shape = {
    **dict.fromkeys(("id", "statement", "unit"), _text),
    "status": _status,
    "groups": {"*": _texts},
    **dict.fromkeys(("estimate", "margin"), _number),
    "n_transformations": _whole,
    "ci": _interval,
    "reasons": _texts,
}
_SHARES = {
    "accuracy",
    "styles",
    "seen",
    "held_out",
    "clean",
    "obfuscated",
    "same_image",
    "same_transformation",
    "neither",
} | {"success", "auroc", "tpr", "confidence"}


def validate_results(results: object) -> None:
    """Validate results.json.

    Checks the schema number, required sections, types of all sections, that fractions are in [0, 1] and that all
    numbers are finite.

    Raises:
        SubstyleError: the results are invalid; the message names the path.
    """
    if not isinstance(results, dict):
        raise SubstyleError(f"results: expected an object, got {type(results).__name__}")
    if results.get("schema") != SCHEMA:
        raise SubstyleError(f"results.schema: expected {SCHEMA}, got {results.get('schema')!r}")
    for key, kind in _REQUIRED.items():
        if key not in results:
            raise SubstyleError(f"results.{key}: missing")
        _check_kind(f"results.{key}", results[key], kind)
    for key, kind in _OPTIONAL.items():
        if results.get(key) is not None:
            _check_kind(f"results.{key}", results[key], kind)
    for place, key, value in _numbers(results, "results"):
        if not math.isfinite(value):
            raise SubstyleError(f"{place}: expected a finite number, got {value}")
        if key in _SHARES and not -1e-6 <= value <= 1 + 1e-6:
            raise SubstyleError(f"{place}: expected a number between 0 and 1, got {value}")
    for key in ("splits", "chance", "indistinct"):
        _check_shape(f"results.{key}", results.get(key), _NUMBERS)
    _check_shape("results.similarity", results.get("similarity"), _SIMILARITY)
    _check_rows(results)
    _check_backbones(results)


def _check_rows(results: Results) -> None:
    for i, transformation in enumerate(results["transformations"]):
        _check_kind(f"results.transformations[{i}]", transformation, dict)
        for key in ("name", "coarse", "role"):
            _check_kind(f"results.transformations[{i}].{key}", transformation.get(key), str)
        _check_shape(f"results.transformations[{i}]", transformation, {"parameters": _parameters})
    for i, row in enumerate(results.get("robustness") or []):
        _check_kind(f"results.robustness[{i}]", row, dict)
        _check_shape(f"results.robustness[{i}]", row, _CORRELATED)
    for i, row in enumerate(results.get("comparisons") or []):
        _check_kind(f"results.comparisons[{i}]", row, dict)
        for key, kind in (("task", str), ("a", str), ("b", str), ("difference", (int, float))):
            _check_kind(f"results.comparisons[{i}].{key}", row.get(key), kind)
        _check_shape(f"results.comparisons[{i}]", row, _COMPARISON)
    for i, row in enumerate(results.get("claims") or []):
        _check_kind(f"results.claims[{i}]", row, dict)
        for key in ("id", "statement", "status"):
            _check_kind(f"results.claims[{i}].{key}", row.get(key), str)
        _check_shape(f"results.claims[{i}]", row, _CLAIM)
    for i, row in enumerate(results.get("quarantined") or []):
        _check_kind(f"results.quarantined[{i}]", row, dict)


def _check_backbones(results: Results) -> None:
    for name, backbone in results["backbones"].items():
        place = f"results.backbones[{name!r}]"
        _check_kind(place, backbone, dict)
        _check_shape(place, backbone, _BACKBONE)


def _check_shape(place: str, value: object, shape: Shape) -> None:
    if value is None:
        return
    if callable(shape):
        if expected := shape(value):
            raise SubstyleError(f"{place}: expected {expected}, got {_short(value)}")
        return
    _check_kind(place, value, dict)
    assert isinstance(value, dict)
    for key, inner in value.items():
        part = shape.get(key, shape.get("*"))
        if part is not None:
            _check_shape(f"{place}.{key}", inner, part)


def _short(value: object) -> str:
    return type(value).__name__ if isinstance(value, list | dict) else repr(value)[:80]


def _check_kind(place: str, value: object, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        raise SubstyleError(f"{place}: expected {expected}, got {type(value).__name__}")


def _numbers(value: object, place: str, key: str = "") -> Iterator[tuple[str, str, float]]:
    todo: list[tuple[object, str, str, int]] = [(value, place, key, 0)]
    while todo:
        value, place, key, depth = todo.pop()
        if depth > _DEPTH:
            raise SubstyleError(f"{place[:200]}: nested more than {_DEPTH} levels deep")
        if isinstance(value, dict):
            todo += [(inner, f"{place}.{name}", str(name), depth + 1) for name, inner in reversed(value.items())]
        elif isinstance(value, list):
            todo += [(inner, f"{place}[{i}]", "", depth + 1) for i, inner in reversed(list(enumerate(value)))]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield place, key, float(value) if isinstance(value, float) or abs(value) < 2**63 else math.inf


def read_results(path: Path) -> Results:
    """Read and validate a results.json. Raises SubstyleError with the path."""
    results = read_json(path)
    try:
        validate_results(results)
    except SubstyleError as error:
        raise SubstyleError(f"{path}: {error}") from error
    checked: Results = results
    return checked
