from __future__ import annotations

import io
import json
import sys

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
