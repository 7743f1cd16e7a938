"""Sampling of rows, and geometry of transformations: sensitivity, equivariance and steerability.

Samples depend only on (seed, image keys), so all backbones are analyzed on the same photographs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.resampling import ACCURACY, BootstrapResult, multiplicities
from substyle.engine.results.model import entry_of
from substyle.engine.store.layout import TEST, TRAIN, ResampleBy
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import philox

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

RESAMPLES = 1000
_ALIKE = 1e-9  # squared error of a resample without spread, as a share of that of all groups
_T_AT_MOST = 50.0  # most resamples of two or three groups have no spread


@dataclass(frozen=True)
class SampledRows:
    """A sample of R embeddings.

    Attributes:
        x_RD: (R, D) float32, rows of unit length (zero rows stay zero).
        image_R: image index of each row in the table.
        transformation_R: index of each row's transformation; severities of one are not distinguished.
        label_R: class of each row's image, -1 if unlabelled.
        group_R: bootstrap group of each row's image.
        unit: what these groups are; empty if unknown.
    """

    x_RD: F32
    image_R: I64
    transformation_R: I64
    label_R: I64
    group_R: I64
    unit: str = ""

    def __len__(self) -> int:
        return len(self.image_R)

    def take(self, keep_R: NDArray[np.bool_]) -> SampledRows:
        """Select rows by a mask."""
        if keep_R.all():
            return self
        return replace(
            self,
            x_RD=self.x_RD[keep_R],
            image_R=self.image_R[keep_R],
            transformation_R=self.transformation_R[keep_R],
            label_R=self.label_R[keep_R],
            group_R=self.group_R[keep_R],
        )


def unit(x_ND: NDArray[np.floating]) -> F32:
    """Scale rows to unit length, float32; zero rows stay zero. Shape: (N, D) to (N, D)."""
    x = np.array(x_ND, dtype=np.float32)
    # divide by the largest entry first: squares of large values could overflow float32
    x /= np.maximum(np.abs(x).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float32).tiny)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return x


def draw_images(table: EmbeddingTable, images_N: I64, count: int, seed: int) -> I64:
    """Draw at most ``count`` of the images by a hash of (seed, key). Returns ascending indices.

    Of near-duplicates with the same label, only the first may be drawn: with a second copy of a photograph, each
    variant would have a neighbour that differs in nothing.
    """
    images_N = np.sort(images_N)
    alike_2N = np.stack([table.groups("photograph")[images_N], table.label_N[images_N]])
    images_N = images_N[np.sort(np.unique(alike_2N, axis=1, return_index=True)[1])]
    if len(images_N) <= count:
        return images_N
    hashed = philox.image_keys(seed, [table.keys[i] for i in images_N])
    return np.sort(images_N[np.argsort(hashed, kind="stable")[:count]])


def query_rows(table: EmbeddingTable, max_rows: int, seed: int, resample_by: ResampleBy = "photograph") -> SampledRows:
    """All distinct variants of as many test photographs as fit in ``max_rows``; at least one photograph."""
    variants = len(table.transformations)
    images = draw_images(table, table.rows(TEST), max(max_rows // variants, 1), seed)
    return _gather(table, np.ones((variants, len(images)), dtype=np.bool_), images, resample_by)


def bank_rows(table: EmbeddingTable, max_rows: int, seed: int) -> SampledRows:
    """At most ``max_rows`` distinct variants of training photographs.

    If not all fit, as many photographs as possible are kept, each with the same number of random variants: for the
    class task, more photographs are worth more than more variants.
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
    # exclude variants indistinct from identity
    chosen_TN = chosen_TN & table.distinct_TN[:, images_N]
    t_R, i_R = np.nonzero(chosen_TN)
    x_RD = np.empty((len(t_R), table.width), dtype=np.float32)
    start = 0
    for t in range(len(table.transformations)):
        rows = images_N[chosen_TN[t]]
        x_RD[start : start + len(rows)] = unit(table.take_finite(t, rows))
        start += len(rows)
    image_R = images_N[i_R]
    order = list(dict.fromkeys(table.families))  # severities count as one transformation
    family_T = np.array([order.index(family) for family in table.families], np.int64)
    group_R = table.groups(resample_by)[image_R]
    return SampledRows(x_RD, image_R, family_T[t_R], table.label_N[image_R], group_R, resample_by)


