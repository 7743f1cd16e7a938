"""Maps of embeddings in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.report.real import drop, real_results

from substyle.engine.report.maps import embedding_maps
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report


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


def test_one_class_is_not_shown_by_class(tmp_path: Path) -> None:
    results, _ = with_map({"class": [-1] * 40})
    assert embedding_maps(validate_results(results))["class"] == {}
    text = write_report(validate_results(results), tmp_path).html.read_text()
    assert "<h3>By kind</h3>" in text
    assert "<h3>By class</h3>" not in text
