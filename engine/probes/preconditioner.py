"""Coordinates in which L-BFGS sees linear heads, so that the objective's curvature is about 1 in each direction.

The curvature is that at w = 0, the features' covariance / C plus the penalty (Böhning 1992), so that features of large
variance do not slow down convergence.

Shapes: R rows, K heads, C classes, D embedding width, P = D + 1; coordinates (K, C * P).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from substyle.engine.probes.tasks import F64
from substyle.engine.probes.training_rows import TrainingRows, rows_of_width

# Rows from which the covariance is computed. If features are normal, the curvature is 0.42 to 1.83 of that of eight
# rows per feature, however many rows there are (Marchenko & Pastur 1967), which at most doubles the number of passes;
# measured, it does not change it (benchmarks/NOTES.md).
_COVARIANCE_ROWS, _ROWS_PER_FEATURE = 8192, 8
_NOTHING = 1e-10  # eigenvalues of directions that rows do not have, relative to the largest
# Lower bound of the covariance's eigenvalues relative to the largest: smaller ones are rounding, and steps scaled by
# them blow up weights in directions in which training rows do not differ, but others do.
_FLAT = 1e-6


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
        most = max(_COVARIANCE_ROWS, _ROWS_PER_FEATURE * width)
        pick = np.sort(np.random.default_rng(0).permutation(len(rows.t_R))[:most])
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
        """Convert coordinates to weights (K, C, D) and intercepts (K, C)."""
        scaled = u_KP.view(len(u_KP), -1, self.scale_KP1.shape[1]) * self.scale_KP1[:, None]
        return scaled[:, :, :-1] @ self.basis_DP.T, scaled[:, :, -1]

    def into(self, weight_KCD: torch.Tensor, bias_KC: torch.Tensor) -> torch.Tensor:
        """Convert weights and intercepts to coordinates."""
        turned = torch.cat([weight_KCD @ self.basis_DP, bias_KC[:, :, None]], 2)
        return (turned / self.scale_KP1[:, None]).flatten(1)

    def gradient(self, dw_KCD: torch.Tensor, db_KC: torch.Tensor) -> torch.Tensor:
        """Convert gradients of weights and intercepts to gradients of coordinates."""
        turned = torch.cat([dw_KCD @ self.basis_DP, db_KC[:, :, None]], 2)
        return (turned * self.scale_KP1[:, None]).flatten(1)

    def only(self, kept_K: torch.Tensor) -> CovarianceMetric:
        """The coordinates of selected heads."""
        return CovarianceMetric(self.basis_DP, self.scale_KP1[kept_K], self.strength_K[kept_K])
