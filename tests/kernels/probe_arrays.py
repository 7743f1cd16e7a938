"""What the tests of the compiled probe kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

FLOAT, BF16 = torch.float32, torch.bfloat16
T = TypeVar("T")
BOTH = pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
TOLERANCE = {FLOAT: {"atol": 1e-6, "rtol": 2e-5}, BF16: {"atol": 1e-6, "rtol": 2**-8}}
THREADS = (1, 2, 5)
COMPILED = pytest.mark.usefixtures("one_thread", "compiled_probes")


def on_threads(work: Callable[[], T]) -> list[T]:
    """The result on each number of threads."""
    results = []
    for count in THREADS:
        torch.set_num_threads(count)
        results.append(work())
    return results


def drawn(seed: int, *shape: int, dtype: torch.dtype = FLOAT, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def classes(seed: int, count: int, most: int) -> torch.Tensor:
    return torch.randint(most, (count,), generator=torch.Generator().manual_seed(seed))
