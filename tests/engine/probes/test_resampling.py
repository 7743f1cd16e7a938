from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.conftest import slow_after

from substyle.engine.probes.resampling import (
    Resampled,
    StudentsT,
    balanced_over,
    resample,
    uniform_over,
)

SEVERITIES = ("fog", "fog", "snow", "jpeg", "jpeg", "jpeg")


CLASSES = ("a", "a", "b", "b", "b", "c")


def test_replicates_equal_a_loop_over_resamples() -> None:
    """Vectorised resampling compared with one resample at a time from the same generator."""
    rng = np.random.default_rng(3)
    score = rng.random((3, 20)).astype(np.float32)
    score[2, 5:9] = np.nan
    resampled = resample(score, 150, 7)
    draws = np.random.Generator(np.random.PCG64([7, 20, 0x626F6F74])).integers(20, size=(150, 20))
    expected = np.stack([np.nanmean(score[:, images], axis=1) for images in draws])
    np.testing.assert_allclose(resampled.replicates_RT, expected, rtol=1e-5)


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


def test_groups_are_drawn_whole() -> None:
    """Ten grouped copies of every image are resampled like one; singleton groups like no groups."""
    score = (np.random.default_rng(9).random((3, 40)) < 0.4).astype(np.float32)
    score[1, :7] = np.nan
    alone = resample(score, 300, 5)
    copies = resample(np.tile(score, 10), 300, 5, np.tile(np.arange(40) + 100, 10))
    np.testing.assert_allclose(copies.replicates_RT, alone.replicates_RT, rtol=1e-6)
    np.testing.assert_array_equal(resample(score, 300, 5, np.arange(40)).replicates_RT, alone.replicates_RT)


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


def test_two_way_differences_are_paired_and_one_transformation_gives_no_interval() -> None:
    score = np.random.default_rng(12).random((8, 50)).astype(np.float32)
    a, b = resample(score, 400, 2).two_way(np.ones(8)), resample(score * 0.5 + 0.25, 400, 2).two_way(np.ones(8))
    np.testing.assert_allclose((a - b).replicates_R, 0.5 * a.replicates_R - 0.25, atol=1e-6)
    assert resample(score, 400, 2).two_way(uniform_over([3], 8)).ci95 is None


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


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    score = np.random.default_rng(2).random((2, 30)).astype(np.float32)
    whole = resample(score, 120, 0)
    assert np.array_equal(resample(score, 120, 0).replicates_RT, whole.replicates_RT)  # draws are kept
    monkeypatch.setattr("substyle.engine.probes.resampling.KEPT_DRAWS", 30 * 120 - 1)
    assert np.array_equal(resample(score, 120, 0).replicates_RT, whole.replicates_RT)
    monkeypatch.setattr("substyle.engine.probes.resampling._DRAWS_AT_ONCE", 30 * 7)
    np.testing.assert_allclose(resample(score, 120, 0).replicates_RT, whole.replicates_RT, rtol=1e-6)
