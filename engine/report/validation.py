"""Validation of results.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from substyle.engine.report.data import Results, dig
from substyle.engine.store.files import read_json
from substyle.kernels.errors import SubstyleError
from substyle.kernels.files import inside

SCHEMA = 1
STATUSES = ("supported", "contradicted", "undecided", "not testable")
_DEPTH = 32  # maximum nesting; results.json has 7


@dataclass(frozen=True)
class _Required:
    """A shape that is neither missing nor null."""

    shape: Shape


# A shape is a type, a check that returns what it expects, the keys of an object ("*" being any other key), or the items
# of a list. Parts that are not required may be missing or null.
Shape = type | Callable[[object], str] | dict[str, "Shape"] | list["Shape"] | _Required


def _number(value: object) -> str:
    return "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"


def _flag(value: object) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _interval(value: object) -> str:
    good = isinstance(value, list) and len(value) == 2 and not any(_number(end) for end in value)
    return "" if good else "[low, high]"


def _texts(value: object) -> str:
    good = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return "" if good else "a list of strings"


def _status(value: object) -> str:
    return "" if value in STATUSES else ", ".join(STATUSES)


def _confusion(value: object) -> str:
    labels, counts = dig(value, "labels"), dig(value, "counts")
    good = not _texts(labels) and isinstance(counts, list) and len(counts) == len(labels)
    good = good and all(isinstance(row, list) and len(row) == len(labels) for row in counts)
    good = good and all(type(count) is int and count >= 0 for row in counts for count in row)
    return "" if good else "labels and a square matrix of counts"


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
        good = all(type(level) is int for level in levels) and not any(_number(v) for v in accuracy if v is not None)
        good = good and not any(_interval(each) for each in intervals if each is not None)
        half, low_high = dig(curve, "halfway"), dig(curve, "halfway_ci95")
        good = good and (half is None or not _number(half)) and (low_high is None or not _interval(low_high))
        if not good:
            return "severities (integers), accuracies and intervals"
    return ""


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


# the parts that the report reads
_NUMBERS: Shape = {"*": _number}
_INTERVALS: Shape = {"*": _interval}
_SCORES = ("accuracy", "styles", "seen", "held_out", "gap", "clean", "obfuscated")
_TRAINED: dict[str, Shape] = {
    **dict.fromkeys(("validation", "steps", *_SCORES), _number),
    **{f"{kind}ci95": _interval for kind in ("", "two_way_")},
    **{f"{score}_{kind}ci95": _interval for score in _SCORES for kind in ("", "two_way_")},
    **{key: _number for score in ("", *(f"{s}_" for s in _SCORES)) for key in (f"{score}se", f"{score}se_training")},
    **dict.fromkeys(("converged", "edge"), _flag),
    "certificate": dict,
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
_MISTAKE: Shape = {
    **dict.fromkeys(("key", "transformation", "truth", "predicted"), _Required(str)),
    "confidence": _Required(_number),
}
_FINETUNED: Shape = {
    **dict.fromkeys(("backbone", "objective"), _Required(str)),
    "seed": _Required(int),
    "settings": dict,
}
_BACKBONE: Shape = {
    "dim": int,
    "tokens": int,
    "control": _flag,
    **dict.fromkeys(("fine", "semantic"), _SINGLE),
    **dict.fromkeys(("coarse", "coarse_rotation"), _GROUPED),
    "coarse_redrawn": {"*": {**dict.fromkeys(("sets", "transformations", "mean", "sd", "low", "high"), _number)}},
    "domains": {"*": {"*": {"*": {**_TRAINED, "images": int, "by_transformation": _NUMBERS}}}},
    "equal_width": {"dim": int, "fine": _TRAINED, "rotation": _TRAINED},
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
            **dict.fromkeys(("depth", "width", "fine_parameters", "semantic_parameters"), int),
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
    "shift": {"*": {"accuracy": _number, "ci95": _interval, "images": int}},
    "map": _map,
    "mistakes": {"*": {"head": str, "scored": int, "wrong": int, "rows": [_MISTAKE]}},
    "attack": {"attacks": {"*": {"success": _number, "success_ci95": _interval, "detection": {"*": _DETECTED}}}},
    "spec": {"objective": str, "data": str, "parameters": _number, "finetuned": _FINETUNED},
    "runtime": dict,
    "label": str,
    "adapter": {"backbone": str, "method": str},
    "gate": {"cosine_min": _number, "threshold": _number, "spot": {"cosine_min": _number}},
    "cost": _NUMBERS,
}
_SIMILARITY: Shape = {"pairs": {"*": {"*": {"*": _interval, **dict.fromkeys(("cka", "rsa", "rsa_offsets"), _number)}}}}
_SCORED: tuple[tuple[str, Shape], ...] = (("", _number), ("_ci95", _interval))
_RESULTS: dict[str, Shape] = {
    **dict.fromkeys(("version", "created", "suite"), str),
    **dict.fromkeys(("resampled", "identity", "stamps", "environment"), dict),
    "settings": {"*": dict},
    "throughput": {"backbone_only_per_s": _NUMBERS, "*": _number},
    **dict.fromkeys(("splits", "chance", "indistinct"), _NUMBERS),
    "name": _Required(str),
    "images": _Required(int),
    **dict.fromkeys(("duplicates", "duplicates_moved"), int),
    "classes": list,
    "transformations": _Required(
        [
            {
                **dict.fromkeys(("name", "coarse", "role"), _Required(str)),
                "parameters": [{"name": _Required(str), "one_of": list, "uniform": _interval}],
            }
        ]
    ),
    "backbones": _Required(dict),
    "quarantined": [dict],
    "similarity": _SIMILARITY,
    "comparisons": [
        {
            **dict.fromkeys(("task", "a", "b"), _Required(str)),
            "difference": _Required(_number),
            **dict.fromkeys(("metric", "head"), str),
            **dict.fromkeys(("ci95", "ci90", "two_way_ci95"), _interval),
            **dict.fromkeys(("se", "se_training", "p", "p_holm"), _number),
        }
    ],
    "robustness": [
        {
            "shift": str,
            **{key + end: shape for key in ("spearman", "kendall") for end, shape in _SCORED},
            "backbones": {"*": {key + end: shape for key in ("sensitivity", "loss") for end, shape in _SCORED}},
        }
    ],
    "claims": [
        {
            **dict.fromkeys(("id", "statement"), _Required(str)),
            "status": _Required(_status),
            "unit": str,
            "groups": {"*": _texts},
            **dict.fromkeys(("estimate", "margin"), _number),
            "n_transformations": int,
            "ci": _interval,
            "reasons": _texts,
        }
    ],
}
_SHARES = {
    *("accuracy", "styles", "seen", "held_out", "clean", "obfuscated", "same_image", "same_transformation", "neither"),
    *("success", "auroc", "tpr", "confidence"),
}


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
    for key, shape in _RESULTS.items():
        if isinstance(shape, _Required) and key not in results:
            raise SubstyleError(f"results.{key}: missing")
    for place, key, value in _numbers(results, "results"):
        if not math.isfinite(value):
            raise SubstyleError(f"{place}: expected a finite number, got {value}")
        if key in _SHARES and not -1e-6 <= value <= 1 + 1e-6:
            raise SubstyleError(f"{place}: expected a number between 0 and 1, got {value}")
    _check("results", results, _RESULTS)
    for name, backbone in results["backbones"].items():
        _check(f"results.backbones[{name!r}]", backbone, _Required(_BACKBONE))


def _check(place: str, value: object, shape: Shape) -> None:
    if isinstance(shape, _Required):
        shape = shape.shape
    elif value is None:
        return
    kind = shape if isinstance(shape, type) else next((k for k in (dict, list) if isinstance(shape, k)), object)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SubstyleError(f"{place}: expected {kind.__name__}, got {type(value).__name__}")
    if isinstance(shape, dict):
        assert isinstance(value, dict)
        required = dict.fromkeys(key for key, part in shape.items() if isinstance(part, _Required))
        for key, inner in {**required, **value}.items():
            if (part := shape.get(key, shape.get("*"))) is not None:
                _check(f"{place}.{key}", inner, part)
    elif isinstance(shape, list):
        assert isinstance(value, list)
        for i, item in enumerate(value):
            _check(f"{place}[{i}]", item, _Required(shape[0]))
    elif not isinstance(shape, type | _Required) and (expected := shape(value)):
        short = type(value).__name__ if isinstance(value, list | dict) else repr(value)[:80]
        raise SubstyleError(f"{place}: expected {expected}, got {short}")


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
    """Read and validate a results.json. Raises SubstyleError with the path, also for a link."""
    results = read_json(inside(path.parent, path.name))
    try:
        validate_results(results)
    except SubstyleError as error:
        raise SubstyleError(f"{path}: {error}") from error
    checked: Results = results
    return checked
