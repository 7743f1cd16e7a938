"""How a transformation moves an embedding: sensitivity, equivariance and steerability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.layout import TEST, TRAIN, ResampleBy
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import philox

# Which rows of a store the analysis looks at, and intervals over images.
#
# A sample depends on (seed, image keys) alone: the same photographs are drawn for every backbone, so their numbers are
# comparable, and a store that fits is used whole.

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

RESAMPLES = 1000


@dataclass(frozen=True)
class SampledRows:
    """A gathered sample of R embeddings.

    Attributes:
        x_RD: (R, D) float32, each row of length 1 (a row of zeros stays zero).
        image_R: index of each row's image in the table.
        transformation_R: index of each row's transformation.
        label_R: class of each row's image, -1 where it has none.
        group_R: group of each row's image, which bootstraps draw whole.
    """

    x_RD: F32
    image_R: I64
    transformation_R: I64
    label_R: I64
    group_R: I64

    def __len__(self) -> int:
        return len(self.image_R)

    def take(self, keep_R: NDArray[np.bool_]) -> SampledRows:
        """The rows where ``keep_R`` is True; itself when all are."""
        if keep_R.all():
            return self
        return SampledRows(*(each[keep_R] for each in vars(self).values()))


def unit(x_ND: NDArray[np.floating]) -> F32:
    """Rows scaled to length 1, float32; a row of zeros stays zero. Shape: (N, D) to (N, D)."""
    x = np.array(x_ND, dtype=np.float32)
    # the largest entry goes out first, so that the square of a large float16 value cannot overflow float32
    x /= np.maximum(np.abs(x).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float32).tiny)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return x


def draw_images(table: EmbeddingTable, images_N: I64, count: int, seed: int) -> I64:
    """At most ``count`` of these images, by a hash of (seed, key), ascending; all of them when they fit."""
    if len(images_N) <= count:
        return images_N
    hashed = philox.image_keys(seed, [table.keys[i] for i in images_N])
    return np.sort(images_N[np.argsort(hashed, kind="stable")[:count]])


def query_rows(table: EmbeddingTable, max_rows: int, seed: int, resample_by: ResampleBy = "photograph") -> SampledRows:
    """Every distinct variant of as many test photographs as fit in ``max_rows``; at least one photograph."""
    variants = len(table.transformations)
    images = draw_images(table, table.rows(TEST), max(max_rows // variants, 1), seed)
    return _gather(table, np.ones((variants, len(images)), dtype=np.bool_), images, resample_by)


def bank_rows(table: EmbeddingTable, max_rows: int, seed: int) -> SampledRows:
    """At most ``max_rows`` distinct variants of training photographs.

    When not all fit, as many photographs as possible are kept and each gives the same number of randomly chosen
    variants: classes need photographs more than they need variants of one.
    """
    variants = len(table.transformations)
    images = draw_images(table, table.rows(TRAIN), max_rows, seed)
    each = min(max(max_rows // max(len(images), 1), 1), variants)
    chosen_TN = np.ones((variants, len(images)), dtype=np.bool_)
    if each < variants:
        keys = philox.image_keys(seed, [table.keys[i] for i in images])
        order_NT = np.argsort(philox.uniforms(keys, "analysis bank", variants), axis=1)
        chosen_TN = np.zeros((variants, len(images)), dtype=np.bool_)
        chosen_TN[order_NT[:, :each].T, np.arange(len(images))[None, :]] = True
    return _gather(table, chosen_TN, images)


def _gather(
    table: EmbeddingTable, chosen_TN: NDArray[np.bool_], images_N: I64, resample_by: ResampleBy = "photograph"
) -> SampledRows:
    # an indistinct variant is its identity in all but name: as a neighbour or a query it would only mislead
    chosen_TN = chosen_TN & table.distinct_TN[:, images_N]
    t_R, i_R = np.nonzero(chosen_TN)
    x_RD = np.empty((len(t_R), table.width), dtype=np.float32)
    start = 0
    for t in range(len(table.transformations)):
        rows = images_N[chosen_TN[t]]
        x_RD[start : start + len(rows)] = unit(table.take(t, rows))
        start += len(rows)
    image_R = images_N[i_R]
    return SampledRows(x_RD, image_R, t_R.astype(np.int64), table.label_N[image_R], table.groups(resample_by)[image_R])


def bootstrap_mean(value_R: NDArray[np.floating | np.bool_], group_R: I64, seed: int) -> list[float] | None:
    """95 % percentile interval of the mean of some scores from a bootstrap over groups of them.

    Args:
        value_R: scores; NaN is left out.
        group_R: group of each score, such as its image.
        seed: of the resampling; equal seeds resample equally, whatever the values.

    Returns:
        [low, high], or None when there are fewer than two groups with a score.
    """
    known_R = ~np.isnan(value_R)
    value_R = value_R[known_R]
    groups, group_R = np.unique(group_R[known_R], return_inverse=True)
    n = len(groups)
    if n < 2:
        return None
    value_G, weight_G = (np.bincount(group_R, weights=w, minlength=n) for w in (value_R, None))
    counts_SG = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES).astype(np.float64)
    mean_S = (counts_SG @ value_G) / (counts_SG @ weight_G)
    low, high = np.percentile(mean_S, (2.5, 97.5))
    return [float(low), float(high)]


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
        (N,), NaN for an image that lies at the mean itself.
    """
    identity, variant = (np.asarray(x, dtype=np.float32) - mean_D for x in (identity_ND, variant_ND))
    off_N = np.abs(identity).max(axis=1, initial=0.0) > 0
    return np.where(off_N, 1 - cosines(identity, variant), np.float32(np.nan))


def equivariance(identity_ND: F32, variant_ND: F32) -> F32:
    """How parallel the displacements of one transformation are, for each image that moves at all.

    The cosine between an image's displacement (variant - identity) and the mean of the *other* images' unit
    displacements. Leaving the image itself out makes the expectation 0 when displacements point anywhere, whatever
    the number of images; 1 means that all point the same way.

    Shape: (N, D), (N, D) to (N,), NaN for an image whose displacement is zero, and for the only one that moves.
    """
    moved_ND = np.asarray(variant_ND, dtype=np.float32) - np.asarray(identity_ND, dtype=np.float32)
    moved_N = np.abs(moved_ND).max(axis=1, initial=0.0) > 0
    if moved_N.sum() < 2:
        return np.full(len(moved_N), np.nan, dtype=np.float32)
    u_ND = unit(moved_ND)
    total_D = u_ND.sum(axis=0, dtype=np.float64)
    return np.where(moved_N, cosines(u_ND, (total_D - u_ND).astype(np.float32)), np.float32(np.nan))


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
