from __future__ import annotations

from pathlib import Path

import pytest

from substyle.engine.study import schedule as module
from substyle.engine.study.schedule import EMBED, REPORT, Schedule


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Time in seconds; the cache is empty."""
    now = [100.0]
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def ran(clock: list[float], schedule: Schedule, **seconds: float) -> None:
    """A run whose parts take so many seconds."""
    for part, took in seconds.items():
        with schedule.during(part):
            clock[0] += took
            schedule.keep()


def test_parts_take_as_long_per_embedding_as_in_the_last_run(clock: list[float]) -> None:
    ran(clock, Schedule(["a", "b"], ["probes", "analysis"], 100), embed=50.0, probes=200.0, analysis=20.0, report=10.0)
    again = Schedule(["b", "a"], ["probes", "analysis"], 200)
    with again.during(EMBED):
        assert again.left("prepare", 3.0) == "whole run: 09:20 left"  # 100 + 400 + 40 + 20
        clock[0] += 30.0
        assert again.left("prepare", 3.0) == "whole run: 08:50 left"
        assert again.left("embed", 7.0) == "whole run: 07:47 left"  # that of the bar
    with again.during("probes"):
        clock[0] += 100.0
        assert again.left("probes a", 1.0) == "whole run: 06:00 left"
        clock[0] += 400.0
        assert again.left("probes b", 1.0) == "whole run: more than 01:00 left"
    with again.during(REPORT):
        assert again.left("gallery", None) == "whole run: 00:20 left"
