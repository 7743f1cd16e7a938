"""Which rows of a store the analysis looks at, and intervals over images.

A sample depends on (seed, image keys) alone: the same photographs are drawn for every backbone, so their numbers are
comparable, and a store that fits is used whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.table import EmbeddingTable
from substyle.kernels import philox

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

RESAMPLES = 1000


@dataclass(frozen=True)
class Rows:
    """A gathered sample of R embeddings.

    Attributes:
        x_RD: (R, D) float32, each row of length 1 (a row of zeros stays zero).
        image_R: index of each row's image in the table.
        transformation_R: index of each row's transformation.
        label_R: class of each row's image, -1 where it has none.
    """

    x_RD: F32
    image_R: I64
    transformation_R: I64
    label_R: I64

    def __len__(self) -> int:
        return len(self.image_R)

    def take(self, keep_R: NDArray[np.bool_]) -> Rows:
        """The rows where ``keep_R`` is True; itself when all are."""
        if keep_R.all():
            return self
        return Rows(self.x_RD[keep_R], self.image_R[keep_R], self.transformation_R[keep_R], self.label_R[keep_R])


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


def query_rows(table: EmbeddingTable, max_rows: int, seed: int) -> Rows:
    """Every distinct variant of as many test photographs as fit in ``max_rows``; at least one photograph."""
    variants = len(table.transformations)
    images = draw_images(table, table.rows(TEST), max(max_rows // variants, 1), seed)
    return _gather(table, np.ones((variants, len(images)), dtype=np.bool_), images)


def bank_rows(table: EmbeddingTable, max_rows: int, seed: int) -> Rows:
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


def _gather(table: EmbeddingTable, chosen_TN: NDArray[np.bool_], images_N: I64) -> Rows:
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
    return Rows(x_RD, image_R, t_R.astype(np.int64), table.label_N[image_R])


def bootstrap_mean(value_N: NDArray[np.floating], weight_N: NDArray[np.floating], seed: int) -> list[float] | None:
    """95 % percentile interval of sum(value) / sum(weight) from a bootstrap over images.

    Args:
        value_N: sum of the scores of each image.
        weight_N: number of scores of each image.
        seed: of the resampling; equal seeds resample equally, whatever the values.

    Returns:
        [low, high], or None when there are fewer than two images with a score.
    """
    if np.count_nonzero(weight_N) < 2:
        return None
    n = len(value_N)
    counts_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES).astype(np.float64)
    weight_R = counts_RN @ weight_N
    mean_R = (counts_RN @ value_N)[weight_R > 0] / weight_R[weight_R > 0]
    low, high = np.percentile(mean_R, (2.5, 97.5))
    return [float(low), float(high)]
