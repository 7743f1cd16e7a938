"""Curves of accuracy against severity in the report."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.report.real import estimate, real_results

from substyle.engine.report.curves import severity_plots
from substyle.engine.stages.results import validate_results


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
