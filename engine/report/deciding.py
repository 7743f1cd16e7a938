"""What would decide a difference that is not clear: more photographs, transformations, generators or backbones.

Estimates assume that the difference and all variances stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from scipy.special import stdtrit

from substyle.engine.results.statistics import correlation_interval

_MOST = 1000  # generators, backbones, or times as many photographs and transformations


Judged = tuple[float, Sequence[float] | None, float]  # difference, interval, half its width over photographs alone
K = TypeVar("K")


def half_width(value: float, ends: Sequence[float] | None) -> float:
    """The half of an interval on the side of zero; 0 without one."""
    return 0.0 if ends is None else max(value - ends[0] if value > 0 else ends[1] - value, 1e-12)


def least_clear(pairs: Mapping[K, Judged]) -> K | None:
    """The difference that is smallest beside its interval, of those whose interval has 0; None without any."""
    unclear = {key: each for key, each in pairs.items() if each[1] is not None and each[1][0] <= 0 <= each[1][1]}
    return min(unclear, key=lambda key: abs(unclear[key][0]) / half_width(*unclear[key][:2]), default=None)


def disagreeing(pairs: Mapping[str, Judged]) -> Iterator[str]:
    """That some differences are clearly above 0, and others below; nothing otherwise."""
    above = [name for name, (_, ends, _) in pairs.items() if ends and ends[0] > 0]
    below = [name for name, (_, ends, _) in pairs.items() if ends and ends[1] < 0]
    if above and below:
        yield f"pairs disagree at 95 %: {above[0]} is above 0, {below[0]} below"


def to_decide(pairs: Mapping[str, Judged], units: Mapping[str, int]) -> Iterator[str]:
    """What would decide the difference that is least clear; nothing if all are clear.

    Args:
        units: numbers of photographs and of transformations, by what they are called.
    """
    if (name := least_clear(pairs)) is not None:
        value, ends, photographs = pairs[name]
        others = math.sqrt(max(half_width(value, ends) ** 2 - photographs**2, 0.0))
        needed = more_units(value, dict(zip(units, (photographs, others), strict=True)), units)
        yield f"to decide {name}: {needed}"


def generators_needed(difference: float, own: float, others: float, count: int, level: float) -> int | None:
    """About how many generators would make a difference significant.

    Args:
        own: standard error over generators, of which there are ``count``.
        others: standard error over photographs and training.
        level: two-sided level of significance.

    Returns:
        None if none of up to 1,000 would.
    """
    for more in range(count, _MOST):
        se = math.hypot(own * math.sqrt(count / more), others)
        if stdtrit(more - 1, 1 - level / 2) * se < abs(difference):
            return more
    return None


def more_generators(difference: float, own: float, others: float, count: int, level: float) -> str:
    """`generators_needed` in words, such as ``about 5 more generators``."""
    if (needed := generators_needed(difference, own, others, count, level)) is not None:
        more = max(needed - count, 1)
        return f"about {more} more generator{'s' * (more > 1)}"
    if generators_needed(difference, own, 0.0, count, level) is not None:
        return "more photographs, to train on and to test, and more generators"
    return "nothing within reach: the difference is too small"


def more_units(difference: float, halves: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """What would move an interval off zero.

    Args:
        halves: by name of what was resampled, the half of the interval that is due to it, such as
            ``{"test photographs": 0.02, "transformations": 0.03}``.
        counts: number of each. The first is preferred, if more of it alone would do.

    Returns:
        such as ``about 40 more transformations, and no number of test photographs alone``.
    """
    size = abs(difference)
    whole = sum(half**2 for half in halves.values()) / size**2 if size > 0 else math.inf
    tried: list[str] = []
    for name, half in halves.items():
        others = math.hypot(*(each for other, each in halves.items() if other != name))
        times = half**2 / (size**2 - others**2) if size > others else math.inf
        if times <= _MOST:
            alone = f", and no number of {' or '.join(tried)} alone" if tried else ""
            return f"about {_more(counts[name], times):,} more {name}{alone}"
        tried.append(name)
    if whole > _MOST:
        return "nothing within reach: the difference is too small"
    return f"about {max(whole, 1.1):.1f} times as many {' and as many '.join(halves)}"


def _more(count: int, times: float) -> int:
    """Further units for ``times`` as many, rounded up to two digits."""
    more = max(count * (times - 1), 1.0)
    step = 10 ** max(math.floor(math.log10(more)) - 1, 0)
    return int(math.ceil(more / step) * step)


def equivalence_needs(difference: float, half: float, margin: float, count: int, name: str) -> str:
    """What would move a 90 % interval of half width ``half``, over ``count`` units, into ± ``margin``."""
    if abs(difference) >= margin:
        return "nothing: the difference is not within the margin"
    if (times := (half / (margin - abs(difference))) ** 2) > _MOST:
        return "nothing within reach: the difference is too close to the margin"
    return f"about {_more(count, times):,} more {name}"


def backbones_needed(correlation: float, strong: float, count: int) -> int | None:
    """About how many backbones would put a rank correlation above 0 or below ``strong``; None for more than 1,000."""
    for more in range(max(count, 4), _MOST):
        low, high = correlation_interval(correlation, more)
        if low > 0 or high < strong:
            return more
    return None
