"""Means of scores over resampled images and transformations, their intervals and tests.

Scores are (T, N): 1 right, 0 wrong, a fraction if seeds disagree, NaN if not scored. All reported numbers are weighted
means of the T accuracies, so one set of resamples serves all, and differences over the same images are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from substyle.engine.probes.tasks import F64, I64
from substyle.engine.results.model import entry_of
from substyle.engine.results.statistics import MARGIN

Bounds = tuple[float, float]
ACCURACY: Bounds = (0.0, 1.0)
DIFFERENCE: Bounds = (-1.0, 1.0)  # of two accuracies

# Of n images none of which disagree, the one-sided 95 % bound of their rate is 3 / n (Hanley and Lippman-Hand, "If
# nothing goes wrong, is everything all right?", JAMA 249, 1983); as a standard error, by the normal quantile.
_UNSEEN = 3 / 1.645
_ALIKE = 1e-9  # spread of replicates that are equal but for rounding
_DRAWS_AT_ONCE = 4_000_000  # maximum image draws in memory
KEPT_DRAWS = 1 << 28  # maximum bytes of multiplicities that are kept


@dataclass(frozen=True)
class Resampled:
    """T accuracies and their bootstrap replicates; NaN for transformations without scores.

    Attributes:
        value_T: (T,) accuracies.
        replicates_RT: (R, T) accuracies over R resamples of the images.
        units_T: (T,) number of resampled units with a score: images, or groups of them; None if unknown.
        bounds: least and greatest possible value, see `BootstrapResult`; None for numbers without bounds.
        apart_T: (T,) mean absolute score: of differences, how often two probes disagree; None if unknown.
        family_T: (T,) number of each one's transformation, of which severities are drawn together; None if they are
            different.
        unit: what the resampled units are, such as ``photograph``; empty if unknown.
    """

    value_T: F64
    replicates_RT: F64
    seed: int = 0
    units_T: I64 | None = None
    bounds: Bounds | None = None
    apart_T: F64 | None = None
    family_T: I64 | None = None
    unit: str = ""

    def mean(self, weight_T: F64) -> BootstrapResult:
        """Weighted mean of the accuracies that are not NaN."""
        used_T = (weight_T > 0) & np.isfinite(self.value_T)
        units, unseen = math.inf, 0.0
        if self.units_T is not None and used_T.any():
            units = float(self.units_T[used_T].max())
            share = (weight_T[used_T] / (self.units_T[used_T] + 2)).max() / weight_T[used_T].sum()
            unseen = _UNSEEN * float(share) if self.bounds is not None else 0.0
        return BootstrapResult(
            float(_weighted(self.value_T[None], weight_T)[0]),
            _weighted(self.replicates_RT, weight_T),
            *(units, unseen, self.bounds),
            apart=math.nan if self.apart_T is None else float(_weighted(self.apart_T[None], weight_T)[0]),
            unit=self.unit,
        )

    def two_way(self, weight_T: F64) -> BootstrapResult:
        """Weighted mean with a two-way bootstrap over images and transformations.

        Replicate r is ``sum_t m_rt w_t a_rt / sum_t m_rt w_t``: ``a_rt`` are accuracies over resampled images, ``m_rt``
        multinomial counts of the transformations with positive weight and an accuracy, the same for all severities of
        one. The counts depend on the seed and on which transformations these are: estimates over the same ones are
        paired, those over others independent.

        Args:
            weight_T: non-negative weights w, (T,).

        Returns:
            the value of :meth:`mean`; no replicates if fewer than two transformations have positive weight.

        Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007.
        """
        used = self._used(weight_T)
        mean, (count, place_U) = self.mean(weight_T), self._families(used)
        if count < 2:
            return replace(mean, replicates_R=np.empty(0))
        times_RF = self._rng(used).multinomial(count, np.full(count, 1 / count), size=len(self.replicates_RT))
        replicates_R = self._times(used, weight_T, times_RF[:, place_U].astype(np.float64))
        return replace(mean, replicates_R=replicates_R, units=min(mean.units, count), two_way=True, unit=self._both)

    def nested(self, weight_T: F64, kind_T: Sequence[str]) -> BootstrapResult:
        """`two_way` with transformations drawn within their kinds, which stay.

        Of n transformations of a class n - 1 are drawn, and count n / (n - 1) times: the variance of a mean is then
        unbiased, also in small classes. A single transformation stays.

        Source: Rao and Wu, "Resampling inference with complex survey data", JASA 83(401), 1988.
        """
        used = self._used(weight_T)
        mean, rng = self.mean(weight_T), self._rng(used)
        times_RU = np.ones((len(self.replicates_RT), len(used)))
        label_U = np.array([kind_T[t] for t in used])
        free = 0
        for own in (np.flatnonzero(label_U == label) for label in np.unique(label_U)):
            count, place = self._families(used[own])
            if count > 1:
                drawn = rng.multinomial(count - 1, np.full(count, 1 / count), size=len(times_RU))
                times_RU[:, own] = drawn[:, place] * (count / (count - 1))
                free += count - 1
        if free == 0:
            return replace(mean, replicates_R=np.empty(0))
        replicates_R = self._times(used, weight_T, times_RU)
        units = min(mean.units, free + 1)
        made = replace(mean, replicates_R=replicates_R, units=units, two_way=True, unit=self._both)
        # an `BootstrapResult` scales deviations for few units, which the draws have done
        return replace(made, replicates_R=made.value + (made.replicates_R - made.value) / made.few)

    @property
    def _both(self) -> str:
        return f"{self.unit} and transformation" if self.unit else ""

    def _used(self, weight_T: F64) -> I64:
        return np.flatnonzero((weight_T > 0) & np.isfinite(self.value_T))

    def _families(self, used: I64) -> tuple[int, I64]:
        """Number of different transformations, and which of them each is."""
        if self.family_T is None:
            return len(used), np.arange(len(used))
        numbers, place_U = np.unique(self.family_T[used], return_inverse=True)
        return len(numbers), place_U

    def _rng(self, used: I64) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, len(used), 0x70696765, *used.tolist()]))

    def _times(self, used: I64, weight_T: F64, times_RU: F64) -> F64:
        """Replicates of the mean with multiplicities of transformations."""
        return _weighted(self.replicates_RT[:, used], weight_T[used] * times_RU)

    def part(self, rows: slice) -> Resampled:
        """Select transformations."""
        return Resampled(
            *(self.value_T[rows], self.replicates_RT[:, rows], self.seed),
            units_T=None if self.units_T is None else self.units_T[rows],
            bounds=self.bounds,
            apart_T=None if self.apart_T is None else self.apart_T[rows],
            family_T=None if self.family_T is None else self.family_T[rows],
            unit=self.unit,
        )

    def one(self, t: int) -> BootstrapResult:
        """The accuracy on one transformation."""
        return self.mean(uniform_over([t], len(self.value_T)))


@dataclass(frozen=True)
class BootstrapResult:
    """A number and its bootstrap replicates (R,), of G resampled units.

    Few units do not show how rare ones would change a mean: all of 50 photographs may be right where one in 20 is
    wrong. So the interval of a mean that has bounds is that of a sample with one unit more, whose score is either bound
    with equal probability, and whose share of the mean is that of one of G + 1 units in a Bayesian bootstrap,
    Beta(1, G). For scores of 0 and 1 this is nearly the mid-p version of the exact binomial interval.

    Numbers without bounds, and differences over images and transformations, whose bounds are far away, have no unit
    more. A bootstrap of few units is too narrow, so their deviations from the value are scaled by ``sqrt(G / (G - 1))``
    and by the quantile of Student's t with G - 1 degrees of freedom over that of the normal distribution. To
    differences the variance of disagreements that were not seen is added, by the rule of three.

    Attributes:
        units: G, of images, groups or transformations.
        unseen: standard error of disagreements that were not seen.
        bounds: least and greatest possible value, `ACCURACY` or `DIFFERENCE`; None without bounds.
        two_way: whether transformations were drawn too.
        apart: of a difference, how often the two disagree; NaN if unknown.
        unit: what the resampled units are; empty if unknown.

    Sources: Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
    variable", Mathematical Methods of Statistics 14, 2005; Learned-Miller and Thomas, "A new confidence interval for
    the mean of a bounded random variable", 2019 (arXiv 1905.06208); Rubin, "The Bayesian bootstrap", Annals of
    Statistics 9(1), 1981; Lancaster, "Significance tests in discrete distributions", JASA 56, 1961 (mid-p).
    """

    value: float
    replicates_R: F64
    units: float = math.inf
    unseen: float = 0.0
    bounds: Bounds | None = None
    two_way: bool = False
    apart: float = math.nan
    unit: str = ""

    @staticmethod
    def of(array: F64) -> BootstrapResult:
        """The inverse of `array`."""
        value, units, unseen, two_way, low, high = array[:6].tolist()
        bounds = (low, high) if math.isfinite(low) else None
        return BootstrapResult(value, array[6:], units, unseen, bounds, bool(two_way))

    def array(self) -> F64:
        """All but `apart` and `unit`, for a file."""
        bounds = self.bounds or (-math.inf, math.inf)
        return np.concatenate([[self.value, self.units, self.unseen, self.two_way, *bounds], self.replicates_R])

    def __sub__(self, other: BootstrapResult) -> BootstrapResult:
        bounds = None
        if self.bounds is not None and other.bounds is not None:
            bounds = self.bounds[0] - other.bounds[1], self.bounds[1] - other.bounds[0]
        return BootstrapResult(
            *(self.value - other.value, self.replicates_R - other.replicates_R),
            *(min(self.units, other.units), max(self.unseen, other.unseen)),
            *(bounds, self.two_way or other.two_way),
            unit=self.unit,
        )

    @property
    def number(self) -> float | None:
        """The value, None if NaN."""
        return None if np.isnan(self.value) else self.value

    @property
    def ci95(self) -> list[float] | None:
        """The 95 % interval, None without value or replicates."""
        return self._interval(95.0)

    @property
    def ci90(self) -> list[float] | None:
        """The 90 % interval, for equivalence tests (two one-sided tests at 5 %), see `at_margin`.

        Each end has the unit more at its own bound, as the exact binomial interval has (Clopper and Pearson, 1934).
        """
        ends = self._interval(90.0, exact=True)
        return None if ends is None else [self.value + self.at_margin * (end - self.value) for end in ends]

    @property
    def at_margin(self) -> float:
        """Error of probes that differ by `MARGIN`, over that of this difference: they disagree at least as often.

        The variance is in proportion to disagreements, as in score tests (Tango, Statistics in Medicine 17, 1998).
        """
        return math.sqrt(MARGIN / self.apart) if 0 < self.apart < MARGIN else 1.0

    def entry(self, low: float = -math.inf, high: float = math.inf, **more: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Entry of results.json with this interval, within bounds, and ``more`` fields; None without a value."""
        return entry_of(self.value, self.within(low, high), self.units, self.unit, **more)

    @property
    def se(self) -> float | None:
        """Standard error, None without value or with fewer than two replicates."""
        finite = self._finite()
        if len(finite) < 2:
            return None
        spread, alike = float(finite.std(ddof=1)), bool(np.ptp(finite) < _ALIKE)
        if self.bounds is not None and alike and self.value in self.bounds:
            low, high = self._interval(95.0) or (0.0, 0.0)
            return (high - low) / (2 * self.quantile(95.0))
        return math.hypot(spread * self.few, self.unseen if alike or self._difference else 0.0)

    def quantile(self, per_cent: float) -> float:
        """Quantile of Student's t that bounds the middle ``per_cent``."""
        return float(stdtrit(max(self.units - 1, 1), 0.5 + per_cent / 200))

    @property
    def few(self) -> float:
        """Factor of deviations of a bootstrap of few units."""
        return math.sqrt(self.units / (self.units - 1)) if 1 < self.units < math.inf else 1.0

    @property
    def _difference(self) -> bool:
        return self.bounds is not None and self.bounds[0] < 0

    def _interval(self, per_cent: float, *, exact: bool = False) -> list[float] | None:
        finite_R = self._finite()
        if len(finite_R) == 0:
            return None
        tail = 50 - per_cent / 2
        if self.bounds is None or (self._difference and self.two_way):
            low, high = np.percentile(finite_R, [tail, 100 - tail]).tolist()
            student = self.quantile(per_cent)
            wider = self.few * student / NormalDist().inv_cdf(1 - tail / 100)
            deviations = self.value - low, high - self.value
            below, above = (math.hypot(wider * max(each, 0.0), student * self.unseen) for each in deviations)
            ends = np.array([self.value - below, self.value + above])
            return (ends if self.bounds is None else ends.clip(*self.bounds)).tolist()  # type: ignore[no-any-return]
        share_R = _share_of_one_more(len(finite_R), self.units)
        below_R, above_R = (finite_R + share_R * (bound - finite_R) for bound in self.bounds)
        if not exact:
            below_R = above_R = np.concatenate([below_R, above_R])
        return [float(np.percentile(below_R, tail)), float(np.percentile(above_R, 100 - tail))]

    def within(self, low: float, high: float) -> list[float] | None:
        """The 95 % interval of a number that is never below ``low`` or above ``high``."""
        return None if self.ci95 is None else [min(max(end, low), high) for end in self.ci95]

    def _finite(self) -> F64:
        finite: F64 = self.replicates_R[np.isfinite(self.replicates_R) & np.isfinite(self.value)]
        return finite if self.units >= 2 else finite[:0]  # resamples of one unit are equal


