"""Memory for large arrays on a CPU: in huge pages where Linux gives them, which take fewer address look-ups."""

from __future__ import annotations

import math
import mmap

import torch

_HUGE = 1 << 21  # bytes of a huge page on x86 and most ARM kernels
_WORTH = _HUGE  # smaller arrays gain nothing


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor; a large one on a CPU lies in huge pages if it can."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if device.type != "cpu" or size < _WORTH or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    # private: shared memory gets huge pages from few systems, and a forked process would write into its parent's
    block = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the tensor keeps it alive
    try:
        block.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without huge pages: ordinary ones then
        return torch.empty(shape, dtype=dtype, device=device)
    whole = torch.frombuffer(block, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE
    return whole[start : start + size].view(dtype).view(shape)


def copy(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A contiguous copy, in another dtype if one is named."""
    return empty(tuple(tensor.shape), dtype or tensor.dtype, tensor.device).copy_(tensor)


def zeros_like(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros of the tensor's shape and dtype."""
    return empty(tuple(tensor.shape), tensor.dtype, tensor.device).zero_()
