"""schema_1.json, which code of schema 1 wrote (a short run, shortened), is read without loss; the schema of today."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.engine.report.real import real_results

from substyle.engine.results.convert import converted
from substyle.engine.results.model import SCHEMA
from substyle.engine.stages.results import read_results, results_schema, validate_results
from substyle.errors import SubstyleError

FILE = Path(__file__).with_name("schema_1.json")
ENDS = {"two_way_ci95": "two_way", "ci95": "one_way", "ci": "one_way", "ci90": "ci90"}


def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(FILE.read_text())
    return made


def parts(value: Any) -> Iterator[Any]:  # noqa: ANN401 - JSON
    """A document, and all that it holds."""
    yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from parts(each)


def numbers(value: Any) -> Iterator[float]:  # noqa: ANN401 - JSON
    return (float(each) for each in parts(value) if isinstance(each, int | float))


def objects(value: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    return (each for each in parts(value) if isinstance(each, dict))


def paired(value: Any, ends: Any) -> Iterator[tuple[float, tuple[float, float]]]:  # noqa: ANN401 - JSON
    """Numbers with their intervals: one, or those of objects and lists of the same keys."""
    if isinstance(value, dict | list):
        for key in ends if isinstance(value, dict) else range(len(ends)):
            yield from paired(value[key], ends[key])
    elif ends is not None:
        yield value, tuple(ends)


def intervals_of_schema_1(found: dict[str, Any]) -> Iterator[tuple[float, tuple[float, float]]]:
    for each in objects(found):
        for key, ends in each.items():
            end = next((end for end in ENDS if key == end or key.endswith(f"_{end}")), None)
            if end is not None and ends is not None:
                names = [key.removesuffix(end).rstrip("_")] if key != end else ["accuracy", "difference", "estimate"]
                names += ["value"] if key == end else []
                (name,) = [name for name in names if name in each]
                yield from paired(each[name], ends)


def intervals(found: dict[str, Any]) -> Iterator[tuple[float, tuple[float, float]]]:
    for each in objects(found):
        if "value" in each and each.get("low") is not None:
            yield each["value"], (each["low"], each["high"])
        for field in set(ENDS.values()) & each.keys():
            yield each["value"], tuple(each[field])


def test_every_number_is_kept_and_every_interval_finds_its_number() -> None:
    made = converted(document())
    assert Counter(numbers(made | {"schema": 1})) == Counter(numbers(document()))
    assert Counter(intervals(made)) == Counter(intervals_of_schema_1(document()))
    assert made["schema"] == SCHEMA
    validate_results(made)
    assert converted(made) == made


def test_scores_on_unseen_transformations_show_the_interval_over_them() -> None:
    made = converted(document())
    (name,) = [name for name, own in made["backbones"].items() if own.get("attentive")][:1]
    net, old = made["backbones"][name], document()["backbones"][name]
    rotation, before = net["kind_rotation"]["linear"]["accuracy"], old["coarse_rotation"]["linear"]
    assert [rotation["low"], rotation["high"]] == before["two_way_ci95"]
    assert rotation["one_way"] == before["ci95"]
    accuracy, before = net["transformation"]["linear"]["accuracy"], old["fine"]["linear"]
    assert [accuracy["low"], accuracy["high"]] == before["ci95"]
    assert accuracy["two_way"] == before["two_way_ci95"]
    differences = [row["difference"] for row in made["comparisons"] if row["metric"] == "held_out"]
    assert differences
    assert all("one_way" in difference for difference in differences)


def test_deep_documents_are_refused_before_anything_recurses(tmp_path: Path) -> None:
    (path := tmp_path / "results.json").write_text('{"schema": 1, "backbones": ' + '{"a":' * 900 + "1" + "}" * 901)
    with pytest.raises(SubstyleError, match=r"results\.json: .*(nested more than 32 levels deep|not JSON)"):
        read_results(path)


def test_the_schema_is_valid_and_describes_results() -> None:
    schema = results_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    results = real_results()
    validator.validate(results)
    for wrong in ({"schema": 2}, {"name": None}, {"images": "1"}, {"backbones": {"a": {"dim": "768"}}}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(results | wrong)
    for key in ("name", "images", "transformations", "backbones"):
        assert key in schema["required"]
