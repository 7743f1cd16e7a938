"""The embeddings of one backbone in memory, with what probes and analysis need to know of their rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRAIN, VAL, TEST = 0, 1, 2  # split codes
SPLITS = ("train", "val", "test")
UNLABELLED = -1


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings of N images in T variants by one backbone; N counts valid images only (no padding, no quarantined).

    Attributes:
        backbone: its name, as given by the user.
        x_TND: (T, N, D) float16 or float32; ``x_TND[t]`` is one contiguous block.
        transformations: T names in suite order; ``identity`` is among them, first.
        coarse: coarse class of each transformation.
        roles: ``train`` or ``held_out`` for each transformation (identity is ``train``).
        keys: N image keys, unique.
        label_N: (N,) int64 class of each image, -1 where it has none.
        class_names: names of the classes, indexed by label.
        split_N: (N,) int8, TRAIN, VAL or TEST.
        distinct_TN: (T, N) bool; False where a variant hardly differs from identity: such rows are kept out of
            transformation training and scores (identity's own row is all True).
    """

    backbone: str
    x_TND: NDArray[np.floating]
    transformations: tuple[str, ...]
    coarse: tuple[str, ...]
    roles: tuple[str, ...]
    keys: tuple[str, ...]
    label_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    split_N: NDArray[np.int8]
    distinct_TN: NDArray[np.bool_]

    def rows(self, split: int) -> NDArray[np.int64]:
        """Indices of the images of a split, ascending."""
        return np.flatnonzero(self.split_N == split)

    @property
    def has_classes(self) -> bool:
        """Whether a semantic task exists: at least two classes among labelled images."""
        return len(np.unique(self.label_N[self.label_N >= 0])) >= 2
