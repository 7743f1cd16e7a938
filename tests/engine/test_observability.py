from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable

import pytest

from substyle.engine import observability


def test_nothing_is_kept_unless_a_recording_is_on() -> None:
    with observability.span("embed", "decode", 3):
        pass
    with observability.recording() as recorded:
        with observability.span("embed", "decode", 3):
            pass
        with observability.span("embed", "decode", 4):
            sum(range(200_000))
        observability.add("run", "whole", recorded.began, 1)
    with observability.span("embed", "decode", 5):
        pass
    totals = recorded.totals()
    assert list(totals) == [("run", "whole"), ("embed", "decode")]
    decode, whole = totals["embed", "decode"], totals["run", "whole"]
    assert (decode.items, decode.calls, whole.calls) == (7, 2, 1)
    assert 0 < decode.wall <= whole.wall
    assert decode.cpu > 0
    assert decode.items_per_s > 0


def test_the_trace_is_one_that_viewers_open() -> None:
    with observability.recording() as recorded, observability.span("embed", "decode", 2):
        pass
    (event,) = json.loads(recorded.to_json())["traceEvents"]
    assert (event["ph"], event["name"], event["cat"], event["args"]["items"]) == ("X", "decode", "embed", 2)
    assert event["ts"] >= 0
    assert event["dur"] >= 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_shows_what_it_does_between_items(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """A backbone may be prepared for minutes before the first item is finished."""
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(observability, "_LINE_EVERY_S", 0.0)
    with observability.stage("prepare", 2, "backbones") as bar:
        bar.note("gate: bf16, 16 of 124 pictures")
        assert "16 of 124 pictures" in out.getvalue()


def test_an_estimate_that_is_exceeded_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with observability.stage("probes", 3, "steps") as bar:
        bar.advance(7)
    assert "probes, longer than estimated: 7 steps" in out.getvalue()


def test_no_time_is_left_once_an_estimate_is_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr(observability.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", out)
    with observability.stage("probes", 10, "steps") as bar:
        for clock[0] in range(20, 420, 20):
            bar.advance()
    lines = out.getvalue().splitlines()
    assert all(", longer than estimated" in line for line in lines[10:])
    assert [line for line in lines if "longer" in line] == lines[10:]
    assert not any("<" in line or "-" in line for line in lines[10:])
    assert "<" in lines[5]  # time left


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def rate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[float, int]]], float]:
    """Rate reported to listeners, after numbers of items have arrived at times (s) since 100 were done."""
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr(observability.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", Terminal() if request.param else io.StringIO())

    def rate(arrivals: list[tuple[float, int]]) -> float:
        clock[0] = 0.0
        reports: list[tuple[str, int, int, float]] = []
        with (
            observability.listening(lambda *values: reports.append(values)),
            observability.stage("embed", 10**6, "images", done=100) as bar,
        ):
            for clock[0], count in arrivals:
                bar.advance(count)
        assert reports[-1][:3] == ("embed", 100 + sum(count for _, count in arrivals), 10**6)
        assert len(reports) >= arrivals[-1][0] // 50
        return reports[-1][3]

    return rate


STEADY = [(0.5 * i, 5) for i in range(1, 401)]  # 10 per second for 200 s


def test_one_slow_batch_changes_the_rate_little(rate: Callable[[list[tuple[float, int]]], float]) -> None:
    assert rate(STEADY) == pytest.approx(10.0, rel=0.01)
    assert rate([each for each in STEADY if not 170 < each[0] <= 185]) == pytest.approx(10.0, rel=0.25)
    assert rate([(4.0, 4), *((4.0 + t, n) for t, n in STEADY)]) == pytest.approx(10.0, rel=0.01)


def test_the_rate_is_that_of_the_last_minutes(rate: Callable[[list[tuple[float, int]]], float]) -> None:
    faster = [(200 + 0.1 * i, 5) for i in range(1, 2401)]  # 50 per second for 240 s
    assert rate([*STEADY, *faster]) == pytest.approx(50.0, rel=0.05)


def test_the_rate_is_the_mean_at_first_and_of_rare_items(rate: Callable[[list[tuple[float, int]]], float]) -> None:
    assert rate([(1.0, 4), (4.0, 8)]) == pytest.approx(3.0, rel=0.01)
    assert rate([(45.0 * i, 90) for i in range(1, 5)]) == pytest.approx(2.0, rel=0.01)  # every 45 s


def test_a_log_has_a_line_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", out)
    for clocked in ("tqdm.std.time", "substyle.engine.observability.time.monotonic"):
        monkeypatch.setattr(clocked, lambda: clock[0])
    with observability.stage("embed", 120, "images", done=20) as bar:
        for clock[0] in range(1, 41):
            bar.advance(1)
            bar.note("two workers")
    lines = out.getvalue().splitlines()
    assert [line.partition(" [")[0].partition("% ")[2] for line in lines] == ["35/120", "50/120", "60/120"]
    assert all("two workers" in line for line in lines[1:])
    assert "1.00 images/s" in lines[1]
    assert "<01:10" in lines[1]  # resumed images do not count


def test_quiet_stages_show_nothing_and_tell_listeners(capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[int] = []
    with (
        observability.listening(lambda name, done, *_: reports.append(done)),
        observability.stage("embed", 3, "images", quiet=True) as bar,
    ):
        bar.note("one")
        bar.advance(3)
    assert reports == [3]
    assert capsys.readouterr() == ("", "")