@lru_cache(64)
def _share_of_one_more(resamples: int, units: float) -> F64:
    """Beta(1, G) at evenly spaced probabilities, in an order that has nothing to do with that of the resamples. (R,)"""
    if units == math.inf:
        return np.zeros(resamples)
    probability_R = (np.random.default_rng(0).permutation(resamples) + 0.5) / resamples
    return np.asarray(1 - (1 - probability_R) ** (1 / units), np.float64)


@dataclass(frozen=True)
class StudentsT:
    """Student's t of a sum of independent errors that are each estimated from few units.

    A quantile is the mean of those of the parts, weighted by their variances. It errs on the side of too large, where
    that of Satterthwaite's degrees of freedom is too small if a part of few units happens to be.

    Attributes:
        variances: squared standard errors.
        freedoms: degrees of freedom of each.

    Source: Cochran, "Approximate significance levels of the Behrens-Fisher test", Biometrics 20(1), 1964.
    """

    variances: tuple[float, ...]
    freedoms: tuple[float, ...]

    @staticmethod
    def of(*parts: tuple[float, float]) -> StudentsT:
        """From standard errors and the numbers of units that they are computed from."""
        return StudentsT(tuple(se**2 for se, _ in parts), tuple(max(units - 1, 1) for _, units in parts))

    @property
    def se(self) -> float:
        """Standard error of the sum."""
        return math.sqrt(sum(self.variances))

    def half_width(self, per_cent: float) -> float:
        """Half the width of the interval with this coverage."""
        return self.se * self._quantile(0.5 - per_cent / 200) if self.se > 0 else 0.0

    def p(self, value: float) -> float:
        """Two-sided p value of a difference."""
        if self.se == 0:
            return 0.0 if value else 1.0
        ratio = abs(value) / self.se
        # the root is between the tails of the most and of the fewest degrees of freedom
        low, high = (float(stdtr(freedom, -ratio)) for freedom in (max(self.freedoms), min(self.freedoms)))
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self._quantile(middle) > ratio else (low, middle)
        return 2 * high

    def _quantile(self, tail: float) -> float:
        return float(np.average(-stdtrit(np.array(self.freedoms), tail), weights=self.variances))


