from __future__ import annotations

import io
import json
import sys

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
    assert "probes: 7 steps" in out.getvalue()


def _rates(monkeypatch: pytest.MonkeyPatch, arrivals: list[tuple[float, int]], now: float) -> float:
    """Rate of a stage at which numbers of items have arrived at times (s)."""
    clock = [0.0]
    monkeypatch.setattr(observability.time, "monotonic", lambda: clock[0])
    rate, done = observability._Rate(100), 100
    for clock[0], count in arrivals:
        done += count
        rate.update(done, clock[0])
    return rate.per_s(now)


def test_the_rate_is_the_median_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    steady = [(0.5 * i, 5) for i in range(1, 401)]  # 10 per second for 200 s
    assert _rates(monkeypatch, steady, 200.0) == pytest.approx(10.0, rel=0.02)
    slow_start = [(100.0, 1), *((100 + 0.5 * i, 5) for i in range(1, 201))]
    assert _rates(monkeypatch, slow_start, 200.0) == pytest.approx(10.0, rel=0.02)
    pause = [(t, n) for t, n in steady if not 170 < t <= 185]  # the mean of the minute would be 7.5
    assert _rates(monkeypatch, pause, 200.0) == pytest.approx(10.0, rel=0.02)
    faster = [*steady, *((200 + 0.1 * i, 5) for i in range(1, 601))]
    assert _rates(monkeypatch, faster, 260.0) == pytest.approx(50.0, rel=0.02)


def test_the_rate_is_the_mean_at_first_and_of_rare_items(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _rates(monkeypatch, [(1.0, 4), (4.0, 8)], 4.0) == pytest.approx(3.0)
    bursts = [(45.0 * i, 90) for i in range(1, 5)]  # every 45 s
    assert _rates(monkeypatch, bursts, 180.0) == pytest.approx(2.0, rel=0.3)


def test_a_terminal_shows_that_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(observability._Rate, "per_s", lambda *_: 4.0)
    with observability.stage("embed", 120, "images") as bar:
        bar.advance(40)
    assert "4.00 images/s" in out.getvalue()
    assert "<00:20" in out.getvalue()
