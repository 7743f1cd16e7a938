"""Batched L-BFGS for K linear heads, over all training rows, with individual step sizes.

Head k minimises ``sum_r weight_kr * cross_entropy(w x_r + b, target_r) + strength_k / 2 * |w|²``, with weights that sum
to 1 and an unpenalised intercept. In terms of scikit-learn's LogisticRegression, strength = 1 / (C * rows). All heads
share the matrix products of each pass over the rows; converged heads are removed.

L-BFGS (Liu & Nocedal 1989) is preconditioned by the curvature of the objective at w = 0, the features' covariance / C
plus the penalty (Böhning 1992), so that features of large variance do not slow down convergence.

Shapes: R rows, B rows of a block, K heads, C classes, D embedding width, T transformations, N images, P = C * (D + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.batches import Features
from substyle.engine.probes.loader import Drawn
from substyle.engine.probes.tasks import F64, I64, Advance, Task
from substyle.kernels import dispatch, split_products
from substyle.kernels.dispatch import upload
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import linear_gradients

MEMORY = 20  # L-BFGS history size
# Heads of few parameters keep more: it costs them little, and with weak penalties they need half of the passes. The
# second bound is for all heads together, which would take memory.
_LONG_MEMORY, _FEW, _FEW_IN_ALL = 60, 1 << 14, 1 << 20
COVARIANCE_ROWS = 65_536  # sample size for the preconditioner
_DECREASE = 1e-4  # Armijo's condition: required decrease as a fraction of the linear prediction
_SHRINK = 0.3  # step reduction factor
_SMALLEST = 1e-5  # smallest step; rounding dominates below
# Passes without a smaller gradient before a head is stopped, and before it goes on in float64: near the minimum the
# loss changes by less than float32 resolves, and steps are accepted or shortened by chance.
_STALE, _STALE_SINGLE = 300, 60
# Maximum bytes of float32 features, and maximum number of logits, of a block. On a GPU operations must take longer than
# their launches: by count, a pass over 37.5 million rows of width 768 has 15,000 launches, 60,000 with blocks of a CPU.
_ON_CPU, _ON_GPU = (64 << 20, 1 << 24), (256 << 20, 1 << 25)
_KEPT = 1 << 30  # maximum bytes of standardised features kept between passes
# Smallest fraction of training rows, between the first and the last one, for which whole slices of the table are read;
# other rows have weight 0. By count, gathering a row takes as long as two products with it.
DENSE = 0.5
# Maximum rows of a block: kernels have a program for every 32, and at most 65,535. Slices have whole pieces of a sum.
_MOST_ROWS, _PIECES = 1 << 20, (split_products.PIECE, 128)
_NOTHING = 1e-10  # eigenvalues of directions that rows do not have, relative to the largest
_FLAT = 1e-6  # lower bound of the covariance's eigenvalues, relative to the largest
_COARSE = 30.0  # the 16-bit phase ends at this multiple of the tolerance


@dataclass(frozen=True)
class TrainingRows:
    """Training rows and their weights for K heads.

    Attributes:
        variant_KT: weight of each transformation for each head; 0 excludes it.
        image_KN: weight of each image for each head; None for 1.
    """

    features: Features
    task: Task
    variant_KT: F64
    image_KN: F64 | None = None
    t_R: I64 = field(init=False)
    n_R: I64 = field(init=False)

    def __post_init__(self) -> None:
        seen_T = self.task.train_T[self.variant_KT[:, self.task.train_T].any(axis=0)]
        t_R, n_R = self.task.rows(seen_T, self.task.train_N)
        object.__setattr__(self, "t_R", t_R)
        object.__setattr__(self, "n_R", n_R)

    @cached_property
    def where_drawn(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``t_R``, ``n_R`` and ``task.answer`` on the device on which steps are drawn."""
        device = self.features.held.drawn_on
        return upload(self.t_R, device), upload(self.n_R, device), upload(self.task.answer, device)

    @cached_property
    def count_TN(self) -> NDArray[np.bool_]:
        """Whether each row of the table is a training row."""
        count_TN = np.zeros(self.task.distinct_TN.shape, np.bool_)
        count_TN[self.t_R, self.n_R] = True
        return count_TN

    @cached_property
    def span(self) -> slice:
        """Rows of the table (T * N, D) from the first training row to the last."""
        count_R = self.count_TN.ravel()
        return slice(int(count_R.argmax()), len(count_R) - int(count_R[::-1].argmax()))

    def shares(self) -> tuple[F64, F64 | None]:
        """``variant_KT`` normalised so that each head's row weights sum to 1, and ``image_KN``."""
        if self.image_KN is None:
            rows_KT = np.broadcast_to(self.count_TN.sum(axis=1), self.variant_KT.shape)
        else:
            rows_KT = self.image_KN @ self.count_TN.T
        return self.variant_KT / (self.variant_KT * rows_KT).sum(axis=1, keepdims=True), self.image_KN


