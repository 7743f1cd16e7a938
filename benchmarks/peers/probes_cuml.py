"""Linear probes by cuML's LogisticRegression, fitted in turn on a GPU (L-BFGS over all training rows)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray


def missing() -> str:
    """Return why cuML cannot run, or "" if it can."""
    if not torch.cuda.is_available():
        return "no GPU"
    return "" if find_spec("cuml") else "cuml is not installed"


def fit(
    x_RD: torch.Tensor, y_R: torch.Tensor, Cs: Sequence[float], *, tolerance: float, iterations: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (K, C, D) and intercepts (K, C) fitted to rows on the GPU."""
    cuml = import_module("cuml")
    found = []
    with cuml.using_output_type("numpy"):
        for C in Cs:
            model = cuml.LogisticRegression(C=C, tol=tolerance, max_iter=iterations, linesearch_max_iter=100)
            model.fit(x_RD, y_R)
            found.append((np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)))
    weights, biases = zip(*found, strict=True)
    return np.stack(weights), np.stack(biases)
