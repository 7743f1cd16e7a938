"""Near-duplicates among photographs, told from thumbnails, so that they never straddle a split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import dispatch
from substyle.kernels.banded import Banded
from substyle.kernels.workers import for_each_image

ROWS, COLUMNS = 8, 9  # of a thumbnail: 8 × 8 left-right comparisons make its 64-bit difference hash
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
MAX_BITS = 3  # differing bits of two difference hashes
MAX_LEVELS = 4.0  # mean absolute difference of two thumbnails, in grey levels


def as_hex(small_BRC: NDArray[np.uint8]) -> list[str]:
    """Thumbnails as texts."""
    return [small.tobytes().hex() for small in small_BRC]


def shrunk(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    """Thumbnails, 8 × 9 luma bytes each, where the canvases lie: means over areas that cover them.

    Shape: (B, S, S, 3) uint8 to (B, 8, 9) uint8.
    On the CPU they are the same whatever the batch; on a GPU they are those of the CPU but for rounding.
    """
    # a quarter of the pixels is plenty for means over about 25 × 28 of them
    some_BHWC = canvas_BSSC[:, ::2, ::2]
    if some_BHWC.is_cuda:
        return _shrunk_by_torch(some_BHWC)
    return torch.from_numpy(_shrunk_by_numpy(some_BHWC.numpy()))


def _shrunk_by_numpy(some_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    count, height, width, _ = some_BHWC.shape
    rows_RH, columns_CW = _areas(ROWS, height), _areas(COLUMNS, width)
    small_BRC = np.empty((count, ROWS, COLUMNS), np.uint8)

    def one(i: int) -> None:
        lines_1HX = some_BHWC[i].astype(np.float32).reshape(1, height, width * 3)
        means_RWC = rows_RH.down(lines_1HX, np.empty((1, ROWS, width * 3), np.float32)).reshape(ROWS, width, 3)
        small_BRC[i] = np.rint((means_RWC @ LUMA) @ columns_CW.matrix_OI.T)

    for_each_image(count, one)
    return small_BRC


def _shrunk_by_torch(some_BHWC: torch.Tensor) -> torch.Tensor:
    _, height, width, _ = some_BHWC.shape
    rows_RH, columns_WC, luma_3 = _matrices(height, width, some_BHWC.device)
    return (rows_RH @ (some_BHWC.float() @ luma_3) @ columns_WC).round().to(torch.uint8)


@lru_cache(maxsize=8)
def _matrices(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    columns_WC = _areas(COLUMNS, width).matrix_OI.T
    return tuple(dispatch.upload(array, device) for array in (_areas(ROWS, height).matrix_OI, columns_WC, LUMA))


@lru_cache(maxsize=8)
def _areas(count: int, length: int) -> Banded:
    """The matrix of means over ``count`` equal parts of a line, each widened to whole pixels."""
    matrix = np.zeros((count, length))
    for i in range(count):
        part = slice(i * length // count, -(-(i + 1) * length // count))
        matrix[i, part] = 1.0 / (part.stop - part.start)
    return Banded(matrix)


def groups(small_NRC: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For every image the index of the first image that it is a near-duplicate of, itself if of none.

    Shape: thumbnails (N, 8, 9) uint8 to (N,).

    Two images are near-duplicates when their difference hashes differ in at most 3 of 64 bits and their thumbnails by
    at most 4 grey levels on average; the relation is closed over chains. Two hashes with at most 3 differing bits agree
    in one of their four 16-bit quarters at least, so only images that share a quarter are compared.
    """
    count = len(small_NRC)
    bits = np.packbits((small_NRC[:, :, 1:] > small_NRC[:, :, :-1]).reshape(count, 64), axis=1)
    parent = np.arange(count)
    for a, b in _candidates(bits):
        differing = np.unpackbits(bits[a] ^ bits[b], axis=1).sum(axis=1)
        levels = np.abs(small_NRC[a].astype(np.int16) - small_NRC[b]).mean(axis=(1, 2))
        near = (differing <= MAX_BITS) & (levels <= MAX_LEVELS)
        for i, j in zip(a[near], b[near], strict=True):
            low, high = sorted((_root(parent, int(i)), _root(parent, int(j))))
            parent[high] = low
    return np.array([_root(parent, i) for i in range(count)], dtype=np.int64)


def _root(parent: NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _candidates(bits: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs that share a quarter of their hash, as two index arrays, a quarter and a distance at a time."""
    for quarter in range(4):
        value = bits[:, 2 * quarter].astype(np.int64) * 256 + bits[:, 2 * quarter + 1]
        order = np.argsort(value, kind="stable")
        ordered = value[order]
        for distance in range(1, len(order)):
            same = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if not len(same):
                break
            yield order[same], order[same + distance]
