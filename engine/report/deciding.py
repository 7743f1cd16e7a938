"""What would decide a difference that is not clear: more photographs, transformations, generators or backbones.

Estimates assume that the difference and all variances stay as they are.
"""

from __future__ import annotations

import math

from scipy.special import stdtrit

_MOST = 1000  # generators, backbones, or times as many photographs and transformations


def generators_needed(difference: float, own: float, others: float, count: int, level: float) -> int | None:
    """About how many generators would make a difference significant.

    Args:
        own: standard error over generators, of which there are ``count``.
        others: standard error over photographs.
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
        return "more photographs and more generators"
    return "nothing within reach: the difference is too small"


def more_units(
    difference: float, half_transformations: float, half_photographs: float, transformations: int, photographs: int
) -> str:
    """What would move an interval off zero.

    Args:
        half_transformations: half of the interval that is due to the choice of transformations, of which there are
            ``transformations``; ``half_photographs`` likewise.

    Returns:
        such as ``about 40 more transformations, whatever the number of photographs``.
    """
    size, g, h = abs(difference), half_transformations, half_photographs
    if size > g:
        needed = _more(photographs, h**2 / (size**2 - g**2))
        return f"about {needed:,} more test photographs"
    whole = (g**2 + h**2) / size**2 if size > 0 else math.inf
    if whole > _MOST:
        return "nothing within reach: the difference is too small"
    if size > h:
        needed = _more(transformations, g**2 / (size**2 - h**2))
        return f"about {needed:,} more transformations, and no number of photographs alone"
    return f"about {max(whole, 1.1):.2g} times as many transformations and as many photographs"


def _more(count: int, times: float) -> int:
    """Further units for ``times`` as many, rounded up to two digits."""
    more = max(count * (times - 1), 1.0)
    step = 10 ** max(math.floor(math.log10(more)) - 1, 0)
    return int(math.ceil(more / step) * step)


def equivalence_needs(difference: float, half: float, margin: float, photographs: int) -> str:
    """What would move a 90 % interval over photographs, of half width ``half``, into ± ``margin``."""
    if abs(difference) >= margin:
        return "nothing: the difference is not within the margin"
    return f"about {_more(photographs, (half / (margin - abs(difference))) ** 2):,} more test photographs"


def correlation_interval(correlation: float, count: int) -> list[float]:
    """95 % interval of a rank correlation of ``count`` > 3 pairs.

    A correlation of 1 or -1 is taken halfway to the next one that ranks without ties can have.

    Source: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    Psychometrika 65, 2000: Fisher's z has the variance (1 + rho² / 2) / (count − 3).
    """
    most = 1 - 6 / (count**3 - count)
    rho = min(max(correlation, -most), most)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (count - 3))
    return [math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)]


def backbones_needed(correlation: float, strong: float, count: int) -> int | None:
    """About how many backbones would put a rank correlation above 0 or below ``strong``; None for more than 1,000."""
    for more in range(max(count, 4), _MOST):
        low, high = correlation_interval(correlation, more)
        if low > 0 or high < strong:
            return more
    return None
