"""Forecasts of half widths against intervals of simulated differences."""

from __future__ import annotations

from substyle.engine.estimate.forecast import GENERATORS, HEADS, STYLE, forecasts
from substyle.engine.results.statistics import correlation_interval
from substyle.pipelines.transforms.registry import suite


def test_each_claim_says_its_width_or_what_it_needs() -> None:
    found = {each.claim: each for each in forecasts(suite("substance31"), 100, 3)}
    assert list(found) == ["C1, C3", "C2", "C4", "C6"]
    assert (found["C2"].half, found["C2"].remark) == (None, "requires three generators")
    assert found["C1, C3"].half == STYLE.half(31, 100)
    assert found["C6"].half is None
    many = {each.claim: each for each in forecasts(suite("substance31,styles48"), 100, 3)}
    assert many["C2"].half == GENERATORS.half(12, 100)
    (last,) = [each for each in forecasts(suite("substance31"), 100, 8) if each.claim == "C6"]
    assert last.half is not None
    assert last.half[1] == correlation_interval(0.0, 8)[1]
    assert forecasts(("identity", "jpeg"), 100, 3) == []
    severities = {each.claim: each for each in forecasts(suite("imagenet_c@1..5"), 100, 3)}
    assert severities["C1, C3"].half == STYLE.half(20, 100)
    assert severities["C4"].half == HEADS.half(20, 100)
