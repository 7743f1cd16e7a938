from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable

import pytest

from substyle.engine import observability


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
