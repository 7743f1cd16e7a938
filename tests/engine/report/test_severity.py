"""Curves of accuracy against severity in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import estimate, real_results

from substyle.engine.report.curves import halfway, severities, severity_plots
from substyle.engine.report.data import dagger
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError


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


def test_tables_hold_every_severity(swept: dict[str, Any]) -> None:
    table = severities(validate_results(swept))
    assert len(table.rows) == 6
    names = {row[0] for row in table.rows}
    assert len(names) == 2
    by_severity = {row[2]: row[3:] for row in table.rows if row[0] == min(names)}
    assert by_severity[2] == ((0.6, 0.5, 0.7), None, (0.3, None, None))
    assert by_severity[5] == (None, None, None)
    (row,) = halfway(validate_results(swept)).rows
    assert row[0] == "fog"
    assert sorted(row[1:]) == [(1.5, 1.3, 1.7), (4.0, 3.8, 4.2)]


def test_accuracies_without_intervals_are_shown(swept: dict[str, Any], tmp_path: Path) -> None:
    for each in swept["backbones"].values():
        for curve in ((each.get("transformation") or {}).get("linear") or {}).get("by_severity", {}).values():
            curve["accuracy"] = [estimate(0.2), estimate(0.6), None]
            curve["halfway"] = estimate(curve["halfway"]["value"])
    assert severities(validate_results(swept)).rows[1][3] == (0.6, None, None)
    (plot,) = severity_plots(validate_results(swept))
    assert plot.curves[0].points == ((1, 0.2, None, None), (2, 0.6, None, None))
    assert 'id="severity"' in write_report(validate_results(swept), tmp_path).html.read_text()


def test_the_plot_says_who_names_it_later(swept: dict[str, Any]) -> None:
    (plot,) = severity_plots(validate_results(swept))
    assert (plot.name, plot.last) == ("fog", 2)
    assert len({curve.colour for curve in plot.curves}) == 2
    assert "clearly later" in plot.summary
    assert "(4.0)" in plot.summary
    for each in swept["backbones"].values():
        for curve in ((each.get("transformation") or {}).get("linear") or {}).get("by_severity", {}).values():
            curve["halfway"] |= {"low": 0.5, "high": 5.0}
    assert "no other backbone is clearly later" in severity_plots(validate_results(swept))[0].summary


def test_probes_that_have_not_converged_are_not_ranked(swept: dict[str, Any]) -> None:
    assert "(alpha)" in severity_plots(validate_results(swept))[0].summary
    swept["backbones"]["alpha"]["transformation"]["linear"]["converged"] = False
    assert [dagger(value) for value in halfway(validate_results(swept)).rows[0][1:]] == [" †", ""]
    assert [dagger(row[3]) for row in severities(validate_results(swept)).rows[:2]] == [" †", " †"]
    assert severity_plots(validate_results(swept))[0].summary == "Halfway at severity 4.0 (beta)."
    assert {curve.label: curve.unconverged for curve in severity_plots(validate_results(swept))[0].curves} == {
        "alpha": (1, 2),
        "beta": (),
    }
    swept["backbones"]["beta"]["transformation"]["linear"]["converged"] = False
    assert severity_plots(validate_results(swept))[0].summary.startswith("No converged probe")


def test_results_without_severities_have_no_plot() -> None:
    assert severity_plots(validate_results(real_results())) == []


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


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": [estimate(0.1)]},
        {"accuracy": [0.2, 0.6, None]},
        {"severities": ["1", 2, 5]},
        {"accuracy": [{"value": 0.2, "low": 0.1}, None, None]},
        {"halfway": {"value": "x"}},
        {"severities": None},
    ],
)
def test_damaged_curves_are_refused(swept: dict[str, Any], change: dict[str, Any]) -> None:
    for each in swept["backbones"].values():
        for curve in ((each.get("transformation") or {}).get("linear") or {}).get("by_severity", {}).values():
            curve.update(change)
    with pytest.raises(SubstyleError):
        validate_results(swept)
