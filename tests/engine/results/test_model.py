"""The models of results.json keep what they read and refuse the rest by name; their JSON Schema describes it."""

from __future__ import annotations

import jsonschema
import pytest
from tests.engine.report.real import real_results

from substyle.engine.stages.results import results_schema


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
