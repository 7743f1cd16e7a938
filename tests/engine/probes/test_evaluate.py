from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tests.conftest import slow_after

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.resampling import (
    ACCURACY,
    DIFFERENCE,
    BootstrapResult,
    Resampled,
    StudentsT,
    balanced_over,
    by_class,
    resample,
    uniform_over,
)
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.single_task import Judged
from substyle.engine.results.statistics import MARGIN
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError


def test_values_are_plain_means() -> None:
    rng = np.random.default_rng(0)
    score = (rng.random((4, 50)) < 0.6).astype(np.float32)
    score[1, :20] = np.nan
    resampled = resample(score, 100, 0)
    np.testing.assert_allclose(resampled.value_T, np.nanmean(score, axis=1), rtol=1e-6)
    weighted = resampled.mean(np.array([1.0, 3.0, 0.0, 0.0]))
    assert weighted.value == pytest.approx((resampled.value_T[0] + 3 * resampled.value_T[1]) / 4)


def test_replicates_equal_a_loop_over_resamples() -> None:
    """Vectorised resampling compared with one resample at a time from the same generator."""
    rng = np.random.default_rng(3)
    score = rng.random((3, 20)).astype(np.float32)
    score[2, 5:9] = np.nan
    resampled = resample(score, 150, 7)
    draws = np.random.Generator(np.random.PCG64([7, 20, 0x626F6F74])).integers(20, size=(150, 20))
    expected = np.stack([np.nanmean(score[:, images], axis=1) for images in draws])
    np.testing.assert_allclose(resampled.replicates_RT, expected, rtol=1e-5)


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


def test_variants_of_an_image_are_resampled_together() -> None:
    """If variants always agree, T variants give the same interval as one."""
    rng = np.random.default_rng(6)
    one = (rng.random((1, 200)) < 0.5).astype(np.float32)
    single, repeated = resample(one, 1000, 0), resample(np.repeat(one, 10, axis=0), 1000, 0)
    assert single.mean(np.ones(1)).ci95 == pytest.approx(repeated.mean(np.ones(10)).ci95)


def test_differences_are_paired() -> None:
    """A constant advantage on the same images has a much narrower interval than the accuracies."""
    rng = np.random.default_rng(8)
    base = rng.random((3, 3000)).astype(np.float32)
    a, b = resample(base, 500, 1).mean(np.ones(3)), resample(base * 0.9 + 0.1, 500, 1).mean(np.ones(3))
    low, high = (b - a).ci95 or (0.0, 0.0)
    assert low <= (b - a).value <= high
    low_a, high_a = a.ci95 or (0.0, 0.0)
    assert high - low < 0.3 * (high_a - low_a)


@pytest.mark.parametrize("images", [5, 80])
@pytest.mark.parametrize("bounds", [ACCURACY, DIFFERENCE])
def test_intervals_have_one_image_more_at_either_bound(images: int, bounds: tuple[float, float]) -> None:
    """A loop over resamples, with a share of Beta(1, G) for the image more, drawn many times."""
    rng = np.random.default_rng(4)
    made = resample(rng.choice(bounds, (2, images)).astype(np.float32), 500, 3, bounds=bounds).mean(np.ones(2))
    share_DR = rng.beta(1, images, size=(400, 500))
    low_DR, high_DR = (made.replicates_R + share_DR * (bound - made.replicates_R) for bound in bounds)
    both = np.concatenate([low_DR, high_DR])
    assert made.ci95 == pytest.approx(np.quantile(both, [0.025, 0.975]).tolist(), abs=0.02)
    assert made.ci90 == pytest.approx([np.quantile(low_DR, 0.05), np.quantile(high_DR, 0.95)], abs=0.02)
    few = (images / (images - 1)) ** 0.5
    unseen = 0.0 if bounds == ACCURACY else 3 / 1.645 / (images + 2) / 2
    assert made.se == pytest.approx(np.hypot(few * np.std(made.replicates_R, ddof=1), unseen))