def bootstrap_mean(value_R: NDArray[np.floating | np.bool_], group_R: I64, seed: int) -> list[float] | None:
    """95 % interval of a mean from a bootstrap over groups.

    Booleans are accuracies, see :class:`.probes.resampling.BootstrapResult`. Other numbers may be skewed and have no
    bounds nearby: deviations are divided by the standard error of each resample (the bootstrap-t).

    Args:
        value_R: scores; NaN is ignored.
        group_R: group of each score, such as its image.
        seed: seed of the resampling, which does not depend on the values.

    Returns:
        [low, high], or None with fewer than two groups.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 12.5.
    """
    hits = value_R.dtype == np.bool_
    known_R = ~np.isnan(value_R)
    value_R = value_R[known_R]
    groups, group_R = np.unique(group_R[known_R], return_inverse=True)
    n = len(groups)
    if n < 2:
        return None
    value_G, weight_G = (np.bincount(group_R, weights=w, minlength=n) for w in (value_R, None))
    mean = float(value_R.mean(dtype=np.float64))
    apart_G = value_G - weight_G * mean  # centred, so that squares do not cancel
    column_GX = np.stack([weight_G, apart_G, apart_G**2, apart_G * weight_G, weight_G**2], axis=1)
    if hits:
        column_GX = column_GX[:, :2]
    blocks = multiplicities(RESAMPLES, seed, n)
    total_S, apart_S, *squares = np.concatenate([times_BG.astype(np.float64) @ column_GX for times_BG in blocks]).T
    shift_S = apart_S / total_S
    if hits:
        return BootstrapResult(mean, mean + shift_S, n, bounds=ACCURACY).ci95
    squared_S = squares[0] - 2 * shift_S * squares[1] + shift_S**2 * squares[2]
    squared = float((apart_G**2).sum())
    # resamples of a single group have no error of their own; t is then larger than any other
    error_S = np.sqrt(np.maximum(squared_S, squared * _ALIKE)) / total_S
    low, high = np.percentile(shift_S / error_S, [2.5, 97.5]).tolist() if squared > 0 else (0.0, 0.0)
    error = math.sqrt(squared) / len(value_R)
    return [mean - error * min(max(high, 0.0), _T_AT_MOST), mean - error * max(min(low, 0.0), -_T_AT_MOST)]


def mean_entry(value_R: NDArray[np.floating | np.bool_], group_R: I64, seed: int, unit: str) -> dict[str, Any] | None:
    """Entry of results.json of a mean with its `bootstrap_mean` over groups, which are ``unit``s; None without any."""
    known_R = ~np.isnan(value_R)
    if not known_R.any():
        return None
    mean, groups = float(value_R[known_R].mean(dtype=np.float64)), len(np.unique(group_R[known_R]))
    return entry_of(mean, bootstrap_mean(value_R, group_R, seed), groups, unit)


# Ridge strengths, as multiples of the mean eigenvalue of the training Gram matrix.
RIDGE = tuple(10.0**exponent for exponent in range(-4, 5))


def cosines(a_ND: F32, b_ND: F32) -> F32:
    """Cosine of each pair of rows; 0 for zero rows. Shape: (N, D), (N, D) to (N,)."""
    return np.asarray(np.einsum("nd,nd->n", unit(a_ND), unit(b_ND)), dtype=np.float32)


def sensitivity(identity_ND: F32, variant_ND: F32, mean_D: F32) -> F32:
    """Sensitivity of each image to a transformation: 1 - cosine(variant - mean, identity - mean).

    0: the embedding does not move; 1: as dissimilar as two different images on average; 2: opposite. Without the mean
    the cosine would depend on how narrow a cone the embeddings occupy.

    Args:
        identity_ND, variant_ND: embeddings of the same images.
        mean_D: mean of the identity embeddings of all analyzed images.

    Returns:
        (N,), NaN for an image at the mean.
    """
    identity, variant = (np.asarray(x, dtype=np.float32) - mean_D for x in (identity_ND, variant_ND))
    off_N = np.abs(identity).max(axis=1, initial=0.0) > 0
    return np.where(off_N, 1 - cosines(identity, variant), np.float32(np.nan))


