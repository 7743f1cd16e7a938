"""Documents of schema 1, whose intervals are beside their numbers, are read as those of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from substyle.engine.results.model import SCHEMA
from substyle.engine.stages.results import read_results
from substyle.errors import SubstyleError

Where = tuple[str | int, ...]
ONE_WAY, TWO_WAY = [0.4, 0.6], [0.3, 0.7]


def flat(name: str, value: float = 0.5, *, two_way: bool = True) -> dict[str, Any]:
    """A number of schema 1 with its companions."""
    before = "" if name == "accuracy" else f"{name}_"
    found = {name: value, f"{before}ci95": ONE_WAY, f"{before}se": 0.05, f"{before}se_training": 0.01}
    return found | ({f"{before}two_way_ci95": TWO_WAY} if two_way else {})


def compared(task: str, metric: str) -> dict[str, Any]:
    row = {"task": task, "metric": metric, "head": "linear", "a": "net", "b": "control:pixels", "difference": 0.1}
    return row | {"ci95": [0.05, 0.15], "two_way_ci95": [-0.05, 0.25], "ci90": [0.06, 0.14], "se": 0.02, "p": 0.01}


def curve() -> dict[str, Any]:
    found = {"severities": [1, 2], "accuracy": [0.5, None], "ci95": [ONE_WAY, None]}
    return found | {"halfway": 1.5, "halfway_ci95": [1.2, 1.8]}


def document() -> dict[str, Any]:
    """A small document as schema 1 had it, with all parts that have intervals."""
    each = {"swirl": {"accuracy": 0.5, "ci95": ONE_WAY, "role": "held_out", "coarse": "warp"}}
    rotation = flat("accuracy") | flat("balanced") | flat("styles") | {"by_transformation": each, "converged": True}
    rotation["generators"] = {"gan": flat("accuracy")}
    coarse = flat("seen") | flat("held_out") | flat("gap", 0.1) | {"by_transformation": each, "converged": False}
    semantic = flat("clean") | flat("obfuscated") | {"by_transformation": {"swirl": 0.5}}
    fine = flat("accuracy") | {"by_severity": {"fog": curve()}, "by_transformation": {"swirl": 0.5}}
    arranged = {"pos_same": 0.9, "price": 0.5, "price_ci95": ONE_WAY, "loss": 0.5, "loss_ci95": ONE_WAY}
    net = {
        "dim": 8,
        "control": False,
        "fine": {"linear": fine, "mlp": None},
        "coarse": {"linear": coarse},
        "coarse_rotation": {"linear": rotation},
        "semantic": {"linear": semantic},
        "equal_width": {"dim": 4, "fine": flat("accuracy"), "rotation": rotation},
        "multitask": {
            **flat("fine", two_way=False),
            **flat("semantic", two_way=False),
            "single_task": flat("fine", two_way=False),
            "difference": {"fine": {"value": 0.5, "ci95": ONE_WAY, "ci90": [0.45, 0.55]}, "semantic": None},
        },
        "knn": {
            **{"transformation": {"1": 0.5, "10": 0.6}, "transformation_ci95": {"1": ONE_WAY, "10": None}},
            **{"class": {"1": 0.5, "10": None}, "class_ci95": {"1": ONE_WAY, "10": None}},
        },
        "balance": {"same_image": 0.5, "neither": 0.1, "queries": 40},
        "balance_ci95": {"same_image": ONE_WAY, "neither": None},
        "clusters": {"ami_transformation": 0.5, "ami_transformation_ci95": ONE_WAY, "ami_class": None},
        "sensitivity": {"swirl": 0.5, "jpeg": 0.2, "fog": None},
        "sensitivity_ci95": {"swirl": ONE_WAY, "fog": None},
        "equivariance": {"swirl": 0.5},
        "equivariance_ci95": {"swirl": ONE_WAY},
        "shift": {"night": {"accuracy": 0.5, "ci95": ONE_WAY, "images": 9}},
        "domains": {"fine": {"photos": {"photos": {"accuracy": 0.5, "ci95": ONE_WAY}}}},
        "few_shot": {"accuracy": 0.5, "ci95": ONE_WAY, "shots": 5},
        "parameters": {"by_transformation": {"swirl": {"angle": {"r2": 0.5, "r2_ci95": ONE_WAY, "error": 0.1}}}},
        "shortcut": {
            **{**arranged, "price_two_way_ci95": TWO_WAY, "loss_two_way_ci95": TWO_WAY},
            "by_transformation": {"swirl": arranged},
        },
        "generators": {"accuracy": 0.5, "ci95": ONE_WAY, "se": 0.05, "se_generators": 0.04, "se_photographs": 0.02},
    }
    tasks = [("fine", "accuracy"), ("coarse", "seen"), ("coarse", "held_out")]
    tasks += [(f"{equal}rotation", name) for equal in ("", "equal_") for name in ("accuracy", "balanced", "styles")]
    backbones = {"net": net, "control:pixels": {"dim": 4, "control": True}}
    moved = {"sensitivity": 0.5, "sensitivity_ci95": ONE_WAY, "loss": 0.5, "loss_ci95": ONE_WAY}
    shift = {"shift": None, "spearman": 0.5, "spearman_ci95": ONE_WAY, "kendall": None, "kendall_ci95": None}
    pair = {"cka": 0.5, "cka_ci95": ONE_WAY, "rsa": None, "rsa_ci95": None}
    return {
        **{"schema": 1, "name": "old", "images": 40, "splits": {"test": 20}, "chance": {"fine": 0.1, "coarse": 0.1}},
        "transformations": [
            {"name": "identity", "coarse": "identity", "role": "train"},
            {"name": "swirl", "coarse": "warp", "role": "held_out"},
        ],
        "backbones": backbones,
        "comparisons": [compared(task, metric) for task, metric in tasks],
        "robustness": [shift | {"backbones": {"net": moved}}],
        "similarity": {"pairs": {"net": {"control:pixels": pair}}},
        "claims": [{"id": "C1", "statement": "s", "status": "undecided", "estimate": 0.5, "ci": ONE_WAY}],
    }


def at(value: Any, where: Where) -> Any:  # noqa: ANN401 - JSON
    for key in where:
        value = value[key]
    return value


def read(tmp_path: Path, old: dict[str, Any]) -> dict[str, Any]:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(old))
    return read_results(path)


PROBE = {"se": 0.05, "se_training": 0.01}
NET: Where = ("backbones", "net")
GENERAL: list[Where] = [
    *((*NET, "kind", "linear", name) for name in ("held_out", "gap")),
    *((*NET, "kind_rotation", "linear", name) for name in ("accuracy", "balanced", "styles")),
    (*NET, "kind_rotation", "linear", "generators", "gan", "accuracy"),
    *((*NET, "equal_width", "rotation", name) for name in ("accuracy", "balanced", "styles")),
    (*NET, "equal_width", "rotation", "generators", "gan", "accuracy"),
]
PLAIN: list[Where] = [
    (*NET, "transformation", "linear", "accuracy"),
    (*NET, "kind", "linear", "seen"),
    *((*NET, "class", "linear", name) for name in ("original", "transformed")),
    (*NET, "equal_width", "transformation", "accuracy"),
]
ALONE: list[Where] = [
    (*NET, "transformation", "linear", "by_severity", "fog", "accuracy", 0),
    *((*NET, *way, "by_transformation", "swirl", "accuracy") for way in (("kind", "linear"),)),
    (*NET, "kind_rotation", "linear", "by_transformation", "swirl", "accuracy"),
    (*NET, "equal_width", "rotation", "by_transformation", "swirl", "accuracy"),
    (*NET, "knn", "transformation", "1"),
    (*NET, "knn", "class", "1"),
    (*NET, "balance", "same_image"),
    (*NET, "clusters", "ami_transformation"),
    (*NET, "sensitivity", "swirl"),
    (*NET, "equivariance", "swirl"),
    (*NET, "shift", "night", "accuracy"),
    (*NET, "domains", "transformation", "photos", "photos", "accuracy"),
    (*NET, "few_shot", "accuracy"),
    (*NET, "parameters", "by_transformation", "swirl", "angle", "r2"),
    *((*NET, "shortcut", "by_transformation", "swirl", name) for name in ("price", "loss")),
    *(("robustness", 0, *way) for way in (("spearman",), ("backbones", "net", "sensitivity"))),
    ("robustness", 0, "backbones", "net", "loss"),
    ("similarity", "pairs", "net", "control:pixels", "cka"),
    ("claims", 0, "estimate"),
]


def test_every_interval_is_where_it_was_shown(tmp_path: Path) -> None:
    new = read(tmp_path, document())
    assert new["schema"] == SCHEMA
    for where in GENERAL:
        value = 0.1 if where[-1] == "gap" else 0.5
        assert at(new, where) == {"value": value, "low": 0.3, "high": 0.7, "one_way": ONE_WAY} | PROBE, where
    for where in PLAIN:
        assert at(new, where) == {"value": 0.5, "low": 0.4, "high": 0.6, "two_way": TWO_WAY} | PROBE, where
    for where in ALONE:
        assert at(new, where) == {"value": 0.5, "low": 0.4, "high": 0.6}, where
    for name in ("price", "loss"):
        assert at(new, (*NET, "shortcut", name)) == {"value": 0.5, "low": 0.3, "high": 0.7, "one_way": ONE_WAY}
    both = at(new, (*NET, "multitask"))
    assert (
        both["transformation"]
        == both["class"]
        == both["single_task"]["transformation"]
        == {"value": 0.5}
        | {
            **{"low": 0.4, "high": 0.6},
            **PROBE,
        }
    )
    assert both["difference"] == {
        "transformation": {"value": 0.5, "low": 0.4, "high": 0.6, "ci90": [0.45, 0.55]},
        "class": None,
    }
    errors = {"se": 0.05, "se_generators": 0.04, "se_photographs": 0.02}
    assert at(new, (*NET, "generators", "accuracy")) == {"value": 0.5, "low": 0.4, "high": 0.6} | errors
    assert at(new, (*NET, "transformation", "linear", "by_severity", "fog", "halfway")) == {
        "value": 1.5,
        "low": 1.2,
        "high": 1.8,
    }
    assert "ci95" not in json.dumps(new)


def test_deep_documents_are_refused_before_anything_recurses(tmp_path: Path) -> None:
    (path := tmp_path / "results.json").write_text('{"schema": 1, "backbones": ' + '{"a":' * 900 + "1" + "}" * 901)
    with pytest.raises(SubstyleError, match=r"results\.json: .*(nested more than 32 levels deep|not JSON)"):
        read_results(path)