def resample(
    score_TN: NDArray[np.floating],
    resamples: int,
    seed: int,
    group_N: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    bounds: Bounds | None = ACCURACY,
    families: Sequence[str] | None = None,
    unit: str = "",
) -> Resampled:
    """Accuracies of T transformations over N images and over R resamples of the images.

    Resamples depend only on (seed, N), so scores over the same images are paired.

    Args:
        score_TN: scores, NaN if not scored.
        resamples: R.
        group_N: groups of images to resample as a whole instead, such as the photograph that a crop is from. One
            group, or one image, has no intervals: its replicates are NaN.
        bounds: least and greatest possible score, None without: `ACCURACY`, or `DIFFERENCE` of two.
        families: T transformations without their severity; by default all are different.
        unit: what is resampled, such as ``photograph``.
    """
    counted = np.isfinite(score_TN)
    right_NT = np.where(counted, score_TN, 0.0).astype(np.float32).T
    count_NT = counted.astype(np.float32).T
    both = np.concatenate([right_NT, count_NT], axis=1)
    if group_N is not None:
        groups, place_N = np.unique(np.asarray(group_N, np.int64), return_inverse=True)
        by_group = np.zeros((len(groups), both.shape[1]), np.float32)
        np.add.at(by_group, place_N, both)
        both = by_group
    images, transformations = len(both), len(score_TN)
    parts = [times_BN.astype(np.float32) @ both for times_BN in multiplicities(resamples, seed, images)]
    sums = np.concatenate([both.sum(axis=0, keepdims=True), *parts]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        accuracies = sums[:, :transformations] / np.where(
            sums[:, transformations:] > 0, sums[:, transformations:], np.nan
        )
    units_T = np.count_nonzero(both[:, transformations:], axis=0)
    if images < 2:  # all resamples are equal
        accuracies[1:] = np.nan
    apart_T = None
    if bounds == DIFFERENCE:
        apart_T = np.asarray(np.abs(right_NT).sum(axis=0) / np.maximum(counted.sum(axis=1), 1))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(families or ()))}
    family_T = None if families is None else np.array([numbers[name] for name in families], np.int64)
    return Resampled(accuracies[0], accuracies[1:], seed, units_T, bounds, apart_T, family_T, unit)


