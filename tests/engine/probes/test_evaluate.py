from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from substyle.engine.probes.resampling import (
    DIFFERENCE,
    Resampled,
    by_class,
    resample,
    uniform_over,
)
from substyle.engine.probes.single_task import Judged
from substyle.engine.results.statistics import MARGIN


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """About 95 % of the intervals of 400 simulated test sets with varying difficulty contain the true accuracy."""
    rng = np.random.default_rng(5)
    covered = 0
    for i in range(400):
        difficulty = rng.beta(3, 2, size=60)  # true accuracy 0.6; variants of an image are not independent
        score = (rng.random((5, 60)) < difficulty).astype(np.float32)
        low, high = resample(score, 300, i).mean(np.ones(5)).ci95 or (1.0, 0.0)
        covered += low <= 0.6 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_differences_are_paired() -> None:
    """A constant advantage on the same images has a much narrower interval than the accuracies."""
    rng = np.random.default_rng(8)
    base = rng.random((3, 3000)).astype(np.float32)
    a, b = resample(base, 500, 1).mean(np.ones(3)), resample(base * 0.9 + 0.1, 500, 1).mean(np.ones(3))
    low, high = (b - a).ci95 or (0.0, 0.0)
    assert low <= (b - a).value <= high
    low_a, high_a = a.ci95 or (0.0, 0.0)
    assert high - low < 0.3 * (high_a - low_a)


@pytest.mark.parametrize(("right", "images"), [(0, 50), (1, 50), (18, 30), (97, 100), (250, 500)])
def test_intervals_of_accuracies_are_nearly_exact_binomial_ones(right: int, images: int) -> None:
    """Within a tenth of the mid-p interval's width; the 90 % interval is that of Clopper and Pearson."""
    made = resample((np.arange(images) < right)[None].astype(np.float32), 4000, 0).one(0)
    grid = np.linspace(0, 1, 100_001)
    at, below, above = (f(right, images, grid) for f in (stats.binom.pmf, stats.binom.cdf, stats.binom.sf))
    inside = (below - at / 2 > 0.025) & (above + at / 2 > 0.025)
    low, high = grid[inside][[0, -1]]
    assert made.ci95 == pytest.approx([low, high], abs=0.1 * (high - low))
    exact = stats.binomtest(right, images).proportion_ci(0.9, "exact")
    assert made.ci90 == pytest.approx(list(exact), abs=0.1 * (exact.high - exact.low))


@pytest.mark.parametrize("groups", [3, 5, 17])
def test_intervals_over_few_groups_cover(groups: int) -> None:
    """Differences of groups of four images, with effects of the groups."""
    rng, covered, alarms = np.random.default_rng(groups), 0, 0
    for i in range(300):
        score = np.repeat(rng.normal(size=groups), 4) + 0.3 * rng.normal(size=4 * groups)
        made = resample(score[None], 300, i, np.arange(4 * groups) // 4, bounds=None).mean(np.ones(1))
        low, high = made.ci95 or (1.0, 0.0)
        covered += low <= 0 <= high
        alarms += abs(made.value) > made.quantile(95.0) * (made.se or 0.0)
    assert covered / 300 > 0.9
    assert alarms / 300 < 0.1


@pytest.mark.parametrize(("images", "group_N"), [(1, None), (40, np.zeros(40, np.int64))])
def test_one_group_has_no_interval(images: int, group_N: np.ndarray[Any, np.dtype[np.int64]] | None) -> None:
    """All its resamples are equal: an interval without width would make every difference significant."""
    score = (np.random.default_rng(9).random((3, images)) < 0.4).astype(np.float32)
    made = resample(score, 300, 5, group_N)
    estimate = made.mean(np.ones(3))
    assert estimate.number == pytest.approx(score.mean())
    assert (estimate.ci95, estimate.ci90, estimate.se, made.two_way(np.ones(3)).ci95) == (None, None, None, None)


@pytest.mark.slow
def test_two_way_intervals_cover_where_those_over_images_do_not() -> None:
    """A crossed random-effects model: effects of 20 transformations, of 80 images and of their pairs; true mean 0."""
    rng = np.random.default_rng(13)
    ones, two_way, images_only = np.ones(20), 0, 0
    for i in range(300):
        score = 0.5 * rng.normal(size=(20, 1)) + 0.5 * rng.normal(size=(1, 80)) + rng.normal(size=(20, 80))
        made: Resampled = resample(score, 300, i, bounds=None)
        low, high = made.two_way(ones).ci95 or (1.0, 0.0)
        two_way += low <= 0 <= high
        low, high = made.mean(ones).ci95 or (1.0, 0.0)
        images_only += low <= 0 <= high
    assert 0.9 <= two_way / 300 <= 0.99
    assert images_only / 300 < 0.8


@pytest.mark.parametrize(("photographs", "transformations"), [(250, 1), (400, 5)])
def test_probes_that_differ_by_the_margin_are_seldom_equivalent(photographs: int, transformations: int) -> None:
    """One probe is right alone on 1 % of the rows: at most 5 % of intervals may lie within a point."""
    rng, studies = np.random.default_rng(3), 400
    alone = (rng.random((studies * transformations, photographs)) < 0.01).astype(np.float32)
    made, called = resample(alone, 1000, 0, bounds=DIFFERENCE), 0
    for k in range(studies):
        own = made.part(slice(k * transformations, (k + 1) * transformations))
        low, high = own.mean(np.ones(transformations)).ci90 or (-1.0, 1.0)
        called += -MARGIN < low <= high < MARGIN
    assert called / studies <= 0.05


@pytest.mark.slow
def test_nested_intervals_cover_means_over_classes_that_differ() -> None:
    """Transformations of five fixed classes, and photographs: other transformations of the same classes."""
    rng, classes = np.random.default_rng(14), tuple(f"{c}" for c in range(5) for _ in range(4))
    mean_T = np.repeat(np.linspace(-2, 2, 5), 4)[:, None]
    weight = by_class(range(20), classes)
    covered, widths = 0, []
    for i in range(200):
        score = mean_T + 0.5 * rng.normal(size=(20, 1)) + 0.5 * rng.normal(size=(1, 60)) + rng.normal(size=(20, 60))
        made = resample(score, 400, i, bounds=None)
        (low, high), whole = made.nested(weight, classes).ci95 or (1.0, 0.0), made.two_way(weight).ci95 or (0.0, 0.0)
        covered += low <= 0 <= high
        widths.append((high - low) / (whole[1] - whole[0]))
    assert 0.9 <= covered / 200 <= 0.99
    assert np.median(widths) < 0.5  # classes are no sample


def test_a_gap_to_one_transformation_has_no_two_way_interval() -> None:
    score = (np.random.default_rng(0).random((3, 50)) < 0.6).astype(np.float32)
    judged = Judged(resample(score, 200, 0), None)
    gap = judged.estimate(uniform_over([0, 1], 3), uniform_over([2], 3), general=True)
    assert gap is not None
    assert gap["value"] == pytest.approx(score[:2].mean() - score[2].mean())
    assert gap["one_way"] is not None
    assert gap.keys().isdisjoint(("low", "high", "two_way"))
