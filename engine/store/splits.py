"""Train, validation and test: the source's own, else by a hash of (seed, key) within each class."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.layout import SPLITS, TEST, TRAIN, VAL
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
    source: Collection[str | None] | None = None,
) -> NDArray[np.int8]:
    """Split codes of images. Shape: (N,) int8.

    - A source with splits keeps them. One that has only train and validation (as ImageNet) is tested on its validation
      images, and validation images are drawn from its training ones, as the paper does.
    - Else, and where all images of the source are training images, images of a class are ordered by a hash of
      (seed, key) and cut by the fractions (train, val, test).

    Args:
        given: the source's split of each image.
        source: splits that occur in the whole source, where these images are only some of it; by default those given.

    Raises:
        ConfigError: some images have a split and others none, or an unknown one.
    """
    known = {name for name in (given if source is None else source) if name is not None}
    known |= {name for name in given if name is not None}
    if known and None in given:
        missing = keys[list(given).index(None)]
        raise ConfigError("split", f"{missing} has none", "a split for every image or for none of them")
    if not known or known == {SPLITS[TRAIN]}:
        return _by_hash(keys, labels, seed, fractions)
    if not known <= set(SPLITS):
        raise ConfigError("split", sorted(known - set(SPLITS))[0], ", ".join(SPLITS))
    codes = np.array([SPLITS.index(name) for name in given if name is not None], dtype=np.int8)
    if SPLITS[TEST] not in known:
        codes[codes == VAL] = TEST
    if SPLITS[VAL] not in known or SPLITS[TEST] not in known:
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
    rows = np.lexsort((order, label_N))
    _, first, inverse, count = np.unique(label_N[rows], return_index=True, return_inverse=True, return_counts=True)
    place = (np.arange(len(rows)) - first[inverse] + 0.5) / count[inverse]
    codes[rows] = np.searchsorted(edges, place, side="right")
    return codes
