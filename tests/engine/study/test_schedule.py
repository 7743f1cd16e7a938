from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from substyle.engine import cache, observability
from substyle.engine.study import runner
from substyle.engine.study import schedule as module
from substyle.engine.study.file import study_of
from substyle.engine.study.runner import run_study
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


def test_without_an_earlier_run_only_the_bar_is_known(clock: list[float]) -> None:
    first = Schedule(["a", "b"], ["probes"], 100)
    with first.during(EMBED):
        assert first.left("prepare", 20.0) == ""
        assert first.left("embed", None) == ""
        assert first.left("embed", 20.0) == "whole run: more than 00:20 left"
    with first.during("probes"):
        assert first.left("probes a", 20.0) == ""


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


def test_other_backbones_and_stages(clock: list[float]) -> None:
    """Other backbones take as long as those of the last run each; of a stage that never ran nothing is known."""
    ran(clock, Schedule(["a", "b"], ["probes"], 100), embed=50.0, probes=200.0, report=10.0)
    ran(clock, Schedule(["c"], ["probes"], 100), embed=10.0, probes=30.0, report=5.0)
    other = Schedule(["a", "c"], ["probes"], 100)
    with other.during(EMBED):
        assert other.left("prepare", None) == "whole run: 01:30 left"
    same = Schedule(["a", "b"], ["probes", "labels"], 100)
    with same.during(EMBED):
        assert same.left("prepare", None) == "whole run: more than 04:20 left"
    with same.during("unknown"):
        assert same.left("x", 5.0) == ""


def test_a_stage_that_was_off_or_had_nothing_to_compute_is_not_expected_to_take_no_time(clock: list[float]) -> None:
    """Of the same study, one that had nothing to compute is."""
    earlier = Schedule(["a"], ["labels"], 100, "one suite")
    ran(clock, earlier, probes=0.0)
    with earlier.during("labels"):
        earlier.keep(others=False)
    assert Schedule(["a"], ["probes", "labels"], 100, "one suite").expected == {
        EMBED: None, "probes": None, "labels": 0.0, REPORT: None,
    }  # fmt: skip
    assert Schedule(["a"], ["labels"], 100, "another").expected["labels"] is None
    assert Schedule(["b"], ["labels"], 100, "one suite").expected["labels"] is None


@pytest.mark.parametrize(("size", "text"), [(400, "02:20"), (25, "00:09"), (401, ""), (24, "")])
def test_runs_of_other_sizes_say_nothing(clock: list[float], size: int, text: str) -> None:
    """Small runs have fixed costs, large ones may be on disk."""
    ran(clock, Schedule(["a"], [], 100), embed=25.0, report=10.0)
    other = Schedule(["a"], [], size)
    with other.during(EMBED):
        assert other.left("prepare", None) == (text and f"whole run: {text} left")


@pytest.mark.parametrize("value", [None, "1", [], [1.0], [float("nan"), 100], [-1.0, 100], [1.0, 0], [1.0, "100"]])
def test_what_is_no_duration_is_ignored(clock: list[float], value: object) -> None:
    for facts in Schedule(["a"], ["probes"], 100)._facts("probes"):
        cache.write(f"pace/{cache.key(facts)}.json", json.dumps(value).encode())
    assert Schedule(["a"], ["probes"], 100).expected["probes"] is None


def test_a_cache_that_cannot_be_written_is_done_without(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", "/proc/nothing")
    ran(clock, Schedule(["a"], ["probes"], 100), embed=50.0)
    assert Schedule(["a"], ["probes"], 100).expected[EMBED] is None


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bars_show_it_beside_their_notes(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    out = io.StringIO()
    out.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", out)
    schedule = Schedule(["a"], [], 100)
    schedule.expected[REPORT] = 60.0
    with schedule.during(EMBED), observability.stage("embed", 4, "embeddings") as bar:
        bar.note("a note")
        bar.advance(2)
    assert "a note, whole run: more than 01:00 left" in out.getvalue()
    with observability.stage("embed", 4, "embeddings") as bar:
        bar.note("later")
    assert "later, whole" not in out.getvalue()


def test_a_run_keeps_the_pace_of_what_it_computes(
    two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of results that are there already, and of stages without results for the same backbones alone."""
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    probes = {
        "tasks": ["transformation"],
        "heads": ["linear"],
        "rotate": "none",
        "resamples": 0,
        "expert": {"equal_width": 0},
    }
    study = study_of(
        {
            "name": "small",
            "suite": "mini5",
            "canvas": 64,
            "backbones": ["control:pixels"],
            "gallery": 0,
            "probes": probes,
        }
    )

    made: list[Schedule] = []
    monkeypatch.setattr(runner, "Schedule", lambda *given: made.append(Schedule(*given)) or made[-1])

    run_study(study, tmp_path / "out", images=two_classes, quiet=True)
    run_study(study, tmp_path / "again", images=two_classes, quiet=True)
    before, first = (each.expected for each in made)
    assert set(before.values()) == {None}
    assert None not in first.values()
    assert first["probes"]
    assert Schedule(["other"], ["generators", "probes"], 200).expected["generators"] is None
    assert Schedule(["other"], ["generators", "probes"], 200).expected["probes"] is not None
    run_study(study, tmp_path / "again", images=two_classes, quiet=True)
    run_study(study, tmp_path / "once more", images=two_classes, quiet=True)
    second, third = (each.expected for each in made[2:])
    assert third["probes"] == second["probes"]  # the run between has loaded its results
