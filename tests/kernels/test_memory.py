"""Arrays below and above the threshold for huge pages."""

from __future__ import annotations

import mmap
import os

import pytest
import torch

from substyle.kernels import dispatch

CPU = torch.device("cpu")
EDGE = dispatch._HUGE
SIZES = [0, 1, EDGE - 1, EDGE, EDGE + 1, 3 * EDGE + 5]


@pytest.mark.parametrize("size", SIZES)
def test_an_array_of_any_size_can_be_written(size: int) -> None:
    tensor = dispatch.empty((size,), torch.uint8, CPU)
    assert tensor.shape == (size,)
    assert tensor.is_contiguous()
    tensor.fill_(7)
    assert int(tensor.sum(dtype=torch.int64)) == 7 * size
    if size >= EDGE and hasattr(mmap, "MADV_HUGEPAGE"):
        assert tensor.data_ptr() % EDGE == 0


def test_memory_outlives_its_maker_and_is_of_its_own() -> None:
    """Views keep the memory; no two arrays share any."""
    first = dispatch.empty((EDGE,), torch.uint8, CPU).fill_(1)[EDGE // 2 :]
    second = dispatch.empty((EDGE,), torch.uint8, CPU).fill_(2)
    assert bool((first == 1).all())
    assert bool((second == 2).all())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_its_own_copy() -> None:
    tensor = dispatch.empty((EDGE,), torch.uint8, CPU).fill_(1)
    view = tensor.numpy()
    child = os.fork()
    if child == 0:
        view[0] = 9
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert view[0] == 1
