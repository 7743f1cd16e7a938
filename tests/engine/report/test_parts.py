"""Parts of a report that packages add: their entry in results.json, its type, and their section."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from substyle.engine.report import parts
from substyle.engine.report.parts import ReportPart, register_part
from substyle.engine.report.section import Section, Text
from substyle.engine.results.model import ResultsDocument
from substyle.errors import ConfigError


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
@pytest.mark.parametrize("name", ["counted", "claims", "backbones", "images", "copy"])
def test_taken_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unused name"):
        register_part(ReportPart(name, int, lambda _: 0, lambda _: ()))