def equivariance(
    identity_ND: F32, variant_ND: F32, group_N: I64, seed: int
) -> tuple[float | None, list[float] | None, int]:
    """Root of the mean cosine between the displacements (variant - identity) of two different images.

    It is the length of the mean unit displacement of infinitely many images: 1 if all displacements are parallel, 0 if
    their directions are unrelated. A mean over pairs does not depend on the number of images.

    Args:
        identity_ND, variant_ND: embeddings of the same images.
        group_N: groups of images to resample.
        seed: seed of the resampling.

    Returns:
        the value and its 95 % interval, None if fewer than two images, or groups, have moved; and the number of groups
        with images that have.
    """
    moved_ND = np.asarray(variant_ND, dtype=np.float32) - np.asarray(identity_ND, dtype=np.float32)
    moved_N = np.abs(moved_ND).max(axis=1, initial=0.0) > 0
    if (count := int(moved_N.sum())) < 2:
        return None, None, count
    u_MD = unit(moved_ND[moved_N])
    # mean cosine to the others
    value_M = (u_MD @ u_MD.sum(axis=0, dtype=np.float64) - 1) / (count - 1)
    mean = float(value_M.mean())
    ends = bootstrap_mean(value_M, group_N[moved_N], seed)
    if ends is not None:  # an image is in its own mean and in those of all others: their deviations are alike
        ends = [_root(mean + 2 * (end - mean)) for end in ends]
    return _root(mean), ends, len(np.unique(group_N[moved_N]))


def _root(mean: float) -> float:
    return math.sqrt(min(max(mean, 0.0), 1.0))


@dataclass(frozen=True)
class Ridge:
    """Ridge regression for several targets and strengths from one eigendecomposition of the inputs.

    Created by :meth:`of`. Uses the dual form (n x n) if n < D, else the primal form (D x D).
    """

    mean_D: F32
    project_DK: F32  # maps centred inputs to coordinates in which the problem is diagonal
    eigenvalue_K: F32
    basis_NK: F32  # A = basis.T @ centred targets

    @classmethod
    def of(cls, x_ND: F32) -> Ridge:
        """Decompose the training inputs."""
        mean_D = x_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        x = x_ND - mean_D
        dual = len(x) < x.shape[1]
        gram = x @ x.T if dual else x.T @ x
        # float64: the largest eigenvalue is often a thousand times the mean
        value_K, vector = np.linalg.eigh(gram.astype(np.float64))
        vector32 = vector.astype(np.float32)
        project, basis = (x.T @ vector32, vector32) if dual else (vector32, x @ vector32)
        return cls(mean_D, project, np.maximum(value_K, 0.0).astype(np.float32), basis)

    def strengths(self) -> tuple[float, ...]:
        """Candidate ridge strengths; relative to 1 if all inputs are equal."""
        scale = float(self.eigenvalue_K.mean()) or 1.0
        return tuple(scale * factor for factor in RIDGE)

    def coordinates(self, x_MD: F32) -> F32:
        """Project inputs to the diagonal coordinates. Shape: (M, D) to (M, K)."""
        return np.asarray((x_MD - self.mean_D) @ self.project_DK, dtype=np.float32)


def steerability(
    ridge: Ridge, train_y_ND: F32, *, val_z_VK: F32, val_y_VD: F32, test_z_MK: F32, test_y_MD: F32
) -> float | None:
    """Test R2 of the ridge map identity -> variant.

    R2 = 1 - squared error / squared deviation from the *training* mean of the variants, both summed over outputs and
    test images: 0 is the best constant. The strength minimises the error on validation images.

    Args:
        ridge: decomposed identity embeddings of the training images.
        train_y_ND: variants of the same images.
        val_z_VK, test_z_MK: ``ridge.coordinates`` of identity embeddings.
        val_y_VD, test_y_MD: their variants.

    Returns:
        R2 (at most 1, below 0 if worse than a constant), or None if undefined.
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
    """R2 of predicting the identity embedding itself: the baseline of :func:`steerability`."""
    mean_D = train_y_ND.mean(axis=0, dtype=np.float64).astype(np.float32) if len(train_y_ND) else None
    if mean_D is None or not len(variant_MD):
        return None
    spread = float(np.square(variant_MD - mean_D).sum(dtype=np.float64))
    return 1.0 - float(np.square(variant_MD - identity_MD).sum(dtype=np.float64)) / spread if spread > 0 else None
