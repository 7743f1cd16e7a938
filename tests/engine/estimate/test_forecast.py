"""Forecasts of half widths against intervals of simulated differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from substyle.engine.estimate.forecast import GENERATORS, HEADS, STYLE, Deviations, OverGenerators, forecasts
from substyle.engine.probes.resampling import DIFFERENCE, resample, uniform_over
from substyle.engine.results.statistics import correlation_interval
from substyle.pipelines.transforms.registry import suite


@pytest.mark.parametrize(("transformations", "photographs"), [(12, 200), (31, 40), (75, 120)])
def test_intervals_of_simulated_differences_are_as_wide(transformations: int, photographs: int) -> None:
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(20):
        difference_TN = 0.1 * rng.normal(size=(transformations, 1)) + 0.08 * rng.normal(size=(1, photographs))
        two_way = resample(difference_TN.astype(np.float32), 1000, 0, bounds=DIFFERENCE).two_way(
            uniform_over(range(transformations), transformations)
        )
        assert two_way.ci95 is not None
        halves.append((two_way.ci95[1] - two_way.ci95[0]) / 2)
    low, median, high = Deviations((0.05, 0.1, 0.2), (0.04, 0.08, 0.16)).half(transformations, photographs)
    assert np.median(halves) == pytest.approx(median, rel=0.12)
    assert low == pytest.approx(median / 2)
    assert high == pytest.approx(2 * median)


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


@pytest.mark.parametrize("generators", [4, 12])
def test_widths_over_generators_are_those_of_a_crossed_design(generators: int) -> None:
    """Student's t of generators where these are all of the error, and of photographs where those are."""
    alone = OverGenerators((0.1, 0.1, 0.1), (0.0, 0.0, 0.0)).half(generators, 100)[1]
    assert alone == pytest.approx(t.ppf(0.975, generators - 1) * 0.1 / np.sqrt(generators))
    few = OverGenerators((1e-9, 1e-9, 1e-9), (0.2, 0.2, 0.2)).half(generators, 100)[1]
    assert few == pytest.approx(t.ppf(0.975, 99) * 0.02)
    both = OverGenerators((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)).half(generators, 100)[1]
    assert few < both < alone + few