@dataclass(frozen=True)
class Fit:
    """K linear heads and their certificates.

    Attributes:
        heads: the heads.
        gradient_K: largest absolute value of the objective's gradient, in nats per unit of a standardised feature.
        passes_K: passes over the rows.
        tolerance: tolerance of the gradient.
    """

    heads: Heads
    gradient_K: F64
    passes_K: I64
    tolerance: float

    def only(self, k: int) -> Fit:
        """Select head k."""
        return Fit(self.heads.select([k]), self.gradient_K[k : k + 1], self.passes_K[k : k + 1], self.tolerance)

    @property
    def converged_K(self) -> NDArray[np.bool_]:
        """Whether each gradient is within the tolerance."""
        return np.asarray(self.gradient_K <= self.tolerance)


def fit(
    rows: TrainingRows,
    strength_K: Sequence[float] | F64,
    *,
    tolerance: float,
    most: int,
    start: Heads | None = None,
    basis: CovarianceBasis | None = None,
    advance: Advance = lambda count: None,
) -> Fit:
    """Fit heads, first in the dtype of the features, then in float32, and in float64 where rounding hides the descent.

    If `_StoredObjective` serves the rows, it takes the place of the first.

    Args:
        tolerance: largest absolute gradient of a converged head.
        most: maximum passes over the rows.
        start: initial heads; default zeros.
        basis: precomputed basis of these rows.
    """
    features, count = rows.features, len(strength_K)
    metric = _Metric.of(basis or CovarianceBasis.of(rows), len(rows.task.labels), np.asarray(strength_K, np.float64))
    shape = (count, len(rows.task.labels), features.width)
    weight = torch.zeros(shape, device=features.device) if start is None else start.w1.clone()
    bias = torch.zeros(shape[:2], device=features.device) if start is None else start.b1.clone()
    passes_K = np.zeros(count, np.int64)
    gradient_K = np.full(count, np.inf)
    stages = [(_Objective, features.full(), tolerance), (_Objective, features.full(torch.float64), tolerance)]
    if _StoredObjective.serves(rows):
        stages.insert(0, (_StoredObjective, features.full(), tolerance))
    elif features.dtype != torch.float32:
        stages.insert(0, (_Objective, features, _COARSE * tolerance))
    for kind, own, goal in stages:
        if own.dtype == torch.float64:
            if (gradient_K <= tolerance).all() or passes_K.max() >= most:
                break
            metric, weight, bias = metric.double(), weight.double(), bias.double()
        objective = kind(rows, own, metric)
        search = _Search(objective, metric.into(weight, bias), goal, most - int(passes_K.max()), advance)
        with dispatch.threads(dispatch.threads_for(len(rows.t_R) * weight.numel(), features.device)):
            weight, bias = metric.out(search.run())
        gradient_K = search.gradient_K
        passes_K += search.passes_K
    return Fit(Heads(*(dispatch.copy(p, torch.float32) for p in (weight, bias))), gradient_K, passes_K, tolerance)


