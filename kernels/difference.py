"""Whether two pictures differ: the sum of absolute differences of their levels, held against one level everywhere."""

from __future__ import annotations

import numpy as np
import torch

from substyle.kernels.dispatch import on_triton

_EVERY = 16  # rows; how finely a CPU divides a picture


def distinct(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """Whether two images differ by at least one grey level on average. Shape: (B,) bool, on the images' device.

    On a CPU differences are added up over every 16th row, then over every 16th of the next, and so on; an image whose
    sum is already that of one level everywhere is left out of what follows, which most are at once. On a GPU, which
    would have to be waited for to know that, they are added up over all.
    """
    if a_BSSC.device.type == "cpu":
        return _row_by_row(a_BSSC, b_BSSC)
    if on_triton(a_BSSC):
        from substyle.kernels import difference_triton

        total_B = difference_triton.total(a_BSSC.contiguous(), b_BSSC.contiguous())
    else:
        total_B = total_reference(a_BSSC, b_BSSC)
    return total_B >= a_BSSC.shape[1:].numel()


def total_reference(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """Sum of absolute differences of each pair, in plain torch. Shape: (B,) int64."""
    difference_BSSC = torch.maximum(a_BSSC, b_BSSC) - torch.minimum(a_BSSC, b_BSSC)
    return difference_BSSC.flatten(1).sum(1, dtype=torch.int64)


def _row_by_row(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    a, b = a_BSSC.numpy(), b_BSSC.numpy()  # numpy on one thread: waking torch's would cost more
    enough = a[0].size if len(a) else 0
    total_B = np.zeros(len(a), np.uint64)
    open_N = np.arange(len(a))
    for first in range(_EVERY):
        if not len(open_N):
            break
        some = slice(None) if len(open_N) == len(a) else open_N  # indexing by numbers copies
        x, y = a[some, first::_EVERY], b[some, first::_EVERY]
        difference = np.maximum(x, y)
        difference -= np.minimum(x, y)
        total_B[open_N] += difference.reshape(len(open_N), -1).sum(1, dtype=np.uint32)
        open_N = open_N[total_B[open_N] < enough]
    return torch.from_numpy(total_B >= enough)
