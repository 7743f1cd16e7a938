"""Threads over the images of a batch, and their work arrays, for kernels made of numpy calls.

Such calls release the interpreter lock. Threads of torch's own would wait for one another at the end of every call,
which costs milliseconds on a busy machine; these meet once in a batch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

_arrays = threading.local()


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # a forked process has no use for its parent's threads
    return ThreadPoolExecutor(threads, thread_name_prefix="substyle-kernel")


def for_each_image(count: int, work: Callable[[int], None]) -> None:
    """Call ``work(i)`` for the images 0..count-1 on as many threads as torch uses; the first error is raised."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        for i in range(count):
            work(i)
        return
    for _ in _pool(threads, os.getpid()).map(work, range(count)):
        pass


def scratch(use: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """This thread's work array for that use, whatever it holds: half of the time of a fresh one is paging it in.

    It is overwritten by the next caller on this thread that names the same use, so it must not leave the kernel.
    """
    held: NDArray[Any] | None = getattr(_arrays, use, None)
    if held is None or held.shape != shape or held.dtype != dtype:
        held = np.empty(shape, dtype)
        setattr(_arrays, use, held)
    return held