@pytest.mark.parametrize("images", [5, 80])
def test_numbers_without_bounds_have_the_replicates_scaled_for_few_images(images: int) -> None:
    made = resample(np.random.default_rng(4).random((2, images)), 500, 3, bounds=None).mean(np.ones(2))
    few = (images / (images - 1)) ** 0.5
    assert made.se == pytest.approx(few * np.std(made.replicates_R, ddof=1))
    for per_cent, found in ((90, made.ci90), (95, made.ci95)):
        tail = 0.5 - per_cent / 200
        ends = np.quantile(made.replicates_R, [tail, 1 - tail])
        wider = few * stats.t.isf(tail, images - 1) / stats.norm.isf(tail)
        assert found == pytest.approx((made.value + wider * (ends - made.value)).tolist())


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


def test_accuracies_without_spread_have_the_interval_of_their_groups() -> None:
    for value, expected in ((1.0, [0.05 ** (1 / 50), 1.0]), (0.0, [0.0, 1 - 0.05 ** (1 / 50)])):
        for images, group_N in ((50, None), (100, np.arange(100) // 2)):
            made = resample(np.full((3, images), value, np.float32), 2000, 0, group_N).mean(np.ones(3))
            assert made.ci95 == pytest.approx(expected, abs=1e-3)
            assert made.se is not None
            assert made.se > 0.01


def test_accuracies_that_are_alike_have_an_interval() -> None:
    """One transformation always right and one never; a single image scored has none."""
    score = np.stack([np.ones(100), np.zeros(100)]).astype(np.float32)
    low, high = resample(score, 100, 0).mean(np.ones(2)).ci95 or (0.5, 0.5)
    assert 0.45 < low < 0.5 < high < 0.55
    score[1, 1:] = np.nan
    assert resample(score, 100, 0).one(1).ci95 is None


def test_few_transformations_do_not_show_what_others_would() -> None:
    """All of five transformations are right on all photographs: one more could be wrong on all."""
    right = np.ones((5, 140), np.float32)
    perfect = resample(right, 1000, 0).two_way(np.ones(5)).ci95 or [0.0]
    assert perfect == pytest.approx([0.05 ** (1 / 5), 1.0], abs=0.005)
    right[0, 0] = 0
    nearly = resample(right, 1000, 0).two_way(np.ones(5)).ci95 or [0.0]
    assert abs(perfect[0] - nearly[0]) < 0.01


def test_differences_over_few_transformations_are_scaled_and_have_one_photograph_more() -> None:
    rng = np.random.default_rng(2)
    apart = rng.normal(0.1, 0.05, (6, 1)) * np.ones(300)
    made = resample(apart, 2000, 0, bounds=DIFFERENCE).two_way(np.ones(6))
    low, high = made.ci95 or (0.0, 0.0)
    of_t = stats.t.isf(0.025, 5) * apart[:, 0].std(ddof=1) / np.sqrt(6)
    assert (high - low) / 2 == pytest.approx(of_t, rel=0.15)


def test_student_t_of_two_errors_is_between_those_of_each() -> None:
    t = StudentsT.of((0.02, 100), (0.01, 6))
    assert t.se == pytest.approx(np.hypot(0.02, 0.01))
    quantile = (4 * stats.t.isf(0.025, 99) + stats.t.isf(0.025, 5)) / 5
    assert t.half_width(95) == pytest.approx(quantile * t.se)
    for per_cent in (50, 95, 99.99):
        assert t.p(-t.half_width(per_cent)) == pytest.approx(1 - per_cent / 100, rel=1e-6)
    one = StudentsT.of((0.02, 12))
    assert one.p(0.05) == pytest.approx(2 * stats.t.sf(2.5, 11))
    assert (t.p(0.0), t.p(1e9) < 1e-20) == (pytest.approx(1.0), True)
    nothing = StudentsT.of((0.0, 12))
    assert (nothing.half_width(95), nothing.p(0.1), nothing.p(0.0)) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("training", slow_after(1, [0.3, 0.0, 1.0, 3.0]))
def test_tests_with_two_errors_are_seldom_wrong(training: float) -> None:
    """Errors over 100 units and over six: tests at 5 % reject at most 5 % of true null hypotheses."""
    rng, wrong, count = np.random.default_rng(0), 0, 4000
    for _ in range(count):
        of_units, of_probes = rng.normal(size=100) * 10, training * rng.normal(size=6)
        t = StudentsT.of((of_units.std(ddof=1) / 10, 100), (of_probes[1:].std(ddof=1), 5))
        wrong += t.p(of_units.mean() + of_probes[0]) < 0.05
    assert wrong / count < 0.057  # 5 % and two Monte Carlo errors


def test_an_estimate_is_kept_with_its_units() -> None:
    a, b = (resample((np.random.default_rng(i).random((2, 9)) < 0.5).astype(np.float32), 50, 3) for i in (1, 2))
    for gap in (a.mean(np.ones(2)) - b.mean(np.ones(2)), a.mean(np.ones(2)), replace(a.mean(np.ones(2)), bounds=None)):
        again = BootstrapResult.of(gap.array())
        assert (again.value, again.ci95, again.ci90, again.se) == (gap.value, gap.ci95, gap.ci90, gap.se)


def test_a_difference_that_nothing_shows_may_still_be_there() -> None:
    """Two classifiers that agree on all photographs; one in a hundred photographs more would not have shown."""
    same = resample(np.ones((1, 100), np.float32), 100, 0).mean(np.ones(1))
    low, high = (same - same).ci90 or (0.0, 0.0)
    assert low == pytest.approx(-high)
    assert high > 0.02
    many = resample(np.ones((1, 1000), np.float32), 100, 0).mean(np.ones(1))
    assert ((many - many).ci90 or [0.0, 1.0])[1] < 0.003


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


def test_groups_are_drawn_whole() -> None:
    """Ten grouped copies of every image are resampled like one; singleton groups like no groups."""
    score = (np.random.default_rng(9).random((3, 40)) < 0.4).astype(np.float32)
    score[1, :7] = np.nan
    alone = resample(score, 300, 5)
    copies = resample(np.tile(score, 10), 300, 5, np.tile(np.arange(40) + 100, 10))
    np.testing.assert_allclose(copies.replicates_RT, alone.replicates_RT, rtol=1e-6)
    np.testing.assert_array_equal(resample(score, 300, 5, np.arange(40)).replicates_RT, alone.replicates_RT)


@pytest.mark.parametrize(("images", "group_N"), [(1, None), (40, np.zeros(40, np.int64))])
def test_one_group_has_no_interval(images: int, group_N: np.ndarray[Any, np.dtype[np.int64]] | None) -> None:
    """All its resamples are equal: an interval without width would make every difference significant."""
    score = (np.random.default_rng(9).random((3, images)) < 0.4).astype(np.float32)
    made = resample(score, 300, 5, group_N)
    estimate = made.mean(np.ones(3))
    assert estimate.number == pytest.approx(score.mean())
    assert (estimate.ci95, estimate.ci90, estimate.se, made.two_way(np.ones(3)).ci95) == (None, None, None, None)


def test_two_way_replicates_equal_a_loop() -> None:
    """The vectorised pigeonhole bootstrap compared with a loop over drawn transformations."""
    rng = np.random.default_rng(11)
    score = (rng.random((6, 30)) < 0.6).astype(np.float32)
    score[5] = np.nan
    weight = np.array([1.0, 0.0, 0.5, 0.5, 2.0, 1.0])
    made = resample(score, 120, 4)
    times = np.random.Generator(np.random.PCG64([4, 4, 0x70696765, 0, 2, 3, 4])).multinomial(4, [0.25] * 4, size=120)
    expected = []
    for accuracy, counts in zip(made.replicates_RT, times, strict=True):
        drawn = np.repeat([0, 2, 3, 4], counts)
        expected.append(np.average(accuracy[drawn], weights=weight[drawn]))
    np.testing.assert_allclose(made.two_way(weight).replicates_R, expected, rtol=1e-9)
    assert made.two_way(weight).value == made.mean(weight).value


SEVERITIES = ("fog", "fog", "snow", "jpeg", "jpeg", "jpeg")


def test_severities_of_a_transformation_are_drawn_together() -> None:
    """Compared with a loop over drawn transformations; as many units as there are transformations."""
    score = np.random.default_rng(11).random((6, 30)).astype(np.float32)
    weight = np.array([1.0, 0.5, 0.5, 0.0, 2.0, 1.0])
    made = resample(score, 120, 4, families=SEVERITIES)
    times = np.random.Generator(np.random.PCG64([4, 5, 0x70696765, 0, 1, 2, 4, 5])).multinomial(
        3, [1 / 3] * 3, size=120
    )
    members = [[0, 1], [2], [4, 5]]
    expected = []
    for accuracy, counts in zip(made.replicates_RT, times, strict=True):
        drawn = [t for own, count in zip(members, counts, strict=True) for t in own * int(count)]
        expected.append(np.average(accuracy[drawn], weights=weight[drawn]))
    found = made.two_way(weight)
    np.testing.assert_allclose(found.replicates_R, expected, rtol=1e-9)
    assert found.units == 3
    assert made.part(slice(3, 6)).two_way(np.ones(3)).ci95 is None  # all of one


def test_nested_draws_of_severities_are_those_of_their_transformations() -> None:
    """Four severities of each say no more of other transformations than one does."""
    accuracy = np.array([0.1, 0.3, 0.5, 0.6, 1.0, 0.7])
    once = Resampled(accuracy, np.tile(accuracy, (20_000, 1)))
    more = Resampled(accuracy.repeat(4), np.tile(accuracy.repeat(4), (20_000, 1)), family_T=np.arange(6).repeat(4))
    a = once.nested(balanced_over(range(6), CLASSES, ["a", "b", "c"]), CLASSES)
    classes = tuple(np.repeat(CLASSES, 4).tolist())
    b = more.nested(balanced_over(range(24), classes, ["a", "b", "c"]), classes)
    assert (b.value, b.units) == (pytest.approx(a.value), a.units)
    assert b.se == pytest.approx(a.se, rel=0.03)


def test_two_way_differences_are_paired_and_one_transformation_gives_no_interval() -> None:
    score = np.random.default_rng(12).random((8, 50)).astype(np.float32)
    a, b = resample(score, 400, 2).two_way(np.ones(8)), resample(score * 0.5 + 0.25, 400, 2).two_way(np.ones(8))
    np.testing.assert_allclose((a - b).replicates_R, 0.5 * a.replicates_R - 0.25, atol=1e-6)
    assert resample(score, 400, 2).two_way(uniform_over([3], 8)).ci95 is None


def test_two_way_draws_of_other_transformations_are_independent() -> None:
    """As many others must not get the same counts: their difference would hardly vary."""
    accuracy = np.tile(np.linspace(0.1, 0.9, 5), 2)
    made = Resampled(accuracy, np.tile(accuracy, (4000, 1)), seed=0)
    seen, held_out = (made.two_way(uniform_over(rows, 10)) for rows in (range(5), range(5, 10)))
    assert abs(np.corrcoef(seen.replicates_R, held_out.replicates_R)[0, 1]) < 0.05
    assert (seen - held_out).se == pytest.approx(np.sqrt(2) * (seen.se or 0.0), rel=0.05)


def test_a_gap_to_one_transformation_has_no_two_way_interval() -> None:
    score = (np.random.default_rng(0).random((3, 50)) < 0.6).astype(np.float32)
    judged = Judged(resample(score, 200, 0), None)
    gap = judged.estimate(uniform_over([0, 1], 3), uniform_over([2], 3), general=True)
    assert gap is not None
    assert gap["value"] == pytest.approx(score[:2].mean() - score[2].mean())
    assert gap["one_way"] is not None
    assert gap.keys().isdisjoint(("low", "high", "two_way"))


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


def test_equal_probes_are_equivalent_on_enough_photographs() -> None:
    for photographs, equivalent in ((290, False), (310, True)):
        made = resample(np.zeros((1, photographs), np.float32), 2000, 0, bounds=DIFFERENCE)
        low, high = made.mean(np.ones(1)).ci90 or (-1.0, 1.0)
        assert (-MARGIN < low <= high < MARGIN) == equivalent


CLASSES = ("a", "a", "b", "b", "b", "c")


def test_nested_replicates_draw_one_less_within_each_class() -> None:
    accuracy = np.array([0.1, 0.3, 0.5, 0.6, 1.0, 0.7])
    made = Resampled(accuracy, np.tile(accuracy, (20_000, 1)), seed=0)
    weight = balanced_over(range(6), CLASSES, ["a", "b", "c"])
    found = made.nested(weight, CLASSES)
    assert found.value == pytest.approx((0.2 + 0.7 + 0.7) / 3)
    of_class = [np.var(own, ddof=1) / len(own) for own in ([0.1, 0.3], [0.5, 0.6, 1.0])]
    assert found.se == pytest.approx(np.sqrt(sum(of_class)) / 3, rel=0.02)  # c has one, which stays
    assert found.replicates_R.mean() == pytest.approx(found.value, abs=2e-3)
    assert found.units == 1 + (2 - 1) + (3 - 1)
    alone = balanced_over([0, 2, 5], CLASSES, ["a", "b", "c"])
    assert made.nested(alone, CLASSES).ci95 is None


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


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    score = np.random.default_rng(2).random((2, 30)).astype(np.float32)
    whole = resample(score, 120, 0)
    assert np.array_equal(resample(score, 120, 0).replicates_RT, whole.replicates_RT)  # draws are kept
    monkeypatch.setattr("substyle.engine.probes.resampling.KEPT_DRAWS", 30 * 120 - 1)
    assert np.array_equal(resample(score, 120, 0).replicates_RT, whole.replicates_RT)
    monkeypatch.setattr("substyle.engine.probes.resampling._DRAWS_AT_ONCE", 30 * 7)
    np.testing.assert_allclose(resample(score, 120, 0).replicates_RT, whole.replicates_RT, rtol=1e-6)


def test_nothing_to_score() -> None:
    score = np.full((2, 10), np.nan, np.float32)
    score[0] = 1.0
    resampled = resample(score, 100, 0)
    assert resampled.one(1).number is None
    assert resampled.one(1).ci95 is None
    assert resampled.mean(np.ones(2)).number == 1.0
    assert resampled.mean(np.array([0.0, 1.0])).number is None


def test_weights() -> None:
    assert uniform_over([0, 2], 4).tolist() == [1.0, 0.0, 1.0, 0.0]
    kind = ("identity", "blur", "blur", "noise", "noise")
    assert balanced_over([1, 2, 3], kind, ("blur", "noise")).tolist() == [0.0, 0.5, 0.5, 1.0, 0.0]
    assert balanced_over([1, 2, 3], kind, ("blur",)).tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_test_embeddings_that_are_not_finite_are_refused(
    make_table: Callable[..., EmbeddingTable], quick: Callable[..., ProbeConfig], value: float
) -> None:
    """Their logits have no largest one, but argmax would name a class."""
    table = make_table()
    table.x_TND[1, table.rows(TEST)[3], 0] = value
    with pytest.raises(SubstyleError, match="embeddings of synthetic contain NaN or infinite values"):
        run_probes(table, quick(tasks=("transformation",), heads=("linear",)), out_dir=None, quiet=True)


def test_a_probe_that_has_diverged_is_not_scored(
    make_table: Callable[..., EmbeddingTable], quick: Callable[..., ProbeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "substyle.engine.probes.evaluate.forward",
        lambda heads, x_BD: torch.full((len(heads), 8, len(x_BD)), torch.nan),
    )
    with pytest.raises(SubstyleError, match=r"synthetic \(transformation\) has diverged"):
        run_probes(make_table(), quick(tasks=("transformation",), heads=("linear",)), out_dir=None, quiet=True)


def test_differences_of_accuracies_stay_between_minus_one_and_one() -> None:
    good, bad = (
        resample(np.array([right, right]), 500, 0).mean(np.ones(2)) for right in ([1.0, 1, 1, 0], [0.0, 0, 0, 1])
    )
    found, turned = (good - bad).ci95, (bad - good).ci95
    assert found is not None
    assert turned is not None
    assert found[1] == -turned[0] == 1.0
    assert found[0] == -turned[1] < 0.5
    wide = BootstrapResult(0.0, np.linspace(-9, 9, 500), 5)  # no difference of accuracies
    assert (wide.ci95 or [0])[0] < -9
