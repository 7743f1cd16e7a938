"""Passes of linear probes: as many as fits report, and the constants of plans are those of the kept results."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from benchmarks import passes
from benchmarks.gpu_check.probe_tables import made
from benchmarks.harness import RESULTS

from substyle.engine.estimate.probes import PASSES
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.run import _Run


def test_plans_have_the_kept_passes() -> None:
    rows = json.loads((RESULTS / "passes.json").read_text())["rows"]
    found = passes.means(rows)
    assert PASSES.keys() == found.keys()
    for key, mean in PASSES.items():
        assert mean == pytest.approx(found[key], rel=5e-3)


def test_all_passes_are_counted() -> None:
    table = made(200, 12)
    config = ProbeConfig(
        tasks=("transformation", "kind"),
        heads=("linear",),
        resamples=2,
        redraws=2,
        bootstrap=100,
        device="cpu",
        expert=ExpertConfig(equal_width=8),
    )
    advanced = 0

    class Watched:
        def note(self, text: str) -> None:
            pass

        def advance(self, count: int = 1) -> None:
            nonlocal advanced
            advanced += count

    run = _Run(
        table,
        replace(config, expert=replace(config.expert, precision="bf16")),
        ["transformation", "kind"],
        None,
        {},
        True,
    )
    for name in ("transformation", "kind"):
        run.single(name, Watched())  # type: ignore[arg-type]
    found = passes.both(table, config)
    assert sum(each[kind] for each in found.values() for kind in ("fp32", "fp64") if kind in each) == advanced
    assert {task for task, _ in found} == {"transformation", "kind", "equal_transformation", "equal_kind"}
    assert {kind for _, kind in found} == {"grid", "single", "resamples", "rotation"}
    assert all(0 < each["heads"] <= 1 and each["fits"] >= 1 for each in found.values())
    # a pass over rows as stored is as good as one in float32, and each fit ends with one of these
    for each in found.values():
        assert each["after"] >= each["fits"]
        assert each["stored"] + each["after"] <= each["fp32"] + each["fits"] + 5
