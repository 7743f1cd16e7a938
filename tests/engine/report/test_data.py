from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.report.real import real_results

from substyle.engine.stages.results import validate_results
from substyle.errors import SubstyleError


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda results: results.pop(key)


CLAIM = {"id": "C1", "statement": "s", "status": "undecided"}


def put(value: object, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(results: dict[str, Any]) -> None:
        place = results
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put(2, "schema"), "results.schema: expected 4, got 2"),
        (drop("schema"), "results.schema: missing"),
        (drop("name"), "results.name: missing"),
        (drop("transformations"), "results.transformations: missing"),
        (drop("backbones"), "results.backbones: missing"),
        (put([], "backbones"), "results.backbones: expected dict, got list"),
        (put("many", "images"), "results.images: expected int, got 'many'"),
        (put(True, "images"), "results.images: expected int, got True"),
        (put([{"name": "x"}], "transformations"), r"transformations\[0\].kind: missing"),
        (put(["x"], "transformations"), r"transformations\[0\]: expected dict, got 'x'"),
        (put([{"task": "transformation", "a": "x"}], "comparisons"), r"comparisons\[0\].b: missing"),
        (put([{"id": "C1"}], "claims"), r"claims\[0\].statement: missing"),
        (put([CLAIM | {"status": "true"}], "claims"), r"claims\[0\].status: expected supported, contradicted"),
        (put([CLAIM | {"reasons": [1]}], "claims"), r"claims\[0\].reasons\[0\]: expected str, got 1"),
        (
            put([CLAIM | {"groups": {"masked": "mae"}}], "claims"),
            "groups.masked: expected list, got 'mae'",
        ),
        (
            put("yes", "backbones", "control:pixels", "transformation", "linear", "converged"),
            "converged: expected true or false",
        ),
        (
            put([1], "backbones", "control:pixels", "kind", "linear", "held_out", "one_way"),
            r"held_out\.one_way: expected \[low, high\]",
        ),
        (put(None, "backbones", "control:pixels", "kind", "linear", "held_out", "low"), "held_out: .*low and high"),
        (
            put([0.1, 0.2], "backbones", "control:pixels", "kind", "linear", "held_out", "two_way"),
            "held_out: .*at most one of one_way and two_way",
        ),
        (put(["key"], "quarantined"), r"quarantined\[0\]: expected dict"),
        (put(3, "throughput"), "results.throughput: expected dict"),
        (put([148.2], "throughput", "variants_per_s"), "results.throughput.variants_per_s: expected a number"),
        (put("160", "throughput", "backbone_only_per_s", "net"), "backbone_only_per_s.net: expected a number"),
        (put({"device_hours": "2"}, "backbones", "control:pixels", "cost"), "cost.device_hours: expected a number"),
        (put([], "backbones", "control:pixels"), r"backbones\['control:pixels'\]: expected dict"),
        (
            put(0.5, "backbones", "control:pixels", "transformation"),
            r"\['control:pixels'\].transformation: expected dict, got 0.5",
        ),
        (put(0.5, "backbones", "control:pixels", "transformation", "linear"), "transformation.linear: expected dict"),
        (
            put(93.1, "backbones", "control:pixels", "transformation", "linear", "accuracy", "value"),
            "accuracy.value: .* got 93.1",
        ),
        (
            put(0.5, "backbones", "control:pixels", "transformation", "linear", "accuracy"),
            "linear.accuracy: expected dict",
        ),
        (
            put(None, "backbones", "control:pixels", "transformation", "linear", "accuracy", "value"),
            "accuracy.value: expected a",
        ),
        (put(-0.1, "backbones", "control:pixels", "balance", "neither", "value"), "neither.value: .* got -0.1"),
        (put(float("nan"), "backbones", "control:pixels", "equivariance", "jpeg", "value"), "jpeg.value: .* got nan"),
        (
            put(float("inf"), "backbones", "control:pixels", "transformation", "linear", "accuracy", "high"),
            "high: .* got inf",
        ),
        (
            put([0.1, float("inf")], "backbones", "control:pixels", "transformation", "linear", "accuracy", "two_way"),
            r"accuracy\.two_way\[1\]: .* got inf",
        ),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], None], complaint: str) -> None:
    results = real_results()
    change(results)
    with pytest.raises(SubstyleError, match=complaint):
        validate_results(results)
