"""Train, validation and test: the source's own, else by a hash of (seed, key) within each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from substyle.engine.table import SPLITS, TEST, TRAIN, VAL
from substyle.kernels.errors import ConfigError
from substyle.kernels.philox import image_keys

Fractions = tuple[float, float, float]
DEFAULT_FRACTIONS: Fractions = (0.65, 0.15, 0.20)


def assign(
    keys: Sequence[str],
    labels: Sequence[int],
    given: Sequence[str | None],
    *,
    seed: int,
    fractions: Fractions = DEFAULT_FRACTIONS,
) -> NDArray[np.int8]:
    """Split codes of images. Shape: (N,) int8.

    - A source with splits keeps them. One that has only train and validation (as ImageNet) is tested on its validation
      images, and validation images are drawn from its training ones, as the paper does.
    - Else images of a class are ordered by a hash of (seed, key) and cut by the fractions (train, val, test).

    Raises:
        ConfigError: some images have a split and others none, or an unknown one.
    """
    known = {name for name in given if name is not None}
    if known and None in given:
        missing = keys[list(given).index(None)]
        raise ConfigError("split", f"{missing} has none", "a split for every image or for none of them")
    if not known:
        return _by_hash(keys, labels, seed, fractions)
    if not known <= set(SPLITS):
        raise ConfigError("split", sorted(known - set(SPLITS))[0], ", ".join(SPLITS))
    codes = np.array([SPLITS.index(name) for name in given if name is not None], dtype=np.int8)
    if TEST not in codes:
        codes[codes == VAL] = TEST
    if VAL not in codes:
        train = np.flatnonzero(codes == TRAIN)
        share = fractions[1] / max(fractions[0] + fractions[1], 1e-9)
        inner = _by_hash(
            [keys[i] for i in train.tolist()], [labels[i] for i in train.tolist()], seed, (1 - share, share, 0.0)
        )
        codes[train] = inner
    return codes


def _by_hash(keys: Sequence[str], labels: Sequence[int], seed: int, fractions: Fractions) -> NDArray[np.int8]:
    codes = np.zeros(len(keys), dtype=np.int8)
    order = image_keys(seed, [f"split:{key}" for key in keys])
    label_N = np.asarray(labels, dtype=np.int64)
    edges = np.cumsum(fractions)[:2] / max(sum(fractions), 1e-9)
    for label in np.unique(label_N):
        rows = np.flatnonzero(label_N == label)
        rows = rows[np.argsort(order[rows], kind="stable")]
        codes[rows] = np.searchsorted(edges, (np.arange(len(rows)) + 0.5) / len(rows), side="right")
    return codes
