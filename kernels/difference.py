"""Whether two images differ."""

from __future__ import annotations

import numpy as np
import torch

from substyle.kernels.dispatch import fused

_PASSES = ((0, 16), (8, 16), (4, 8), (2, 4), (1, 2))  # first row and stride of the passes on a CPU: every row once


def distinct(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor, *, subtle: bool = False) -> torch.Tensor:
    """Whether two images differ by at least one grey level on average. Shape: (B,) bool, on the images' device.

    With ``subtle``, whether any value differs.

    On a CPU, differences are summed over every 16th row, then over those between them, and so on. Most images reach
    the threshold in the first pass and skip the others. A GPU sums over all rows to avoid synchronising.
    """
    if a_BSSC.device.type == "cpu":
        return _row_by_row(a_BSSC, b_BSSC, subtle)
    return total(a_BSSC, b_BSSC) >= (1 if subtle else a_BSSC.shape[1:].numel())


@fused
def total(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """Sum of absolute differences of each pair. Shape: (B,) int64."""
    difference_BSSC = torch.maximum(a_BSSC, b_BSSC) - torch.minimum(a_BSSC, b_BSSC)
    return difference_BSSC.flatten(1).sum(1, dtype=torch.int64)


def _row_by_row(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor, subtle: bool) -> torch.Tensor:
    a, b = a_BSSC.numpy(), b_BSSC.numpy()  # single-threaded: waking torch's threads would cost more
    enough = 1 if subtle else a_BSSC.shape[1:].numel()
    total_B = np.zeros(len(a), np.uint64)
    open_N = np.arange(len(a))
    for first, stride in _PASSES:
        if not len(open_N):
            break
        some = slice(None) if len(open_N) == len(a) else open_N  # fancy indexing copies
        x, y = a[some, first::stride], b[some, first::stride]
        difference = np.maximum(x, y)
        difference -= np.minimum(x, y)
        total_B[some] += difference.reshape(len(open_N), -1).sum(1, dtype=np.uint32)
        (open_N,) = np.nonzero(total_B < enough)
    return torch.from_numpy(total_B >= enough)
