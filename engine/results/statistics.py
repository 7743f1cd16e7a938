"""What results and their report compute alike."""

from __future__ import annotations

import math

from scipy.special import betaincinv

MARGIN = 0.01  # of accuracy, within which two probes are equivalent
FEWEST_DECIDED = 6  # backbones of a verdict on a rank correlation
FEWEST_CORRELATED = 4  # backbones of a rank correlation: of three, one order in six is perfect


def binomial_interval(count: int, of: int) -> tuple[float, float]:
    """Exact 95 % interval of a fraction, ``count`` of ``of`` > 0 independent trials (Clopper and Pearson, 1934)."""
    low = float(betaincinv(count, of - count + 1, 0.025)) if count else 0.0
    return low, float(betaincinv(count + 1, of - count, 0.975)) if count < of else 1.0


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
