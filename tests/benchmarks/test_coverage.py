"""The coverage benchmark: it passes what covers, and tells a wrong interval and a wrong test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import coverage, simulations

from substyle.engine.probes import outcomes, resampling


def test_an_interval_that_covers_passes() -> None:
    row = coverage.simulate("paired", {"first": 0.01, "second": 0.01}, 100, 200, 60)
    assert (row["verdict"], row["replications"], row["without_interval"]) == ("passes", 200, 0)
    assert row["coverage"] > 0.97
    assert "times Bonett and Price" in coverage.shown(row) or "times t" in coverage.shown(row)


def test_an_interval_that_is_too_narrow_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = resampling.BootstrapResult._interval
    monkeypatch.setattr(resampling.BootstrapResult, "_interval", lambda self, per_cent: narrow(self, 68.0))
    row = coverage.simulate("paired", {"first": 0.15, "second": 0.05}, 100, 200, 60)
    assert (row["verdict"], row["coverage"] < 0.85) == ("fails", True)
    assert coverage.shown(row).startswith("fails")


@pytest.mark.slow
def test_a_test_that_finds_too_much_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert coverage.simulate("holm", {"task": "transformation"}, 5, 100, 60)["verdict"] == "passes"
    monkeypatch.setattr(outcomes, "holm", lambda p: [each and each / 3 for each in p])
    row = coverage.simulate("holm", {"task": "transformation"}, 100, 100, 60)
    assert (row["verdict"], row["false_verdicts"] > 0.2) == ("fails", True)


def test_intervals_that_are_not_given_are_withheld() -> None:
    row = coverage.simulate("detected", {"shift": 1.0, "measure": "tpr"}, 20, 50, 60)
    assert (row["verdict"], row["replications"], "coverage" in row) == ("withheld", 50, False)
    assert coverage.shown(row) == "withheld  detected shift=1.0 measure=tpr units=20: 50 replications"


FIRST = {kind: (settings, sizes[0]) for kind, _, settings, sizes in reversed(coverage.CELLS)}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "similarity" else kind for kind in simulations.KINDS]
)
def test_every_kind_runs(kind: str) -> None:
    row = coverage.simulate(kind, *FIRST[kind], 50, 60)
    assert row["replications"] == 50
    assert {"coverage", "false_verdicts"} & row.keys()


def test_the_page_says_what_the_kept_results_say() -> None:
    """Every cell was run, and the table is that of the results."""
    root = Path(__file__).parents[2]
    rows = json.loads((root / "benchmarks" / "results" / "coverage.json").read_text())["rows"]
    cells = [coverage.named(kind, settings, units) for kind, _, settings, sizes in coverage.CELLS for units in sizes]
    assert [row["cell"] for row in rows] == cells
    assert coverage.summary(rows) in (root / "docs" / "concepts.md").read_text()
