"""Batched L-BFGS for K linear heads, with individual step sizes; converged heads are removed.

The objective is that of `objective`. In terms of scikit-learn's LogisticRegression, strength = 1 / (C * rows). L-BFGS
(Liu & Nocedal 1989) is preconditioned; see `preconditioner`.

Shapes: K heads, C classes, D embedding width, P = C * (D + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.objective import Objective, StoredObjective
from substyle.engine.probes.preconditioner import CovarianceBasis, CovarianceMetric
from substyle.engine.probes.tasks import F64, I64, Advance
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels import dispatch
from substyle.kernels.probe_heads import Heads

MEMORY = 20  # L-BFGS history size
TIGHTER = 3.0
_DECREASE = 1e-4  # Armijo's condition: required decrease as a fraction of the linear prediction
_SHRINK = 0.3  # step reduction factor
_SMALLEST = 1e-5  # smallest step; rounding dominates below
# Passes without a smaller gradient before a head is stopped, and before it goes on in float64: near the minimum the
# loss changes by less than float32 resolves, and steps are accepted or shortened by chance.
_STALE, _STALE_SINGLE = 300, 60


@dataclass(frozen=True)
class Fit:
    """K linear heads and their certificates.

    Attributes:
        heads: the heads.
        gradient_K: largest absolute value of the gradient of the objective's logarithm, per unit of a standardised
            feature.
        passes_K: passes over the rows.
        tolerance_K: tolerances of the gradients.
    """

    heads: Heads
    gradient_K: F64
    passes_K: I64
    tolerance_K: F64

    def only(self, k: int) -> Fit:
        """Select head k."""
        own = slice(k, k + 1)
        return Fit(self.heads.select([k]), self.gradient_K[own], self.passes_K[own], self.tolerance_K[own])

    @property
    def converged_K(self) -> NDArray[np.bool_]:
        """Whether each gradient is within the tolerance."""
        return np.asarray(self.gradient_K <= self.tolerance_K)

    @property
    def tighter_K(self) -> F64:
        """Tolerances of fits that start at these heads and must differ from them."""
        return np.minimum(self.gradient_K, self.tolerance_K) / TIGHTER


def fit(
    rows: TrainingRows,
    strength_K: Sequence[float] | F64,
    *,
    tolerance: float | F64,
    most: int,
    start: Heads | None = None,
    basis: CovarianceBasis | None = None,
    advance: Advance = lambda count: None,
) -> Fit:
    """Fit heads in float32, and in float64 where rounding hides the descent.

    Where `StoredObjective` serves the rows, it comes first.

    Args:
        tolerance: largest gradient of a converged head relative to its objective, or that of each head.
        most: maximum passes over the rows.
        start: initial heads; default zeros.
        basis: precomputed basis of these rows.
    """
    features, count = rows.features, len(strength_K)
    basis, classes = basis or CovarianceBasis.of(rows), len(rows.task.labels)
    metric = CovarianceMetric.of(basis, classes, np.asarray(strength_K, np.float64))
    shape = (count, classes, features.width)
    weight = torch.zeros(shape, device=features.device) if start is None else start.w1.clone()
    bias = torch.zeros(shape[:2], device=features.device) if start is None else start.b1.clone()
    passes_K = np.zeros(count, np.int64)
    gradient_K, tolerance_K = np.full(count, np.inf), np.broadcast_to(np.asarray(tolerance, np.float64), count)
    stages = [(Objective, features.full()), (Objective, features.full(torch.float64))]
    if StoredObjective.serves(rows):
        stages.insert(0, (StoredObjective, features.full()))
    for kind, own in stages:
        if own.dtype == torch.float64:
            if (gradient_K <= tolerance_K).all() or passes_K.max() >= most:
                break
            metric, weight, bias = metric.double(), weight.double(), bias.double()
        objective = kind(rows, own, metric)
        with dispatch.threads(dispatch.threads_for(len(rows.t_R) * weight.numel(), features.device)):
            search = _Search(objective, weight, bias, tolerance_K, most - int(passes_K.max()), advance)
            search.run()
        weight, bias, gradient_K = search.weight, search.bias, search.gradient_K
        passes_K += search.passes_K
    return Fit(Heads(*(dispatch.copy(p, torch.float32) for p in (weight, bias))), gradient_K, passes_K, tolerance_K)


class _Search:
    """L-BFGS of all heads. Each pass tries one step per head and accepts it or shortens the step.

    Attributes:
        weight, bias: weights (K, C, D) and intercepts (K, C), found when `run` has returned.
        alive: numbers of the heads that have neither converged nor been stopped; the objective's metric, coordinates
            and all else are theirs.
        u, d, loss: their coordinates, the gradient there, and the loss.
        way, step: where the next trial goes, and how far.
        least, stale: the smallest gradient, and passes since then.
    """

    def __init__(
        self, objective: Objective, weight: torch.Tensor, bias: torch.Tensor, goal_K: F64, most: int, advance: Advance
    ) -> None:
        self.objective, self.most, self.advance = objective, most, advance
        self.goal_K = torch.from_numpy(goal_K.copy()).to(weight.device)
        self.weight, self.bias = weight.clone(), bias.clone()
        count = len(weight)
        self.passes_K = np.zeros(count, np.int64)
        self.alive, self.passes = torch.arange(count, device=weight.device), 0
        self.rounding = torch.finfo(weight.dtype).eps
        self.patience = _STALE if weight.dtype == torch.float64 else _STALE_SINGLE
        self.u = self.objective.metric.into(weight, bias)
        self.step, self.pairs = self.u.new_ones(count), _Pairs(self.u)
        self.loss, self.d, largest_K = self._pass(self.u)
        self.way = -self.d
        self.least, self.stale = torch.full_like(largest_K, torch.inf), torch.zeros_like(largest_K)
        self.gradient_K = largest_K.double().cpu().numpy()
        self._leave(largest_K <= self.goal_K)

    def run(self) -> None:
        """Run the search."""
        while len(self.alive) and self.passes < self.most:
            trial = self.u + self.step[:, None] * self.way
            loss, d, largest_K = self._pass(trial)
            slope = (self.d * self.way).sum(1).double()
            allowed = self.loss + _DECREASE * self.step * slope + self.rounding * self.loss.abs()
            # the objective is convex: the slope at the trial bounds the decrease where rounding hides it
            good = (loss <= allowed) | ((d * self.way).sum(1) <= _DECREASE * slope)
            self.pairs.add(good, trial - self.u, d - self.d)
            self.u[good], self.d[good], self.loss[good] = trial[good], d[good], loss[good]
            self.step = torch.where(good, 1.0, self.step * _SHRINK)
            self.way = torch.where(good[:, None], self.pairs.direction(self.d), self.way)
            self.gradient_K[self.alive[good].cpu().numpy()] = largest_K[good].double().cpu().numpy()
            better = largest_K < 0.9 * self.least
            self.least = torch.where(better, largest_K, self.least)
            self.stale = torch.where(better, 0.0, self.stale + 1)
            stuck = (self.step < _SMALLEST) | (self.stale >= self.patience)
            self._leave(good & (largest_K <= self.goal_K[self.alive]) | stuck)
        self._leave(torch.ones_like(self.alive, dtype=torch.bool))

    def _pass(self, u_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.passes += 1
        self.advance(1)
        return self.objective(u_KP, self.alive)

    def _leave(self, done_K: torch.Tensor) -> None:
        """Take heads out."""
        if not bool(done_K.any()):
            return
        gone, kept = self.alive[done_K], ~done_K
        weight, bias = self.objective.metric.only(done_K).out(self.u[done_K])
        self.weight[gone], self.bias[gone] = weight, bias
        self.passes_K[gone.cpu().numpy()] = self.passes
        self.pairs.keep(kept)
        self.objective.metric = self.objective.metric.only(kept)
        self.alive, self.u, self.d, self.way = self.alive[kept], self.u[kept], self.d[kept], self.way[kept]
        self.loss, self.step = self.loss[kept], self.step[kept]
        self.least, self.stale = self.least[kept], self.stale[kept]


class _Pairs:
    """L-BFGS history of each head; missing pairs are zeros, which have no effect."""

    def __init__(self, u_KP: torch.Tensor) -> None:
        self.s = u_KP.new_zeros(MEMORY, *u_KP.shape)
        self.y = torch.zeros_like(self.s)
        self.rho = u_KP.new_zeros(MEMORY, len(u_KP))
        self.first = u_KP.new_ones(len(u_KP))
        self.newest = self.count = 0

    def add(self, good_K: torch.Tensor, s_KP: torch.Tensor, y_KP: torch.Tensor) -> None:
        """Add a pair for each head whose step was accepted with positive curvature, replacing the oldest pair."""
        sy_K, yy_K = (s_KP * y_KP).sum(1), y_KP.square().sum(1)
        own_K = good_K & (sy_K > 1e-10 * yy_K)
        self.newest = (self.newest - 1) % MEMORY
        self.count = min(self.count + 1, MEMORY)
        self.s[self.newest], self.y[self.newest] = s_KP, y_KP
        self.rho[self.newest] = torch.where(own_K, 1.0 / sy_K, 0.0)
        self.first = torch.where(own_K, sy_K / yy_K, self.first)

    def direction(self, d_KP: torch.Tensor) -> torch.Tensor:
        """Search direction by the two-loop recursion."""
        q_KP, alphas = d_KP.clone(), []
        order = [(self.newest + i) % MEMORY for i in range(self.count)]
        for i in order:
            alphas.append(self.rho[i] * torch.linalg.vecdot(self.s[i], q_KP))
            q_KP.addcmul_(self.y[i], alphas[-1][:, None], value=-1.0)
        q_KP *= self.first[:, None]
        for i, alpha_K in zip(reversed(order), reversed(alphas), strict=True):
            beta_K = self.rho[i] * torch.linalg.vecdot(self.y[i], q_KP)
            q_KP.addcmul_(self.s[i], (alpha_K - beta_K)[:, None])
        return q_KP.neg_()

    def keep(self, kept_K: torch.Tensor) -> None:
        """Keep the selected heads."""
        self.s, self.y, self.rho = self.s[:, kept_K], self.y[:, kept_K], self.rho[:, kept_K]
        self.first = self.first[kept_K]
