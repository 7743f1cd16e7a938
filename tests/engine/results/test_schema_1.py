"""schema_1.json, which code of schema 1 wrote (a short run, shortened), is read without loss."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from substyle.engine.results.convert import converted
from substyle.engine.results.model import SCHEMA
from substyle.engine.stages.results import validate_results

FILE = Path(__file__).with_name("schema_1.json")


def flat() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text())
    return document


def numbers(value: Any) -> Iterator[float]:  # noqa: ANN401 - JSON
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from numbers(inner)
    if isinstance(value, int | float):
        yield float(value)


def test_every_number_is_kept_and_every_interval_finds_its_number() -> None:
    made = converted(flat())
    assert Counter(numbers(made | {"schema": 1})) == Counter(numbers(flat()))
    assert "ci9" not in json.dumps(made).replace('"ci90"', "")
    assert made["schema"] == SCHEMA
    validate_results(made)
    assert converted(made) == made


def test_numbers_are_where_they_were() -> None:
    before, after = (each["backbones"]["alpha"] for each in (flat(), converted(flat())))
    for task, name in (("fine", "accuracy"), ("coarse", "seen"), ("coarse", "held_out"), ("semantic", "clean")):
        assert after[task]["linear"][name]["value"] == before[task]["linear"][name]
    k = next(iter(before["knn"]["transformation"]))
    low, high = before["knn"]["transformation_ci95"][k]
    assert after["knn"]["transformation"][k] == {"value": before["knn"]["transformation"][k], "low": low, "high": high}
    assert after["balance"]["queries"] == before["balance"]["queries"]
    curve, points = (each["fine"]["linear"]["by_severity"]["jpeg"] for each in (before, after))
    assert [point["value"] for point in points["accuracy"]] == curve["accuracy"]
    assert [[point["low"], point["high"]] for point in points["accuracy"]] == curve["ci95"]
    cost = before["multitask"]["difference"]["fine"]
    expected = {"value": cost["value"], "low": cost["ci95"][0], "high": cost["ci95"][1], "ci90": cost["ci90"]}
    assert after["multitask"]["difference"]["fine"] == expected


def test_what_generalises_to_unseen_transformations_shows_the_two_way_interval() -> None:
    before, after = (each["backbones"]["alpha"] for each in (flat(), converted(flat())))
    for task, name, prefix in (("coarse", "held_out", "held_out_"), ("coarse_rotation", "accuracy", "")):
        old, new = before[task]["linear"], after[task]["linear"][name]
        assert [new["low"], new["high"]] == old[f"{prefix}two_way_ci95"] != old[f"{prefix}ci95"] == new["one_way"]
    old, new = before["fine"]["linear"], after["fine"]["linear"]["accuracy"]
    assert ([new["low"], new["high"]], new["two_way"]) == (old["ci95"], old["two_way_ci95"])
    for old, new in zip(flat()["comparisons"], converted(flat())["comparisons"], strict=True):
        general = old["task"].endswith("rotation") or old["metric"] == "held_out"
        shown = [new["difference"].get(end) for end in ("low", "high")]
        assert shown == (old["two_way_ci95" if general else "ci95"] or [None, None])
    # domains have no such interval, and then none is shown
    assert "low" not in after["domains"]["coarse"]["own"]["other"]["held_out"]
