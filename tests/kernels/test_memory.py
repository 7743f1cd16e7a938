"""Arrays below and above the threshold for huge pages."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys

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


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (2, 1024, 1030)])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = dispatch.empty(shape, dtype, CPU)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()


@pytest.mark.parametrize("rows", [3, 1030])
def test_copies_and_zeros(rows: int) -> None:
    source = torch.randn(rows, 1024).T
    copied = dispatch.copy(source)
    assert copied.is_contiguous()
    assert torch.equal(copied, source)
    assert torch.equal(dispatch.copy(source, torch.bfloat16), source.bfloat16())
    copied[0, 0] += 1.0
    assert copied[0, 0] != source[0, 0]
    assert not dispatch.zeros_like(source).any()
    assert dispatch.zeros_like(source).is_contiguous()


def test_memory_outlives_its_maker_and_is_of_its_own() -> None:
    """Views keep the memory; no two arrays share any."""
    first = dispatch.empty((EDGE,), torch.uint8, CPU).fill_(1)[EDGE // 2 :]
    second = dispatch.empty((EDGE,), torch.uint8, CPU).fill_(2)
    assert bool((first == 1).all())
    assert bool((second == 2).all())


@pytest.mark.parametrize("reason", ["refused", "unknown"])
def test_without_huge_pages(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Fall back to ordinary memory where huge pages are unavailable."""

    class Refusing(mmap.mmap):
        def madvise(self, *options: int) -> None:
            raise OSError(22, "Invalid argument")

    if reason == "refused":
        monkeypatch.setattr(mmap, "mmap", Refusing)
    else:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    tensor = dispatch.empty((2, EDGE), torch.float32, CPU).fill_(3.0)
    assert bool((tensor == 3.0).all())


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


_REUSED = """
import os, resource, torch
from substyle.kernels.dispatch import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        parts = [torch.zeros(5_000_000) for _ in range(4)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

os.environ["MALLOC_TRIM_THRESHOLD_"] = "131072"
keep_freed_memory()
configured = faults()
del os.environ["MALLOC_TRIM_THRESHOLD_"]
keep_freed_memory.cache_clear()
keep_freed_memory()
faults()
print(configured, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone returns memory by these rules")
def test_freed_memory_is_used_again() -> None:
    """Repeated allocations of 80 MB touch no new pages, unless the environment configures malloc."""
    original = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    made = subprocess.run([sys.executable, "-c", _REUSED], capture_output=True, check=True, env=original)
    configured, kept = map(int, made.stdout.split())
    assert kept < 100
    assert configured > 1000


def test_other_devices_make_their_own() -> None:
    assert dispatch.empty((EDGE,), torch.uint8, torch.device("meta")).is_meta