@dataclass(frozen=True)
class CovarianceBasis:
    """Eigendecomposition of the features' covariance.

    Attributes:
        vector_DP: eigenvectors in columns: D of them, or those of the span of fewer rows, which has the solution.
        value_P: eigenvalues, ascending.
    """

    vector_DP: torch.Tensor
    value_P: torch.Tensor

    @classmethod
    def of(cls, rows: TrainingRows) -> CovarianceBasis:
        """Compute the basis from a sample of rows."""
        full, count = rows.features.full(), len(rows.t_R)
        if count <= full.width:
            return cls._of_span(full(rows.t_R, rows.n_R).double())
        pick = np.random.default_rng(0).permutation(count)[:COVARIANCE_ROWS]
        pick.sort()
        gram_DD = torch.zeros(full.width, full.width, device=rows.features.device)
        size = _block_rows(full.width, full.device)
        for first in range(0, len(pick), size):
            own = pick[first : first + size]
            x_BD = full(rows.t_R[own], rows.n_R[own])
            gram_DD.addmm_(x_BD.T, x_BD, alpha=1.0 / len(pick))
        value_D, vector_DD = torch.linalg.eigh(gram_DD)
        return cls(vector_DD, value_D.clamp_(min=_FLAT * float(value_D[-1])))

    @classmethod
    def _of_span(cls, x_RD: torch.Tensor) -> CovarianceBasis:
        """The basis of the span of rows, from the products of all pairs.

        Gradients have no other directions, and in those they are rounding errors. The mean is one of them, if the rows
        are standardised.
        """
        value_R, vector_RR = torch.linalg.eigh(x_RD @ x_RD.T / len(x_RD))
        largest = float(value_R[-1])
        kept = value_R > _NOTHING * largest
        kept[0] = kept[0] & (len(kept) == 1)
        value_P = value_R[kept]
        vector_DP = x_RD.T @ (vector_RR[:, kept] / (len(x_RD) * value_P).sqrt())
        return cls(vector_DP.float(), value_P.clamp(min=_FLAT * largest).float())


