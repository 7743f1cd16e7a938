"""The models of results.json keep what they read and refuse the rest by name; their JSON Schema describes it."""

from __future__ import annotations

import math
from typing import Any

import jsonschema
import pytest
from tests.engine.report.real import BACKBONE, real_results

from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.results import results_schema, validate_results
from substyle.errors import SubstyleError

BARE: dict[str, Any] = {"schema": 4, "name": "bare", "images": 0, "transformations": [], "backbones": {"a": {}}}


def dumped(document: ResultsDocument) -> dict[str, Any]:
    return document.model_dump(by_alias=True, exclude_unset=True)


def test_a_dump_of_the_models_is_what_they_read() -> None:
    results = real_results()
    results["backbones"][BACKBONE]["plugged_in"] = {"list": [1, None, "x", {"deep": 2.5}]}
    results["newer"] = [{"key": 1}]
    assert dumped(validate_results(results)) == results
    assert dumped(validate_results(BARE)) == BARE


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400, -(2**63)])
def test_numbers_without_a_model_are_finite_too(number: float) -> None:
    with pytest.raises(SubstyleError, match=r"results\.backbones\['a'\]\.mine\[0\]\.x: expected a finite number, got"):
        validate_results(BARE | {"backbones": {"a": {"mine": [{"x": number}]}}})


def test_nesting_is_bounded_before_anything_recurses() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SubstyleError, match=r"^results\.mine\[0\].*: nested more than 32 levels deep"):
        validate_results(BARE | {"mine": deep})


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {}])
def test_nothing_else_stands_for_a_number(value: object) -> None:
    with pytest.raises(
        SubstyleError, match=r"results\.backbones\['a'\]\.transformation\.linear\.accuracy\.value: expected a num"
    ):
        validate_results(BARE | {"backbones": {"a": {"transformation": {"linear": {"accuracy": {"value": value}}}}}})


@pytest.mark.parametrize("value", [0.5, "0.5", True, [0.5], {}])
def test_nothing_else_stands_for_an_estimate(value: object) -> None:
    with pytest.raises(
        SubstyleError, match=r"results\.backbones\['a'\]\.transformation\.linear\.accuracy(\.value: missing|: exp)"
    ):
        validate_results(BARE | {"backbones": {"a": {"transformation": {"linear": {"accuracy": value}}}}})


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("value", [True, 0.5, ["0.5"], {"r": 0.5}])
def test_preprocessing_is_a_list_of_numbers(field: str, value: object) -> None:
    with pytest.raises(SubstyleError, match=rf"results\.backbones\['a'\]\.spec\.{field}"):
        validate_results(BARE | {"backbones": {"a": {"spec": {field: value}}}})
    validate_results(BARE | {"backbones": {"a": {"spec": {field: [0.5, 0.4, 0.3]}}}})


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
