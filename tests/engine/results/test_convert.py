"""Documents of schema 1, whose intervals are beside their numbers, are read as those of today."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from substyle.engine.report.data import Unconverged
from substyle.engine.report.findings import difference, standing
from substyle.engine.report.tables import comparisons, geometry, knn, neighbours, overview
from substyle.engine.results.convert import converted
from substyle.engine.results.model import SCHEMA, ResultsDocument
from substyle.engine.stages.results import read_results, validate_results
from substyle.engine.stages.stamp import checksum
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


def test_numbers_without_an_interval_and_missing_ones_stay_so(tmp_path: Path) -> None:
    net = read(tmp_path, document())["backbones"]["net"]
    assert net["sensitivity"]["jpeg"] == {"value": 0.2}
    assert net["sensitivity"]["fog"] is None
    assert net["transformation"]["linear"]["by_severity"]["fog"]["accuracy"][1] is None
    assert (net["knn"]["transformation"]["10"], net["knn"]["class"]["10"]) == ({"value": 0.6}, None)
    assert net["balance"] | {"same_image": None} == {"same_image": None, "neither": {"value": 0.1}, "queries": 40}
    assert net["clusters"]["ami_class"] is None
    assert net["parameters"]["by_transformation"]["swirl"]["angle"]["error"] == {"value": 0.1}
    assert net["transformation"]["linear"]["by_transformation"] == {"swirl": 0.5}
    assert (net["transformation"]["mlp"], net["few_shot"]["shots"]) == (None, 5)


def test_differences_in_general_scores_have_the_two_way_interval(tmp_path: Path) -> None:
    results = validate_results(read(tmp_path, document()))
    one_way, two_way = [0.05, 0.15], [-0.05, 0.25]
    for row in results.comparisons or []:
        general = (row.task, row.metric) not in (("transformation", "accuracy"), ("kind", "seen"))
        assert row.difference.interval == (two_way if general else one_way), row
        assert row.difference.one_way == (one_way if general else None)
        assert row.difference.two_way == (None if general else two_way)
        assert (row.difference.ci90, row.difference.se, row.p) == ([0.06, 0.14], 0.02, 0.01)
    assert [row[5:7] for row in comparisons(results).rows] == [((0.1, *one_way), (0.1, *two_way))] * 9
    turned = difference(results.compared("kind", "held_out"), "control:pixels", "net")
    assert turned is not None
    assert (turned.value, turned.interval, turned.one_way) == (-0.1, [-0.25, 0.05], [-0.15, -0.05])
    assert turned.ci90 == [-0.14, -0.06]


def test_a_converted_document_is_shown_as_before(tmp_path: Path) -> None:
    results = validate_results(read(tmp_path, document()))
    (first, *_) = overview(results).rows
    row = dict(zip((column.name for column in overview(results).columns), first, strict=True))
    assert row["transformation"] == (0.5, 0.4, 0.6)
    assert row["held_out"] == Unconverged((0.5, 0.3, 0.7))
    assert row["gap"] == Unconverged((0.1, 0.3, 0.7))
    assert row["seen"] == Unconverged((0.5, 0.4, 0.6))
    assert isinstance(row["gap"], Unconverged)
    best = standing(results, "kind_rotation", "linear", "accuracy").scores[0]
    assert (best.value, best.low_high) == (0.5, TWO_WAY)
    assert geometry(results).rows[0][4:6] == ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6))
    assert knn(results).rows[0] == ("net", 1, (0.5, 0.4, 0.6), (0.5, 0.4, 0.6))
    assert neighbours(results).rows[0][1] == (0.5, 0.4, 0.6)


def test_the_checksum_is_made_again_where_it_was_right(tmp_path: Path) -> None:
    old = document()
    new = read(tmp_path, old | {"checksum": checksum(old)})
    assert new["checksum"] == checksum(new) != checksum(old)
    assert read(tmp_path, old | {"checksum": "0" * 16})["checksum"] == "0" * 16
    assert "checksum" not in read(tmp_path, old)


def test_documents_of_today_stay_as_they_are(tmp_path: Path) -> None:
    new = read(tmp_path, document())
    assert converted(new) is new
    assert read(tmp_path, new) == new
    assert dumped(validate_results(new)) == new


def dumped(results: ResultsDocument) -> dict[str, Any]:
    return results.model_dump(by_alias=True, exclude_unset=True)


@pytest.mark.parametrize("schema", [True, 1.0, "1", None, 0, 2])
def test_other_schemas_are_refused(tmp_path: Path, schema: object) -> None:
    with pytest.raises(SubstyleError, match=r"results\.json: results\.schema: expected 4"):
        read(tmp_path, document() | {"schema": schema})


def put_in(value: object, *where: str | int) -> Callable[[dict[str, Any]], None]:
    return lambda old: at(old, where[:-1]).__setitem__(where[-1], value)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ((*NET, "fine", "linear", "wrong_ci95"), ONE_WAY),
        ((*NET, "fine", "linear", "held_out_two_way_ci95"), ONE_WAY),
        ((*NET, "knn", "transformation_ci95", "5"), ONE_WAY),
        ((*NET, "sensitivity_ci95", "zoom"), ONE_WAY),
        ((*NET, "shift", "dawn"), {"ci95": ONE_WAY}),
        (("comparisons", 0, "wrong_ci95"), ONE_WAY),
    ],
)
def test_an_interval_of_no_known_number_is_refused_by_name(tmp_path: Path, where: Where, value: object) -> None:
    old = document()
    put_in(value, *where)(old)
    with pytest.raises(SubstyleError, match=r"results\.json: .*: an interval of no known number") as error:
        read(tmp_path, old)
    assert all(str(key).removesuffix("_ci95") in str(error.value) for key in where)
    put_in(None if where[-1] != "dawn" else {"ci95": None}, *where)(old)
    assert read(tmp_path, old)["schema"] == SCHEMA  # nothing is lost


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ((*NET, "fine", "linear", "accuracy"), "0.5", "linear.accuracy"),
        ((*NET, "fine", "linear", "accuracy"), [0.5], "linear.accuracy"),
        ((*NET, "fine", "linear", "accuracy"), {"value": 0.5}, "linear.accuracy"),
        ((*NET, "fine", "linear", "accuracy"), True, "linear.accuracy"),
        ((*NET, "fine", "linear", "accuracy"), 93.1, "linear.accuracy"),
        ((*NET, "fine", "linear", "accuracy"), float("nan"), "linear.accuracy"),
        ((*NET, "fine", "linear", "accuracy"), 10**400, "linear.accuracy"),
        *(((*NET, "fine", "linear", "ci95"), bad, "linear.accuracy") for bad in ([0.4], [], 0, "", {}, "ab", 0.5)),
        ((*NET, "fine", "linear", "ci95"), [0.4, None], "linear.accuracy"),
        ((*NET, "fine", "linear", "ci95"), ["0.4", 0.6], "linear.accuracy.low"),
        ((*NET, "fine", "linear", "two_way_ci95"), [0.4], "linear.accuracy"),
        ((*NET, "coarse", "linear", "held_out_two_way_ci95"), [0.4], "linear.held_out"),
        ((*NET, "fine", "linear", "se"), "x", "linear.accuracy.se"),
        ((*NET, "fine", "linear", "by_severity", "fog", "ci95"), [ONE_WAY], "by_severity.fog.accuracy"),
        ((*NET, "fine", "linear", "by_severity", "fog", "ci95"), 3, "by_severity.fog.accuracy"),
        ((*NET, "sensitivity_ci95"), [ONE_WAY], "net.sensitivity"),
        ((*NET, "sensitivity_ci95"), [["swirl", ONE_WAY]], "net.sensitivity"),
        ((*NET, "sensitivity_ci95"), 0, "net.sensitivity"),
        ((*NET, "sensitivity_ci95", "swirl"), 0, "net.sensitivity"),
        ((*NET, "sensitivity", "swirl"), "x", "net.sensitivity"),
        ((*NET, "sensitivity"), 0.5, "sensitivity"),
    ],
)
def test_damaged_documents_are_named(tmp_path: Path, where: Where, value: object, named: str) -> None:
    old = document()
    put_in(value, *where)(old)
    with pytest.raises(SubstyleError) as error:
        read(tmp_path, old)
    text = str(error.value).replace("['net']", ".net")
    assert text.startswith(f"{tmp_path / 'results.json'}: results")
    assert named in text


def test_deep_documents_are_refused_before_anything_recurses(tmp_path: Path) -> None:
    (path := tmp_path / "results.json").write_text('{"schema": 1, "backbones": ' + '{"a":' * 900 + "1" + "}" * 901)
    with pytest.raises(SubstyleError, match=r"results\.json: .*(nested more than 32 levels deep|not JSON)"):
        read_results(path)
