"""Rank correlations of sensitivity and robustness, compared with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from substyle.engine.analysis.robustness import Replicates, rank_correlations, robustness
from substyle.engine.extensions.claims.claims import FEWEST_CORRELATED
from substyle.engine.probes.resampling import BootstrapResult


def test_rank_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x_RK, y_RK = rng.integers(0, 6, size=(2, 20, 9)).astype(float)  # with ties
    rho_R, tau_R = rank_correlations(x_RK, y_RK)
    for r in range(20):
        assert rho_R[r] == pytest.approx(stats.spearmanr(x_RK[r], y_RK[r]).statistic)
        assert tau_R[r] == pytest.approx(stats.kendalltau(x_RK[r], y_RK[r]).statistic)
    assert np.isnan(rank_correlations(np.ones((1, 4)), np.arange(4.0)[None])).all()


def points(count: int, noise: float = 0.01) -> dict[str, Replicates]:
    rng = np.random.default_rng(1)

    def estimate(value: float) -> BootstrapResult:
        return BootstrapResult(value, value + noise * rng.normal(size=300))

    order = rng.permutation(count)
    return {
        f"net{k}": Replicates(
            estimate(0.1 * k), {"night": estimate(0.1 * k), "sketches": estimate(0.05 * float(order[k]))}
        )
        for k in range(count)
    }


def test_few_backbones_have_no_correlation_but_their_numbers() -> None:
    (*_, row) = robustness(points(FEWEST_CORRELATED - 1))
    assert row["spearman"] is row["kendall"] is None
    assert len(row["backbones"]) == FEWEST_CORRELATED - 1
    assert robustness({}) == []
