"""Curves of accuracy against severity in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import estimate, real_results

from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report


@pytest.fixture
def swept() -> dict[str, Any]:
    """Results in which two backbones have curves of one transformation."""
    swept: dict[str, Any] = real_results("alpha", "beta")
    names = [name for name, each in swept["backbones"].items() if (each.get("transformation") or {}).get("linear")][:2]
    assert len(names) == 2
    for name, half in zip(names, (1.5, 4.0), strict=True):
        curve = {
            "severities": [1, 2, 5],
            "accuracy": [estimate(0.2, 0.1, 0.3), estimate(0.6, 0.5, 0.7), None],
            "halfway": estimate(half, half - 0.2, half + 0.2),
        }
        swept["backbones"][name]["control"] = False
        swept["backbones"][name]["transformation"]["linear"]["by_severity"] = {"fog": curve}
        swept["backbones"][name]["sensitivity"] = {"fog@2": estimate(0.3)}
    return swept


@pytest.mark.usefixtures("figures")
@pytest.mark.slow
def test_the_page_has_a_section(swept: dict[str, Any], tmp_path: Path) -> None:
    files = write_report(validate_results(swept), tmp_path)
    assert 'id="severity"' in files.html.read_text()
    assert "<title>alpha: severity 1 20.0 (10.0–30.0), severity 2 60.0 (50.0–70.0)</title>" in files.html.read_text()
    hollow = "fill: var(--paper)"
    assert hollow not in files.html.read_text().partition('id="severity"')[2].partition("</section>")[0]
    swept["backbones"]["alpha"]["transformation"]["linear"]["converged"] = False
    assert (
        write_report(validate_results(swept), tmp_path).html.read_text().partition('id="severity"')[2].count(hollow)
        >= 2
    )
    assert {"severity.pdf", "severity.png"} <= {path.name for path in files.figures}
