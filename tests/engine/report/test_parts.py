"""Parts of a report that packages add: their entry in results.json, its type, and their section."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.report.real import real_results

from substyle.engine.report import parts
from substyle.engine.report.parts import ReportPart, register_part
from substyle.engine.report.section import Section, Text
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.results import results_schema, validate_results
from substyle.engine.study.report import sections_of
from substyle.errors import ConfigError, SubstyleError


def shown(results: ResultsDocument) -> Iterator[Section]:
    if (count := results.entry("counted")) is not None:
        yield Section("counted", "Counted", "Counted: how many?", (Text(f"{count} backbones"),))


@pytest.fixture
def counted() -> Iterator[None]:
    parts.parts()
    register_part(ReportPart("counted", int, lambda results: len(results.backbones), shown))
    yield
    del parts._PARTS["counted"]


@pytest.mark.usefixtures("counted")
def test_a_part_has_an_entry_with_a_type_and_a_section() -> None:
    (part,) = [each for each in parts.parts() if each.name == "counted"]
    results = real_results()
    assert "counted" not in {section.key for section in sections_of(validate_results(results))}
    results["counted"] = part.entry(validate_results(results))
    sections = sections_of(validate_results(results))
    keys = [section.key for section in sections]
    assert keys.index("claims") < keys.index("counted") < keys.index("overview")
    assert sections[keys.index("counted")].blocks == (Text(f"{len(results['backbones'])} backbones"),)
    assert "counted" in results_schema()["properties"]
    with pytest.raises(SubstyleError, match=r"results\.counted: expected int, got 'five'"):
        validate_results(results | {"counted": "five"})


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", ["counted", "claims", "backbones", "images", "copy"])
def test_taken_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unused name"):
        register_part(ReportPart(name, int, lambda _: 0, lambda _: ()))
