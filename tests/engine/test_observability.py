from __future__ import annotations

import json

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
