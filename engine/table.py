"""The embeddings of one backbone, with what probes and analysis need to know of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Elsewhere(Protocol):
    """Embeddings that are not in memory: rows of them are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, N, D)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""
        ...

    def take(
        self, t_B: int | NDArray[np.int64], n_B: NDArray[np.int64], out_BD: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Rows of images n in transformations t, into ``out_BD`` if it is given. Shapes: (B,) or one number, (B,)."""
        ...

    def part(self, t: int, first: int, last: int, out_BD: NDArray[Any]) -> None:
        """Images [first, last) of one transformation into memory."""
        ...

    def whole(self) -> NDArray[Any]:
        """All of them in memory. Shape: (T, N, D)."""
        ...


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings of N images in T variants by one backbone; N counts valid images only (no padding, no quarantined).

    Attributes:
        backbone: its name, as given by the user.
        x_TND: (T, N, D) float16 or float32; in memory ``x_TND[t]`` is one contiguous block. Use `take`, which is the
            same for embeddings that lie elsewhere.
        transformations: T names in suite order; ``identity`` is among them, first.
        coarse: coarse class of each transformation.
        roles: ``train`` or ``held_out`` for each transformation (identity is ``train``).
        keys: N image keys, unique.
        label_N: (N,) int64 class of each image, -1 where it has none.
        class_names: names of the classes, indexed by label.
        split_N: (N,) int8, TRAIN, VAL or TEST.
        distinct_TN: (T, N) bool; False where a variant hardly differs from identity, or shows motifs of another split
            than its image's: such rows are kept out of transformation training and scores (identity's own row is all
            True).
        content_N2: hashes of the photographs' bytes, two numbers each, zeros where unknown; None where none is known.
    """

    backbone: str
    x_TND: NDArray[np.floating] | Elsewhere
    transformations: tuple[str, ...]
    coarse: tuple[str, ...]
    roles: tuple[str, ...]
    keys: tuple[str, ...]
    label_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    split_N: NDArray[np.int8]
    distinct_TN: NDArray[np.bool_]
    content_N2: NDArray[np.uint64] | None = None

    @property
    def width(self) -> int:
        """D."""
        return int(self.x_TND.shape[2])

    def take(
        self, t_B: int | NDArray[np.int64], n_B: NDArray[np.int64], out_BD: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """A copy of rows: images n in transformations t. Shapes: (B,) or one number for all, (B,) to (B, D)."""
        if not isinstance(self.x_TND, np.ndarray):
            return self.x_TND.take(t_B, n_B, out_BD)
        rows_BD: NDArray[Any] = self.x_TND[t_B, n_B]
        if out_BD is None:
            return rows_BD
        out_BD[...] = rows_BD
        return out_BD

    def part(self, t: int, first: int, last: int, out_BD: NDArray[Any]) -> None:
        """Images [first, last) of one transformation into memory."""
        if isinstance(self.x_TND, np.ndarray):
            out_BD[...] = self.x_TND[t, first:last]
        else:
            self.x_TND.part(t, first, last, out_BD)

    def rows(self, split: int) -> NDArray[np.int64]:
        """Indices of the images of a split, ascending."""
        return np.flatnonzero(self.split_N == split)

    @property
    def has_classes(self) -> bool:
        """Whether a semantic task exists: at least two classes among labelled images."""
        return len(np.unique(self.label_N[self.label_N >= 0])) >= 2
