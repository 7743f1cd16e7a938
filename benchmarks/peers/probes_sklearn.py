"""One linear probe by scikit-learn's LogisticRegression (L-BFGS over all training rows)."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.peers.probes_data import IMAGES, Problem


@dataclass(frozen=True)
class Fit:
    """One fit: accuracy on the test rows, iterations taken, training rows, time."""

    accuracy: float
    iterations: int
    rows: int
    seconds: float


def fit(problem: Problem, *, rows: int, iterations: int, strength: float = 0.01) -> Fit:
    """Fit at most ``rows`` training rows in at most ``iterations``; ``strength`` is C, the inverse of the penalty."""
    t, n = problem.task.rows(problem.task.train_T, problem.task.train_N)
    pick = np.random.default_rng(0).permutation(t * IMAGES + n)[:rows]
    x, y = problem.x_RD.numpy(), problem.y_R.numpy()
    model = LogisticRegression(C=strength, max_iter=iterations)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations are limited on purpose
        model.fit(x[pick], y[pick])
    seconds = time.perf_counter() - began
    test = problem.test_R.numpy()
    return Fit(float((model.predict(x[test]) == y[test]).mean()), int(model.n_iter_[0]), len(pick), seconds)
