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
    for old, way in (
        (("fine", "accuracy"), ("transformation", "accuracy")),
        (("semantic", "clean"), ("class", "original")),
    ):
        assert after[way[0]]["linear"][way[1]]["value"] == before[old[0]]["linear"][old[1]]
    k = next(iter(before["knn"]["transformation"]))
    low, high = before["knn"]["transformation_ci95"][k]
    assert after["knn"]["transformation"][k] == {"value": before["knn"]["transformation"][k], "low": low, "high": high}
    assert after["balance"]["queries"] == before["balance"]["queries"]
    curve = before["fine"]["linear"]["by_severity"]["jpeg"]
    points = after["transformation"]["linear"]["by_severity"]["jpeg"]
    assert [point["value"] for point in points["accuracy"]] == curve["accuracy"]
    assert [[point["low"], point["high"]] for point in points["accuracy"]] == curve["ci95"]
    cost = before["multitask"]["difference"]["fine"]
    expected = {"value": cost["value"], "low": cost["ci95"][0], "high": cost["ci95"][1], "ci90": cost["ci90"]}
    assert after["multitask"]["difference"]["transformation"] == expected


def test_what_generalises_to_unseen_transformations_shows_the_two_way_interval() -> None:
    before, after = (each["backbones"]["alpha"] for each in (flat(), converted(flat())))
    for end, name, prefix in (("", "held_out", "held_out_"), ("_rotation", "accuracy", "")):
        old, new = before[f"coarse{end}"]["linear"], after[f"kind{end}"]["linear"][name]
        assert [new["low"], new["high"]] == old[f"{prefix}two_way_ci95"] != old[f"{prefix}ci95"] == new["one_way"]
    old, new = before["fine"]["linear"], after["transformation"]["linear"]["accuracy"]
    assert ([new["low"], new["high"]], new["two_way"]) == (old["ci95"], old["two_way_ci95"])
    for old, new in zip(flat()["comparisons"], converted(flat())["comparisons"], strict=True):
        general = old["task"].endswith("rotation") or old["metric"] == "held_out"
        shown = [new["difference"].get(end) for end in ("low", "high")]
        assert shown == (old["two_way_ci95" if general else "ci95"] or [None, None])
    # domains have no such interval, and then none is shown
    assert "low" not in after["domains"]["kind"]["own"]["other"]["held_out"]


FORMER = {"fine", "coarse", "semantic", "clean", "obfuscated", "substance"}


def words(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Keys, and texts, of a document."""
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from words(inner)
    if isinstance(value, str):
        yield value


def test_no_former_word_is_left() -> None:
    document = flat()
    document["attentive"] = {"differences": [{"task": "semantic", "metric": "clean", "difference": 0.1, "ci95": None}]}
    settings = document.setdefault("settings", {})
    settings["probes"] = {"a": {"tasks": ["fine"]}, "tasks": ["coarse"]}
    assert set(words(document)) >= FORMER
    assert not {part for word in words(converted(document)) for part in (word, *word.split("_"))} & FORMER


def test_documents_of_schema_3_get_the_words_alone() -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    linear = {"linear": {"clean": estimate, "obfuscated": estimate}}
    old = {"schema": 3, "backbones": {"clean": {"semantic": linear}}, "transformations": [{"name": "a", "coarse": "x"}]}
    linear = {"linear": {"original": estimate, "transformed": estimate}}
    assert converted(old) == {
        **{"schema": SCHEMA, "backbones": {"clean": {"class": linear}}, "transformations": [{"name": "a", "kind": "x"}]}
    }
