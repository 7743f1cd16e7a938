"""Linear maps along the rows or columns of planes when every output draws on a few neighbouring inputs only.

Resampling and blurring are such maps: matrices that are zero but for a band. They are applied as products of small
dense blocks. A small product takes a core a few microseconds, and BLAS does not reach for a second thread, so that
images can be worked on side by side; and as planes are always cut alike, an image becomes the same in every batch.

For a CPU alone. On a GPU each of the three maps that are made of them (enlargements, the blur of a field, the lines
between nodes) has 2 to 15 weights in a row that are known without a matrix: ``zoom_triton`` and ``warp_triton`` take
them where they are used, instead of reading a matrix and a plane for a product of mostly zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
_BLOCK = 16  # outputs made at once; larger blocks multiply more zeros
_PRODUCT = 1 << 17  # multiplications in one product at most; OpenBLAS takes threads from 1 << 18 on


class Banded:
    """A banded matrix (O, I), ready to be applied to planes.

    Args:
        matrix_OI: its values; outputs by inputs.
    """

    def __init__(self, matrix_OI: NDArray[np.float64] | F32) -> None:
        outputs, inputs = matrix_OI.shape
        self.matrix_OI = np.asarray(matrix_OI, np.float32)
        self.blocks: list[tuple[slice, slice, F32, F32]] = []
        spans = []
        for start in range(0, outputs, _BLOCK):
            rows = slice(start, min(start + _BLOCK, outputs))
            (used,) = np.nonzero(self.matrix_OI[rows].any(axis=0))
            first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
            spans.append((rows, first, last + 1 - first))
        width = max((size for _, _, size in spans), default=0)
        for rows, first, _ in spans:  # one width for all: BLAS then takes one way for all
            left = min(first, inputs - width)
            columns = slice(left, left + width)
            block = np.ascontiguousarray(self.matrix_OI[rows, columns])
            self.blocks.append((rows, columns, block, np.ascontiguousarray(block.T)))

    def down(self, planes_CIW: F32, out_COW: F32) -> F32:
        """Apply it to every column of every plane. Shape: (C, I, W) to (C, O, W)."""
        for rows, columns, block, _ in self.blocks:
            for part in _parts(planes_CIW.shape[2], block.size):
                np.matmul(block, planes_CIW[:, columns, part], out=out_COW[:, rows, part])
        return out_COW

    def across(self, planes_CHI: F32, out_CHO: F32) -> F32:
        """Apply it to every row of every plane. Shape: (C, H, I) to (C, H, O)."""
        for rows, columns, _, turned in self.blocks:
            for part in _parts(planes_CHI.shape[1], turned.size):
                np.matmul(planes_CHI[:, part, columns], turned, out=out_CHO[:, part, rows])
        return out_CHO


def _parts(length: int, each: int) -> Iterator[slice]:
    """Cut a length so that no product is large; ``each`` is the multiplications for one of it."""
    step = max(1, _PRODUCT // each)
    return (slice(start, start + step) for start in range(0, length, step))


def mirrored(weights_K: F32 | NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The matrix of a correlation with K weights, borders mirrored about the edge pixels. Shape: (side, side)."""
    radius = len(weights_K) // 2
    matrix = np.zeros((side, side))
    at_SK = np.arange(side)[:, None] + np.arange(-radius, radius + 1)
    period = max(2 * (side - 1), 1)
    folded_SK = np.abs((at_SK + side - 1) % period - (side - 1)) if side > 1 else np.zeros_like(at_SK)
    np.add.at(matrix, (np.arange(side)[:, None], folded_SK), weights_K)
    return matrix
