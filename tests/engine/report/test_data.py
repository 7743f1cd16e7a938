"""Results that are not as they should be are refused by the path of the field."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.report.real import real_results

from substyle.engine.stages.results import validate_results
from substyle.errors import SubstyleError

CLAIM = {"id": "C1", "statement": "s", "status": "undecided"}
LINEAR = "backbones control:pixels transformation linear"
HELD_OUT = "backbones control:pixels kind linear held_out"
MISSING = object()


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("schema", 2, "results.schema: expected 4, got 2"),
        ("backbones", MISSING, "results.backbones: missing"),
        ("backbones", [], "results.backbones: expected dict, got list"),
        ("images", True, "results.images: expected int, got True"),
        ("transformations", [{"name": "x"}], r"transformations\[0\].kind: missing"),
        ("claims", [CLAIM | {"status": "true"}], r"claims\[0\].status: expected supported, contradicted"),
        ("claims", [CLAIM | {"reasons": [1]}], r"claims\[0\].reasons\[0\]: expected str, got 1"),
        (f"{LINEAR} converged", "yes", "converged: expected true or false"),
        (f"{HELD_OUT} one_way", [1], r"held_out\.one_way: expected \[low, high\]"),
        (f"{HELD_OUT} low", None, "held_out: .*low and high"),
        (f"{HELD_OUT} two_way", [0.1, 0.2], "held_out: .*at most one of one_way and two_way"),
        ("throughput", {"variants_per_s": "9"}, "results.throughput.variants_per_s: expected a number"),
        (f"{LINEAR} accuracy value", 93.1, "accuracy.value: .* got 93.1"),
        (f"{LINEAR} accuracy value", None, "accuracy.value: expected a"),
        (f"{LINEAR} accuracy high", float("inf"), "high: .* got inf"),
        (f"{LINEAR} accuracy two_way", [0.1, float("inf")], r"accuracy\.two_way\[1\]: .* got inf"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: object, complaint: str) -> None:
    results: dict[str, Any] = real_results()
    *parents, key = path.split()
    place = results
    for parent in parents:
        place = place[parent]
    place.pop(key) if value is MISSING else place.update({key: value})
    with pytest.raises(SubstyleError, match=complaint):
        validate_results(results)
