"""Coordinates in which L-BFGS sees linear heads, so that the objective's curvature is about 1 in each direction.

First the curvature at w = 0, the features' covariance / C plus the penalty (Böhning 1992), so that features of large
variance do not slow down convergence. Later, if many passes are needed, the curvature at the weights found so far: for
each class the Hessian by its own weights and intercept, ``sum_r weight_r p_r (1 - p_r) x_r x_r' + strength``.

Shapes: R rows, S sampled rows, K heads, C classes, D embedding width, P = D + 1; coordinates (K, C * P).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from substyle.engine.probes.tasks import F64
from substyle.engine.probes.training_rows import TrainingRows, rows_of_width
from substyle.kernels.probe_heads import Heads

# Rows from which the covariance is computed. If features are normal, the curvature is 0.42 to 1.83 of that of eight
# rows per feature, however many rows there are (Marchenko & Pastur 1967), which at most doubles the number of passes;
# measured, it does not change it (benchmarks/NOTES.md).
_COVARIANCE_ROWS, _ROWS_PER_FEATURE = 8192, 8
SAMPLED_ROWS = 65_536  # rows from which those are chosen that decide the curvature of a class
_NOTHING = 1e-10  # eigenvalues of directions that rows do not have, relative to the largest
# Lower bound of the covariance's eigenvalues relative to the largest, and what is added to those of a class's curvature
# relative to their sum: smaller ones are rounding, and steps scaled by them blow up weights in directions in which
# training rows do not differ, but others do.
_FLAT = 1e-6
# Rows per parameter of a class from which its curvature is computed: those with the largest p (1 - p). More of them do
# not save passes.
_ROWS_PER_PARAMETER = 8
_MOST = 1 << 25  # largest number of entries of all curvatures


class Metric(Protocol):
    """Coordinates u of the weights and intercepts of K heads.

    Attributes:
        strength_K: penalties.
    """

    strength_K: torch.Tensor

    def out(self, u_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Convert coordinates to weights (K, C, D) and intercepts (K, C)."""

    def into(self, weight_KCD: torch.Tensor, bias_KC: torch.Tensor) -> torch.Tensor:
        """Convert weights and intercepts to coordinates."""

    def gradient(self, dw_KCD: torch.Tensor, db_KC: torch.Tensor) -> torch.Tensor:
        """Convert gradients of weights and intercepts to gradients of coordinates."""

    def only(self, kept_K: torch.Tensor) -> Metric:
        """Those of selected heads."""


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
        width, device = rows.features.width, rows.features.device
        if len(rows.t_R) <= width:
            return cls._of_span(rows.at(np.arange(len(rows.t_R))).double())
        pick = rows.sample(max(_COVARIANCE_ROWS, _ROWS_PER_FEATURE * width))
        gram_DD = torch.zeros(width, width, device=device)
        size = rows_of_width(width, device)
        for first in range(0, len(pick), size):
            x_BD = rows.at(pick[first : first + size])
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