def multiplicities(resamples: int, seed: int, images: int) -> Iterable[NDArray[np.uint8]]:
    """How often each resample has each image, in blocks (B, N) of resamples. They depend only on the arguments."""
    return (_kept_multiplicities if resamples * images <= KEPT_DRAWS else _multiplicities)(resamples, seed, images)


def _multiplicities(resamples: int, seed: int, images: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.Generator(np.random.PCG64([seed, images, 0x626F6F74]))
    at_once = max(1, _DRAWS_AT_ONCE // max(images, 1))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.uint8)


@lru_cache(1)
def _kept_multiplicities(resamples: int, seed: int, images: int) -> list[NDArray[np.uint8]]:
    """`_multiplicities`, which take five times as long as the sums; all scores over the same images have the same."""
    return list(_multiplicities(resamples, seed, images))


def uniform_over(transformations: Sequence[int] | NDArray[np.int64], count: int) -> F64:
    """Weights of a uniform mean over some of ``count`` transformations. Shape: (T,)."""
    weight = np.zeros(count)
    weight[np.asarray(transformations, np.int64)] = 1.0
    return weight


def balanced_over(transformations: Sequence[int], kind: Sequence[str], classes: Sequence[str]) -> F64:
    """Weights of a mean over kinds of the mean over their given transformations. Shape: (T,)."""
    weight = np.zeros(len(kind))
    for name in classes:
        members = [t for t in transformations if kind[t] == name]
        for t in members:
            weight[t] = 1.0 / len(members)
    return weight


def by_class(transformations: Sequence[int], kind: Sequence[str]) -> F64:
    """`balanced_over` kinds with at least two of the transformations. Shape: (T,)."""
    own = [kind[t] for t in transformations]
    return balanced_over(transformations, kind, sorted({name for name in own if own.count(name) > 1}))


def _weighted(accuracy_RT: F64, weight: F64) -> F64:
    """Weighted means over finite accuracies; weights are (T,) or (R, T)."""
    known = np.isfinite(accuracy_RT)
    total = (known * weight).sum(axis=1)
    right = (np.where(known, accuracy_RT, 0.0) * weight).sum(axis=1)
    mean: F64 = np.divide(right, total, out=np.full(len(total), np.nan), where=total > 0)
    return mean
