"""How a transformation moves an embedding: how far, whether always the same way, and whether a linear map can tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from substyle.engine.analysis.sampling import F32, unit

# Ridge strengths, as multiples of the mean eigenvalue of the training Gram matrix.
RIDGE = tuple(10.0**exponent for exponent in range(-4, 5))


def cosines(a_ND: F32, b_ND: F32) -> F32:
    """Cosine of each pair of rows; 0 where a row is zero. Shape: (N, D), (N, D) to (N,)."""
    return np.asarray(np.einsum("nd,nd->n", unit(a_ND), unit(b_ND)), dtype=np.float32)


def sensitivity(identity_ND: F32, variant_ND: F32, mean_D: F32) -> F32:
    """How far one transformation moves each image among images: 1 - cosine(variant - mean, identity - mean).

    0 is an image that keeps its place, 1 the average of two different images, 2 the opposite side. Without the mean,
    the cosine of any two images depends on how narrow a cone a backbone's embeddings lie in, and not on images.

    Args:
        identity_ND, variant_ND: embeddings of the same images.
        mean_D: mean of the identity embeddings of all images looked at.

    Returns:
        (M,), M <= N images that do not lie at the mean itself.
    """
    identity, variant = (np.asarray(x, dtype=np.float32) - mean_D for x in (identity_ND, variant_ND))
    off_N = np.abs(identity).max(axis=1, initial=0.0) > 0
    return 1 - cosines(identity[off_N], variant[off_N])


def equivariance(identity_ND: F32, variant_ND: F32) -> F32:
    """How parallel the displacements of one transformation are, for each image that moves at all.

    The cosine between an image's displacement (variant - identity) and the mean of the *other* images' unit
    displacements. Leaving the image itself out makes the expectation 0 when displacements point anywhere, whatever
    the number of images; 1 means that all point the same way.

    Shape: (N, D), (N, D) to (M,), M <= N images whose displacement is not zero; empty when M < 2.
    """
    moved_ND = np.asarray(variant_ND, dtype=np.float32) - np.asarray(identity_ND, dtype=np.float32)
    moved_MD = moved_ND[np.abs(moved_ND).max(axis=1, initial=0.0) > 0]
    if len(moved_MD) < 2:
        return np.empty(0, dtype=np.float32)
    u_MD = unit(moved_MD)
    total_D = u_MD.sum(axis=0, dtype=np.float64)
    return cosines(u_MD, (total_D - u_MD).astype(np.float32))


@dataclass(frozen=True)
class Ridge:
    """Ridge regression from one set of inputs to any number of targets, at any strength, from one decomposition.

    Built by :meth:`of`. Uses the dual form (an n x n eigenproblem) where n < D, else the primal one (D x D); both give
    the same predictions.
    """

    mean_D: F32
    project_DK: F32  # centred inputs to coordinates in which the map is diagonal
    eigenvalue_K: F32
    basis_NK: F32  # A = basis.T @ centred targets

    @classmethod
    def of(cls, x_ND: F32) -> Ridge:
        """Decompose the training inputs."""
        mean_D = x_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        x = x_ND - mean_D
        dual = len(x) < x.shape[1]
        gram = x @ x.T if dual else x.T @ x
        # float64: the largest eigenvalue is often a thousand times the mean one
        value_K, vector = np.linalg.eigh(gram.astype(np.float64))
        vector32 = vector.astype(np.float32)
        project, basis = (x.T @ vector32, vector32) if dual else (vector32, x @ vector32)
        return cls(mean_D, project, np.maximum(value_K, 0.0).astype(np.float32), basis)

    def strengths(self) -> tuple[float, ...]:
        """The ridge strengths that are tried; a set of equal inputs has none that matters, and 1 stands in."""
        scale = float(self.eigenvalue_K.mean()) or 1.0
        return tuple(scale * factor for factor in RIDGE)

    def coordinates(self, x_MD: F32) -> F32:
        """Inputs in the map's own coordinates. Shape: (M, D) to (M, K)."""
        return np.asarray((x_MD - self.mean_D) @ self.project_DK, dtype=np.float32)


def steerability(
    ridge: Ridge, train_y_ND: F32, *, val_z_VK: F32, val_y_VD: F32, test_z_MK: F32, test_y_MD: F32
) -> float | None:
    """Held-out R2 of the ridge map identity -> variant.

    R2 = 1 - squared error / squared deviation from the *training* mean of the variants, both summed over outputs and
    test images: 0 is what the best constant gives. The strength is the one with the least error on validation images.

    Args:
        ridge: decomposed identity embeddings of the training images.
        train_y_ND: the variants of the same images.
        val_z_VK, test_z_MK: ``ridge.coordinates`` of identity embeddings.
        val_y_VD, test_y_MD: their variants.

    Returns:
        R2 (at most 1, below 0 when worse than a constant), or None when it is undefined.
    """
    if not (len(train_y_ND) and len(val_y_VD) and len(test_y_MD)):
        return None
    mean_D = train_y_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    target_KD = ridge.basis_NK.T @ (train_y_ND - mean_D)

    def error(z_MK: F32, y_MD: F32, strength: float) -> float:
        shrink_K = 1.0 / (ridge.eigenvalue_K + np.float32(strength))
        residual = (z_MK * shrink_K) @ target_KD - (y_MD - mean_D)
        return float(np.square(residual).sum(dtype=np.float64))

    best = min(ridge.strengths(), key=lambda strength: error(val_z_VK, val_y_VD, strength))
    spread = float(np.square(test_y_MD - mean_D).sum(dtype=np.float64))
    return 1.0 - error(test_z_MK, test_y_MD, best) / spread if spread > 0 else None


def unchanged_r2(train_y_ND: F32, identity_MD: F32, variant_MD: F32) -> float | None:
    """R2 of leaving the embedding as it is, on the scale of :func:`steerability`: what a map must beat."""
    mean_D = train_y_ND.mean(axis=0, dtype=np.float64).astype(np.float32) if len(train_y_ND) else None
    if mean_D is None or not len(variant_MD):
        return None
    spread = float(np.square(variant_MD - mean_D).sum(dtype=np.float64))
    return 1.0 - float(np.square(variant_MD - identity_MD).sum(dtype=np.float64)) / spread if spread > 0 else None
