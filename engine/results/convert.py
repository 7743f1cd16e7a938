"""Documents of results of earlier schemas, as the models have them today.

Rules are data: which numbers are estimates, where they are, and of which the interval to show is two-way; which words
are others today, and where they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from substyle.engine.results.model import SCHEMA, entry_of
from substyle.engine.words import PHOTOGRAPHS, TASKS, of_today
from substyle.errors import SubstyleError

JSON = dict[str, Any]
_FLAT: Final = 1  # numbers beside their intervals: ``x``, ``x_ci95``, ``x_two_way_ci95``, ``x_se``, …
_FORMER_WORDS: Final = 3  # estimates, in the words of schema 1

# The numbers that are estimates, by the path of their object; * is any key or index. Numbers in objects and lists are
# beside intervals in ones of the same keys.
_PROBE = ("accuracy", "seen", "held_out", "gap", "balanced", "styles", "clean", "obfuscated")
_ESTIMATES: Mapping[str, tuple[str, ...]] = {
    "comparisons *": ("difference",),
    "attentive differences *": ("difference",),
    "generators contrasts *": ("difference",),
    "claims *": ("estimate",),
    "robustness *": ("spearman", "kendall"),
    "robustness * backbones *": ("sensitivity", "loss"),
    "similarity pairs * *": ("cka", "rsa", "rsa_offsets"),
    **{f"backbones * {task} *": _PROBE for task in ("fine", "coarse", "coarse_rotation", "semantic")},
    **{f"backbones * {task} * by_transformation *": ("accuracy",) for task in ("coarse", "coarse_rotation")},
    "backbones * coarse_rotation * generators *": ("accuracy",),
    "backbones * equal_width *": _PROBE,
    "backbones * equal_width rotation by_transformation *": ("accuracy",),
    "backbones * equal_width rotation generators *": ("accuracy",),
    **{f"backbones * {task} * by_severity *": ("accuracy", "halfway") for task in ("fine", "semantic")},
    "backbones * equal_width fine by_severity *": ("accuracy", "halfway"),
    "backbones * multitask": ("fine", "semantic", "obfuscated"),
    "backbones * multitask single_task": ("fine", "semantic"),
    "backbones * multitask difference *": ("value",),
    "backbones * attentive * *": _PROBE,
    "backbones * attentive * * by_transformation *": ("accuracy",),
    "backbones * attentive * * by_severity *": ("accuracy", "halfway"),
    "backbones *": ("balance", "sensitivity", "equivariance"),
    "backbones * knn": ("transformation", "class"),
    "backbones * clusters": ("ami_transformation", "ami_class"),
    "backbones * shift *": ("accuracy",),
    "backbones * domains * * *": _PROBE,
    "backbones * few_shot": ("accuracy",),
    "backbones * parameters by_transformation * *": ("r2", "error"),
    "backbones * shortcut": ("price", "loss"),
    "backbones * shortcut by_transformation *": ("price", "loss"),
    "backbones * labels by_label *": ("accuracy", "r2", "error"),
    **{f"backbones * labels by_label * {part}": ("accuracy", "r2", "error") for part in ("fixed", "few_shot", "mlp")},
    "backbones * labels by_label * substance": ("within", "across", "drop"),
    "backbones * labels by_label * shortcut": ("price",),
    "backbones * movement": ("loss",),
    "backbones * movement measures *": ("mean", "spearman", "difference"),
    "backbones * generators": ("accuracy",),
    "backbones * attack attacks *": ("success",),
    "backbones * attack attacks * detection *": ("auroc", "tpr"),
    "backbones * extractability * * selectivity": ("task", "control", "selectivity", "memorised"),
    "backbones * extractability * * codelength": ("bits", "compression"),
    "backbones * extractability * * curve": ("needed",),
    "backbones * extractability * * curve points *": ("accuracy",),
    "backbones * complexity *": tuple(
        f"{score}{end}" for score in ("fine", "semantic", "obfuscated") for end in ("", "_difference")
    ),
}
_NO_ESTIMATES = ("queries",)  # a number beside them
_UNNAMED = ("accuracy", "difference", "estimate", "value")  # whose companions may have no name before them
_COMPANIONS = {  # and the fields that they become; of the first two the one that is to be shown becomes low and high
    "ci95": "one_way",
    "two_way_ci95": "two_way",
    "ci": "one_way",
    "ci90": "ci90",
    "se": "se",
    "se_training": "se_training",
    "se_generators": "se_generators",
    "se_photographs": "se_photographs",
}
# scores that generalise to unseen transformations, whose interval to show is two-way: anywhere, all of an object, and
# the task and metric of differences
_GENERAL = ("held_out", "gap", "balanced", "styles")
_ALL_GENERAL = (
    "backbones * coarse_rotation *",
    "backbones * coarse_rotation * generators *",
    "backbones * equal_width rotation",
    "backbones * equal_width rotation generators *",
    "backbones * shortcut",
)
_GENERAL_DIFFERENCES = (
    ("coarse", "held_out"),
    *((f"{equal}rotation", metric) for equal in ("", "equal_") for metric in ("accuracy", "balanced", "styles")),
)

# Keys that have other names today, by the path of their object
_SIZES = ("", "_difference", "_converged", "_parameters", "_validation")
_WORDS: Mapping[str, Mapping[str, str]] = {
    "transformations *": TASKS,
    "chance": TASKS,
    "shift *": PHOTOGRAPHS,
    "backbones *": TASKS | {"coarse_rotation": "kind_rotation", "coarse_redrawn": "kind_redrawn"},
    "backbones * semantic *": PHOTOGRAPHS,
    "backbones * coarse * by_transformation *": TASKS,
    "backbones * coarse_rotation * by_transformation *": TASKS,
    "backbones * equal_width": TASKS,
    "backbones * multitask": TASKS | PHOTOGRAPHS,
    "backbones * multitask difference": TASKS,
    "backbones * multitask single_task": TASKS,
    "backbones * multitask single_task training": {f"twin-{old}": f"twin-{new}" for old, new in TASKS.items()},
    "backbones * attentive": TASKS,
    "backbones * attentive semantic *": PHOTOGRAPHS,
    "backbones * attentive coarse * by_transformation *": TASKS,
    "backbones * domains": TASKS,
    "backbones * domains semantic * *": PHOTOGRAPHS,
    "backbones * mistakes": TASKS,
    "backbones * map": TASKS,
    "backbones * extractability": TASKS,
    "backbones * complexity *": {o + end: n + end for o, n in (TASKS | PHOTOGRAPHS).items() for end in _SIZES},
    "backbones * labels by_label *": {"substance": "class"},
    "backbones * attack attacks * detection": TASKS,
}
_VALUES = (  # texts that are such words
    "comparisons * task",
    "attentive differences * task",
    "attentive differences * metric",
    "comparisons * metric",
    "settings probes tasks *",
    "settings probes * tasks *",  # of one backbone
    "settings shift tasks *",
    "settings finetune objectives *",
    "backbones * complexity * selected *",
    "backbones * spec finetuned objective",
    "finetuned * objective",
)


def converted(document: JSON) -> JSON:
    """A document of an earlier schema in that of today; any other as it is.

    Raises:
        SubstyleError: a part that has no place in today's schema.
    """
    schema = document.get("schema")
    if type(schema) is not int or schema not in (_FLAT, _FORMER_WORDS):  # true and 1.0 are no schema
        return document
    found: JSON = _with_estimates(document, ()) if schema == _FLAT else document
    return {**_in_words_of_today(found, ()), "schema": SCHEMA}


def _in_words_of_today(value: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - JSON
    """Keys and texts of former words in those of today; paths are in the former ones."""
    if isinstance(value, list):
        return [_in_words_of_today(inner, (*path, str(at))) for at, inner in enumerate(value)]
    if isinstance(value, str) and any(_matches(row, path) for row in _VALUES):
        return of_today(value)
    if not isinstance(value, dict):
        return value
    names = {old: new for row, own in _WORDS.items() if _matches(row, path) for old, new in own.items()}
    return {names.get(key, key): _in_words_of_today(inner, (*path, key)) for key, inner in value.items()}


def _with_estimates(value: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return [_with_estimates(inner, (*path, str(at))) for at, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    found = {key: _with_estimates(inner, (*path, key)) for key, inner in value.items()}
    rows = [own for row, own in _ESTIMATES.items() if _matches(row, path)]
    names = [name for own in rows for name in own if name in found]
    every = any(_matches(row, path) for row in _ALL_GENERAL)
    every |= (found.get("task"), found.get("metric")) in _GENERAL_DIFFERENCES
    for name in names:
        prefixes = (f"{name}_", "") if name in _UNNAMED else (f"{name}_",)
        keys = {prefix + end: field for prefix in prefixes for end, field in _COMPANIONS.items()}
        companions = {field: found.pop(key) for key, field in keys.items() if key in found}
        try:
            found[name] = _estimate(found[name], companions, general=every or name in _GENERAL)
        except (TypeError, ValueError) as error:
            raise _refused((*path, name), f"no number with its interval: {error}") from error
        except LookupError as error:
            raise _refused((*path, name, str(error.args[0])), "an interval of no known number") from error
    if rows and (left := [key for key, each in found.items() if key.endswith("ci95") and each is not None]):
        raise _refused((*path, left[0]), "an interval of no known number")
    return found["value"] if names == ["value"] else found  # an object that is an estimate


def _refused(path: tuple[str, ...], why: str) -> SubstyleError:
    return SubstyleError(f"results of schema {_FLAT}: {'.'.join(path)}: {why}"[:1_000])


def _matches(row: str, path: tuple[str, ...]) -> bool:
    parts = row.split()
    return len(parts) == len(path) and all(part in ("*", key) for part, key in zip(parts, path, strict=True))


def _estimate(value: Any, companions: JSON, *, general: bool) -> Any:  # noqa: ANN401 - JSON
    """The `Estimate` of a number, or those of a list or an object of numbers."""
    companions = {field: each for field, each in companions.items() if each is not None}
    if isinstance(value, list):
        rows = zip(*companions.values(), strict=True) if companions else [()] * len(value)
        of_each = [dict(zip(companions, row, strict=True)) for row in rows]
        return [_estimate(v, own, general=general) for v, own in zip(value, of_each, strict=True)]
    if isinstance(value, dict):
        for each in companions.values():
            if not isinstance(each, dict):
                raise TypeError("expected intervals by name")
            if unknown := [at for at, own in each.items() if own is not None and at not in value]:
                raise LookupError(unknown[0])
        of = {at: {f: each.get(at) for f, each in companions.items()} for at in value if at not in _NO_ESTIMATES}
        return {**value, **{at: _estimate(value[at], own, general=general) for at, own in of.items()}}
    one_way, two_way = (_ends(companions.pop(field, None)) for field in ("one_way", "two_way"))
    if general:
        return entry_of(value, two_way, one_way=one_way, **companions)
    return entry_of(value, one_way, two_way=two_way, **companions)


def _ends(interval: Any) -> list[Any] | None:  # noqa: ANN401 - JSON
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2):
        raise ValueError("expected [low, high]")
    return interval