class CovarianceMetric:
    """``w = basis @ (scale * u)``.

    Args:
        basis_DP: eigenvectors of the features' covariance.
        scale_KP1: 1 / sqrt(eigenvalue / classes + strength) per head, the intercept's last.
    """

    def __init__(self, basis_DP: torch.Tensor, scale_KP1: torch.Tensor, strength_K: torch.Tensor) -> None:
        self.basis_DP, self.scale_KP1, self.strength_K = basis_DP, scale_KP1, strength_K

    @classmethod
    def of(cls, basis: CovarianceBasis, classes: int, strength_K: F64) -> CovarianceMetric:
        """The metric of heads with so many classes."""
        device = basis.value_P.device
        penalty_K = torch.from_numpy(strength_K).float().to(device)
        curvature_KP = basis.value_P / classes + penalty_K[:, None]
        of_bias_K1 = torch.full((len(strength_K), 1), 1.0 / classes, device=device)
        return cls(basis.vector_DP, torch.cat([curvature_KP, of_bias_K1], 1).rsqrt_(), penalty_K)

    def double(self) -> CovarianceMetric:
        """The same in float64."""
        return CovarianceMetric(self.basis_DP.double(), self.scale_KP1.double(), self.strength_K.double())

    def out(self, u_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = u_KP.view(len(u_KP), -1, self.scale_KP1.shape[1]) * self.scale_KP1[:, None]
        return scaled[:, :, :-1] @ self.basis_DP.T, scaled[:, :, -1]

    def into(self, weight_KCD: torch.Tensor, bias_KC: torch.Tensor) -> torch.Tensor:
        turned = torch.cat([weight_KCD @ self.basis_DP, bias_KC[:, :, None]], 2)
        return (turned / self.scale_KP1[:, None]).flatten(1)

    def gradient(self, dw_KCD: torch.Tensor, db_KC: torch.Tensor) -> torch.Tensor:
        turned = torch.cat([dw_KCD @ self.basis_DP, db_KC[:, :, None]], 2)
        return (turned * self.scale_KP1[:, None]).flatten(1)

    def only(self, kept_K: torch.Tensor) -> CovarianceMetric:
        return CovarianceMetric(self.basis_DP, self.scale_KP1[kept_K], self.strength_K[kept_K])


class CurvatureMetric:
    """``u = factor.T @ (w, intercept)`` for each class, whose curvature is ``factor @ factor.T``.

    Args:
        factor_KCPP: lower triangular factors.
        inverse_KCPP: their inverses.
    """

    def __init__(self, factor_KCPP: torch.Tensor, inverse_KCPP: torch.Tensor, strength_K: torch.Tensor) -> None:
        self.factor_KCPP, self.inverse_KCPP, self.strength_K = factor_KCPP, inverse_KCPP, strength_K

    @staticmethod
    def passes(rows: TrainingRows, heads: int) -> float:
        """How many passes over the rows take as long as computing the curvature of heads; inf if it takes too much
        memory."""
        size = rows.features.width + 1
        if heads * len(rows.task.labels) * size**2 > _MOST:
            return float("inf")
        # per class products of P x P with the rows, a factorisation and an inverse; a pass has two products
        return (2 * _ROWS_PER_PARAMETER + 2) * size**2 / (4 * len(rows.t_R))

    @classmethod
    def at(cls, rows: TrainingRows, own: Heads, strength_K: torch.Tensor, which_K: torch.Tensor) -> CurvatureMetric:
        """The metric at the weights of heads.

        Args:
            own: the heads, which are numbers ``which_K`` of ``rows``.
        """
        pick = rows.sample(SAMPLED_ROWS)
        x_SD = rows.at(pick)
        x_SP = torch.cat([x_SD, x_SD.new_ones(len(pick), 1)], 1)
        count, size = min(len(x_SP), _ROWS_PER_PARAMETER * x_SP.shape[1]), x_SP.shape[1]
        scale = len(rows.t_R) / len(pick)
        share_KS = torch.from_numpy(rows.share(which_K.cpu().numpy(), pick) * scale).to(x_SP)
        shape = (*own.w1.shape[:2], size, size)
        factor_KCPP, inverse_KCPP = own.w1.new_empty(shape), own.w1.new_empty(shape)
        unit_PP = torch.eye(size, dtype=torch.float64, device=x_SP.device)
        for k, strength in enumerate(strength_K):
            p_SC = torch.addmm(own.b1[k].to(x_SP), x_SD, own.w1[k].to(x_SP).T).softmax(1)
            weight_SC = p_SC * (1 - p_SC) * share_KS[k, :, None]
            penalty_P = strength.double().repeat(size)
            penalty_P[-1] = 0.0
            for c, weight_S in enumerate(weight_SC.T):
                most, place = weight_S.topk(count)
                # in float64, in which no rounding makes an eigenvalue negative
                x_nP = (x_SP[place] * most.sqrt()[:, None]).double()
                every = weight_S.sum().double() / most.sum().double().clamp_(min=torch.finfo(most.dtype).tiny)
                block_PP = torch.mm(x_nP.T, x_nP).mul_(every)
                least = _FLAT * block_PP.diagonal().sum() + torch.finfo(most.dtype).tiny
                block_PP.diagonal().add_(penalty_P).add_(least)
                lower_PP = torch.linalg.cholesky(block_PP)
                factor_KCPP[k, c] = lower_PP
                inverse_KCPP[k, c] = torch.linalg.solve_triangular(lower_PP, unit_PP, upper=False)
        return cls(factor_KCPP, inverse_KCPP, strength_K)

    def out(self, u_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = _by_class(self.inverse_KCPP.mT, u_KP)
        return both[:, :, :-1], both[:, :, -1]

    def into(self, weight_KCD: torch.Tensor, bias_KC: torch.Tensor) -> torch.Tensor:
        return _by_class(self.factor_KCPP.mT, torch.cat([weight_KCD, bias_KC[:, :, None]], 2).flatten(1)).flatten(1)

    def gradient(self, dw_KCD: torch.Tensor, db_KC: torch.Tensor) -> torch.Tensor:
        return _by_class(self.inverse_KCPP, torch.cat([dw_KCD, db_KC[:, :, None]], 2).flatten(1)).flatten(1)

    def only(self, kept_K: torch.Tensor) -> CurvatureMetric:
        return CurvatureMetric(self.factor_KCPP[kept_K], self.inverse_KCPP[kept_K], self.strength_K[kept_K])


def _by_class(matrix_KCPP: torch.Tensor, u_KP: torch.Tensor) -> torch.Tensor:
    """Products (K, C, P) of a matrix for each class with coordinates."""
    return (matrix_KCPP @ u_KP.view(*matrix_KCPP.shape[:3], 1))[..., 0]
