"""Probes trained by other means: scikit-learn and cuML in turn, and in torch in turn or together as a ModuleDict."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from benchmarks.peers.probes_data import Outcome, Problem, accuracy, head

F64 = NDArray[np.float64]
Fitted = tuple[F64, F64, list[int]]  # weights (K, C, D), intercepts (K, C) and iterations of K fits


def by_sklearn(
    x_RD: NDArray[np.floating],
    y_R: NDArray[np.int64],
    Cs: Sequence[float],
    weight_KR: Sequence[F64] | None = None,
    *,
    tolerance: float,
    iterations: int,
) -> Fitted:
    """Fit one probe per C by L-BFGS over all training rows, without its rows of zero weight."""
    found = []
    for k, C in enumerate(Cs):
        own = slice(None) if weight_KR is None else np.flatnonzero(weight_KR[k])
        weight_R = None if weight_KR is None else weight_KR[k][own]
        model = LogisticRegression(C=C, tol=tolerance, max_iter=iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the final gradient is reported instead
            found.append(model.fit(x_RD[own], y_R[own], weight_R))
    return _stacked(found)


def cuml_is_missing() -> str:
    """Return why cuML cannot run, or "" if it can."""
    if not torch.cuda.is_available():
        return "no GPU"
    return "" if find_spec("cuml") else "cuml is not installed"


def by_cuml(x_RD: torch.Tensor, y_R: torch.Tensor, Cs: Sequence[float], *, tolerance: float, iterations: int) -> Fitted:
    cuml = import_module("cuml")
    with cuml.using_output_type("numpy"):
        made = (cuml.LogisticRegression(C=C, tol=tolerance, max_iter=iterations, linesearch_max_iter=100) for C in Cs)
        return _stacked([model.fit(x_RD, y_R) for model in made])


def _stacked(models: Sequence[LogisticRegression]) -> Fitted:
    weight_KCD, bias_KC = (
        np.stack([np.asarray(getattr(model, name), np.float64) for model in models]) for name in ("coef_", "intercept_")
    )
    return weight_KCD, bias_KC, [int(np.max(model.n_iter_)) for model in models]


def together(problem: Problem, hidden: int, settings: Sequence[tuple[float, float]], *, bf16: bool = False) -> Outcome:
    """Train one head per setting, losses summed, with one AdamW, as DINOv2 trains its grid of linear heads.

    With ``bf16``, the GEMMs of the forward and backward pass run in bfloat16.
    """
    began = time.perf_counter()
    torch.manual_seed(0)
    heads = torch.nn.ModuleDict({f"head{i}": head(hidden) for i in range(len(settings))})
    groups = [
        {"params": module.parameters(), "lr": lr, "weight_decay": decay}
        for module, (lr, decay) in zip(heads.values(), settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    for done, rows in enumerate(problem.batches):
        for group, (lr, _) in zip(optimizer.param_groups, settings, strict=True):
            group["lr"] = lr * problem.rate(done)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x, y = problem.x_RD[rows], problem.y_R[rows]
            loss = torch.stack([cross_entropy(module(x), y) for module in heads.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    modules = list(heads.values())
    validation = [accuracy(module, problem, problem.val_R) for module in modules]
    spent = time.perf_counter() - began
    return Outcome(validation, spent, lambda i: accuracy(modules[i], problem, problem.test_R))


def in_turn(problem: Problem, hidden: int, settings: Sequence[tuple[float, float]]) -> Outcome:
    """Train one head per setting, each with its own AdamW, as in most evaluation scripts."""
    each = [together(problem, hidden, [setting]) for setting in settings]
    validation = [own.validation[0] for own in each]
    return Outcome(validation, sum(own.seconds for own in each), lambda i: each[i].score(0))