class _Metric:
    """Preconditioned coordinates u of weights and intercept: ``w = basis @ (scale * u)``.

    Args:
        basis_DP: eigenvectors of the features' covariance.
        scale_KP1: 1 / sqrt(eigenvalue / classes + strength) per head, the intercept's last.
    """

    def __init__(self, basis_DP: torch.Tensor, scale_KP1: torch.Tensor, strength_K: torch.Tensor) -> None:
        self.basis_DP, self.scale_KP1, self.strength_K = basis_DP, scale_KP1, strength_K

    @classmethod
    def of(cls, basis: CovarianceBasis, classes: int, strength_K: F64) -> _Metric:
        device = basis.value_P.device
        penalty_K = torch.from_numpy(strength_K).float().to(device)
        curvature_KP = basis.value_P / classes + penalty_K[:, None]
        of_bias_K1 = torch.full((len(strength_K), 1), 1.0 / classes, device=device)
        return cls(basis.vector_DP, torch.cat([curvature_KP, of_bias_K1], 1).rsqrt_(), penalty_K)

    def double(self) -> _Metric:
        """The same in float64."""
        return _Metric(self.basis_DP.double(), self.scale_KP1.double(), self.strength_K.double())

    def out(self, u_KP: torch.Tensor, heads: torch.Tensor | slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Convert coordinates to weights (K, C, D) and intercepts (K, C)."""
        scaled = u_KP.view(len(u_KP), -1, self.scale_KP1.shape[1]) * self.scale_KP1[heads, None]
        return scaled[:, :, :-1] @ self.basis_DP.T, scaled[:, :, -1]

    def into(self, weight_KCD: torch.Tensor, bias_KC: torch.Tensor) -> torch.Tensor:
        """Convert weights and intercepts to coordinates (K, P)."""
        turned = torch.cat([weight_KCD @ self.basis_DP, bias_KC[:, :, None]], 2)
        return (turned / self.scale_KP1[:, None]).flatten(1)

    def gradient(self, dw_KCD: torch.Tensor, db_KC: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Convert gradients of weights and intercepts to gradients of coordinates (K, P)."""
        turned = torch.cat([dw_KCD @ self.basis_DP, db_KC[:, :, None]], 2)
        return (turned * self.scale_KP1[heads, None]).flatten(1)


_Block = tuple[torch.Tensor, ...]  # features, targets, transformations, images, and 0 for rows that do not count
_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # loss (K,), gradients of weights and of intercepts


class _Objective:
    """Loss and gradient of selected heads, in one pass over the rows."""

    def __init__(self, rows: TrainingRows, features: Features, metric: _Metric) -> None:
        self.rows, self.features, self.metric = rows, features, metric
        variant_KT, image_KN = rows.shares()
        device = features.device
        dtype = metric.basis_DP.dtype
        self.variant_KT = torch.from_numpy(variant_KT).to(device, dtype)
        self.image_KN = None if image_KN is None else torch.from_numpy(image_KN).to(device, dtype)
        self._kept: list[_Block] = []
        width = max(features.width, features.held.table.width)
        self.size = min(len(rows.t_R), block_rows(width, len(variant_KT) * len(rows.task.labels), device))
        self.keeps = len(rows.t_R) * features.width * features.dtype.itemsize <= _KEPT

    def __call__(self, u_KP: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss (K,) float64, gradient of coordinates (K, P), and largest absolute gradient of weights (K,)."""
        weight_KCD, bias_KC = self.metric.out(u_KP, heads)
        strength_K11 = self.metric.strength_K[heads, None, None]
        loss_K = 0.5 * (strength_K11 * weight_KCD.square()).sum((1, 2), dtype=torch.float64)
        part_K, dw_KCD, db_KC = self._cross_entropy(Heads(weight_KCD, bias_KC.contiguous()), heads)
        loss_K += part_K
        dw_KCD.addcmul_(strength_K11, weight_KCD)
        largest_K = torch.maximum(dw_KCD.abs().amax((1, 2)), db_KC.abs().amax(1))
        return loss_K, self.metric.gradient(dw_KCD, db_KC, heads), largest_K

    def _cross_entropy(self, own: Heads, heads: torch.Tensor) -> _Gradients:
        """Cross-entropy (K,) float64 of selected heads, which are ``own``, and its gradients."""

        def gradients(x_BD: torch.Tensor, target_B: torch.Tensor, share_KB: torch.Tensor) -> _Gradients:
            return linear_gradients(own, x_BD, Term(target_B, weight_KB=share_KB))

        return self._sum(own, heads, gradients)

    def _sum(
        self,
        own: Heads,
        heads: torch.Tensor,
        gradients: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], _Gradients],
    ) -> _Gradients:
        """Sum losses and gradients over all blocks."""
        loss_K = torch.zeros(len(own), dtype=torch.float64, device=own.w1.device)
        dw_KCD, db_KC = torch.zeros_like(own.w1), torch.zeros_like(own.b1)
        for x_BD, target_B, t_B, n_B, real_B in self._blocks():
            share_KB = self.variant_KT[heads[:, None], t_B] * real_B
            if self.image_KN is not None:
                share_KB *= self.image_KN[heads[:, None], n_B]
            total_K = share_KB.sum(1)  # weight of the block: `gradients` normalises weights to a sum of 1
            part_K, dw, db = gradients(x_BD, target_B, share_KB)
            loss_K += (part_K * total_K).double()
            dw_KCD.addcmul_(dw, total_K[:, None, None])
            db_KC.addcmul_(db, total_K[:, None])
        return loss_K, dw_KCD, db_KC

    def _blocks(self) -> Iterator[_Block]:
        """Yield all blocks. If they fit, they are gathered in the first pass and kept: a gather costs several times the
        products of a single head."""
        if self._kept:
            yield from self._kept
            return
        kept: list[_Block] = []
        for block in self._gathered():
            if self.keeps:
                kept.append(tuple(part.clone() for part in block))
            yield block
        self._kept = kept

    def _gathered(self) -> Iterator[_Block]:
        """Gather the blocks; they are overwritten by the next. The last block is padded."""
        held, size, count = self.features.held, self.size, len(self.rows.t_R)
        x_BD = dispatch.empty((size, self.features.width), self.features.dtype, self.features.device)
        t_R, n_R, answer = self.rows.where_drawn

        def draw(first: int, steps: int) -> Drawn:
            place = torch.arange(first * size, (first + steps) * size, device=held.drawn_on)
            place = place.clamp_(max=count - 1).view(steps, size)
            t_nB, n_nB = t_R[place], n_R[place]
            return Drawn(t_nB, n_nB, [self.rows.task.targets(answer, t_nB, n_nB)])

        real = torch.ones(size, device=x_BD.device)
        steps = -(-count // size)
        with closing(held.feed(draw, size, steps)) as feed:
            for step in range(steps):
                drawn, placed = feed.take(1)
                if (step + 1) * size > count:
                    real[count - step * size :] = 0.0
                self.features.of(placed, placed.row_nB[0], x_BD)
                yield x_BD, drawn.targets[0][0], drawn.t_nB[0], drawn.n_nB[0], real


class _StoredObjective(_Objective):
    """The objective by products with rows as they are stored, in slices of the table.

    Standardisation is applied to the weights. Rows that do not count have weight 0.
    """

    @staticmethod
    def serves(rows: TrainingRows) -> bool:
        """Whether products need not be in float32, the table is in float16 on a GPU, and most of it counts."""
        features = rows.features
        if features.dtype == torch.float32 or features.stored is None or not split_products.available(features.device):
            return False
        return bool(len(rows.t_R) >= DENSE * (rows.span.stop - rows.span.start))

    def __init__(self, rows: TrainingRows, features: Features, metric: _Metric) -> None:
        super().__init__(rows, features, metric)
        self.size = stored_rows(len(self.variant_KT) * len(rows.task.labels), features.device)
        self.counts_R = upload(rows.count_TN.ravel()[rows.span], features.device)
        self.answer = rows.where_drawn[2]

    def _cross_entropy(self, own: Heads, heads: torch.Tensor) -> _Gradients:
        own = self.features.for_stored(own)
        gradients = partial(split_products.linear_gradients, own, split_products.split_weights(own))
        loss_K, dw_KCD, db_KC = self._sum(own, heads, gradients)
        return loss_K, self.features.from_stored(dw_KCD, db_KC), db_KC

    def _blocks(self) -> Iterator[_Block]:
        """Yield slices of the table."""
        x_RD, span, images = self.features.stored, self.rows.span, self.rows.count_TN.shape[1]
        assert x_RD is not None
        for first in range(span.start, span.stop, self.size):
            row_B = torch.arange(first, min(first + self.size, span.stop), device=x_RD.device)
            t_B = row_B // images
            n_B = row_B - t_B * images
            own = slice(first - span.start, first - span.start + len(row_B))
            # rows that do not count may have no answer
            target_B = self.rows.task.targets(self.answer, t_B, n_B).clamp_(min=0)
            yield x_RD[first : first + len(row_B)], target_B, t_B, n_B, self.counts_R[own]


class _Search:
    """L-BFGS of all heads. Each pass tries one step per head and accepts it or shortens the step."""

    def __init__(self, objective: _Objective, u_KP: torch.Tensor, goal: float, most: int, advance: Advance) -> None:
        self.objective, self.goal, self.most, self.advance = objective, goal, most, advance
        count, device = len(u_KP), u_KP.device
        self.found_KP = u_KP.clone()
        self.gradient_K, self.passes_K = np.full(count, np.inf), np.zeros(count, np.int64)
        self.alive = torch.arange(count, device=device)
        self.u, self.step = u_KP.clone(), u_KP.new_ones(count)
        self.pairs = _Pairs(u_KP)
        self.rounding = torch.finfo(u_KP.dtype).eps
        self.patience = _STALE if u_KP.dtype == torch.float64 else _STALE_SINGLE
        self.least, self.stale = u_KP.new_full((count,), torch.inf), u_KP.new_zeros(count)

    def run(self) -> torch.Tensor:
        """Run the search. Returns coordinates (K, P)."""
        self.loss, self.d, largest_K = self.objective(self.u, self.alive)
        way = -self.d
        passes = 1
        self.advance(1)
        self._leave(largest_K, largest_K <= self.goal, passes)
        way = way[self.kept]
        while len(self.alive) and passes < self.most:
            trial = self.u + self.step[:, None] * way
            loss, d, largest_K = self.objective(trial, self.alive)
            passes += 1
            self.advance(1)
            slope = (self.d * way).sum(1).double()
            allowed = self.loss + _DECREASE * self.step * slope + self.rounding * self.loss.abs()
            good = loss <= allowed
            self.pairs.add(good, trial - self.u, d - self.d)
            self.u[good], self.d[good], self.loss[good] = trial[good], d[good], loss[good]
            self.step = torch.where(good, 1.0, self.step * _SHRINK)
            way = torch.where(good[:, None], self.pairs.direction(self.d), way)
            self.gradient_K[self.alive[good].cpu().numpy()] = largest_K[good].double().cpu().numpy()
            better = largest_K < 0.9 * self.least
            self.least = torch.where(better, largest_K, self.least)
            self.stale = torch.where(better, 0.0, self.stale + 1)
            stuck = (self.step < _SMALLEST) | (self.stale >= self.patience)
            self._leave(largest_K, good & (largest_K <= self.goal) | stuck, passes)
            way = way[self.kept]
        self.found_KP[self.alive] = self.u
        self.passes_K[self.alive.cpu().numpy()] = passes
        return self.found_KP

    def _leave(self, largest_K: torch.Tensor, done_K: torch.Tensor, passes: int) -> None:
        self.kept = ~done_K
        if passes == 1:
            self.gradient_K[:] = largest_K.double().cpu().numpy()
        if not bool(done_K.any()):
            return
        gone = self.alive[done_K]
        self.found_KP[gone] = self.u[done_K]
        self.passes_K[gone.cpu().numpy()] = passes
        self.pairs.keep(self.kept)
        self.alive, self.u, self.d = self.alive[self.kept], self.u[self.kept], self.d[self.kept]
        self.loss, self.step = self.loss[self.kept], self.step[self.kept]
        self.least, self.stale = self.least[self.kept], self.stale[self.kept]


class _Pairs:
    """L-BFGS history of each head; missing pairs are zeros, which have no effect."""

    def __init__(self, u_KP: torch.Tensor) -> None:
        few = u_KP.shape[1] <= _FEW and u_KP.numel() <= _FEW_IN_ALL
        self.memory = _LONG_MEMORY if few else MEMORY
        self.s = u_KP.new_zeros(self.memory, *u_KP.shape)
        self.y = torch.zeros_like(self.s)
        self.rho = u_KP.new_zeros(self.memory, len(u_KP))
        self.first = u_KP.new_ones(len(u_KP))
        self.newest = self.count = 0

    def add(self, good_K: torch.Tensor, s_KP: torch.Tensor, y_KP: torch.Tensor) -> None:
        """Add a pair for each head whose step was accepted with positive curvature, replacing the oldest pair."""
        sy_K, yy_K = (s_KP * y_KP).sum(1), y_KP.square().sum(1)
        own_K = good_K & (sy_K > 1e-10 * yy_K)
        self.newest = (self.newest - 1) % self.memory
        self.count = min(self.count + 1, self.memory)
        self.s[self.newest], self.y[self.newest] = s_KP, y_KP
        self.rho[self.newest] = torch.where(own_K, 1.0 / sy_K, 0.0)
        self.first = torch.where(own_K, sy_K / yy_K, self.first)

    def direction(self, d_KP: torch.Tensor) -> torch.Tensor:
        """Search direction by the two-loop recursion."""
        q_KP, alphas = d_KP.clone(), []
        order = [(self.newest + i) % self.memory for i in range(self.count)]
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


def block_rows(width: int, outputs: int, device: torch.device) -> int:
    """Rows of a block of features of a width, before a projection, for heads with so many outputs in all."""
    return max(256, min(_block_rows(width, device), _most(device)[1] // outputs))


def stored_rows(outputs: int, device: torch.device) -> int:
    """Rows of a slice of the table, for heads with so many outputs in all."""
    most = min(_MOST_ROWS, _most(device)[1] // outputs)
    return next((most // piece * piece for piece in _PIECES if most >= piece), _PIECES[-1])


def _block_rows(width: int, device: torch.device) -> int:
    return max(256, min(_MOST_ROWS, _most(device)[0] // (4 * width)))


def _most(device: torch.device) -> tuple[int, int]:
    return _ON_CPU if device.type == "cpu" else _ON_GPU
