"""Maps of embeddings in the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import drop, real_results

from substyle.engine.report.maps import COLOURS, embedding_maps
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError


def with_map(changes: dict[str, Any]) -> tuple[dict[str, Any], str]:
    results: dict[str, Any] = drop(real_results(), "map")
    name = next(iter(validate_results(results).real()))
    results["classes"] = [f"class {i}" for i in range(12)]
    found = {
        "x": [*range(40)],
        "y": [1] * 40,
        "transformation": [i % 2 for i in range(40)],
        "class": [-1, 11] + [i % 12 for i in range(36)] + [0, 1],
        "transformations": ["identity", "gaussian_blur"],
        "kind": ["identity", "blur"],
    }
    results["backbones"][name]["map"] = found | changes
    return results, name


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_points_are_grouped_by_kind_class_and_by_frequent_classes(tmp_path: Path) -> None:
    results, name = with_map({})
    validate_results(results)
    maps = embedding_maps(validate_results(results))
    assert [(group.name, group.colour, len(group.points)) for group in maps["kind"][name]] == [
        ("identity", 0, 20),
        ("blur", 1, 20),
    ]
    others, *classes = maps["class"][name]
    assert (others.name, others.colour) == ("all others", len(COLOURS) - 1)
    assert [group.colour for group in classes] == [*range(10)]
    assert {group.name for group in classes} >= {"class 0", "class 1", "class 11"}
    assert sum(len(group.points) for group in maps["class"][name]) == 40
    page = write_report(validate_results(results), tmp_path)
    assert 'id="map"' in page.html.read_text()
    titles = re.findall(r'<title>([^<]*)</title><path d="([^"]*)"', page.html.read_text().partition('id="map"')[2])
    assert [(name, path.count("M")) for name, path in titles[:2]] == [("identity", 20), ("blur", 20)]
    assert {path.name for path in page.figures} >= {"map.pdf", "map.png", "map_by_class.pdf"}


def test_one_class_is_not_shown_by_class(tmp_path: Path) -> None:
    results, _ = with_map({"class": [-1] * 40})
    assert embedding_maps(validate_results(results))["class"] == {}
    text = write_report(validate_results(results), tmp_path).html.read_text()
    assert "<h3>By kind</h3>" in text
    assert "<h3>By class</h3>" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"x": [1]},
        {"x": None},
        {"y": ["1"] * 40},
        {"transformation": [2] * 40},
        {"class": [-2] * 40},
        {"kind": ["blur"]},
    ],
)
def test_incomplete_maps_are_refused(changes: dict[str, Any]) -> None:
    results, _ = with_map(changes)
    with pytest.raises(SubstyleError, match="map"):
        validate_results(results)
