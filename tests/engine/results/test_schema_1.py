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
