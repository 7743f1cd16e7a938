"""The coverage benchmark: it tells a wrong interval, and the page has its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import coverage, simulations

from substyle.engine.probes import resampling


def test_an_interval_that_is_too_narrow_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = resampling.BootstrapResult._interval
    monkeypatch.setattr(resampling.BootstrapResult, "_interval", lambda self, per_cent: narrow(self, 68.0))
    row = coverage.simulate("paired", {"first": 0.15, "second": 0.05}, 100, 200, 60)
    assert (row["verdict"], row["coverage"] < 0.85) == ("fails", True)
    assert coverage.shown(row).startswith("fails")


# settings and the smallest size of each kind
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
    assert coverage.summary(rows) in (root / "benchmarks" / "TABLES.md").read_text()
