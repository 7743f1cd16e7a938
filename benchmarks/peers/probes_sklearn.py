"""Linear probes by scikit-learn's LogisticRegression, fitted in turn (L-BFGS over all training rows)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """Weights (K, C, D), intercepts (K, C) and iterations of K fits."""

    weight_KCD: F64
    bias_KC: F64
    iterations: list[int]


def fit(
    x_RD: NDArray[np.floating],
    y_R: NDArray[np.int64],
    Cs: Sequence[float],
    weight_KR: Sequence[F64] | None = None,
    *,
    tolerance: float,
    iterations: int,
) -> Fitted:
    """Fit one probe per C, without its rows of zero weight."""
    found = []
    for k, C in enumerate(Cs):
        own = slice(None) if weight_KR is None else np.flatnonzero(weight_KR[k])
        weight_R = None if weight_KR is None else weight_KR[k][own]
        model = LogisticRegression(C=C, tol=tolerance, max_iter=iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the final gradient is reported instead
            found.append(model.fit(x_RD[own], y_R[own], weight_R))
    return Fitted(
        np.stack([model.coef_ for model in found]).astype(np.float64),
        np.stack([model.intercept_ for model in found]).astype(np.float64),
        [int(model.n_iter_[0]) for model in found],
    )
