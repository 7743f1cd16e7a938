"""Rows on their way from a store to the device that trains, through a buffer of two halves.

A thread reads rows into one half while rows of the other are used. On a GPU the halves are pinned memory of the host,
with two more on the device: copies go on a stream of their own, wait for the last reader of the half that they
overwrite, and are waited for by its next one; the host waits only before it writes to memory that a copy still reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.arriving import after, made
from substyle.kernels import memory

Told = TypeVar("Told")
Job = Callable[[NDArray[Any]], tuple[int, Told]]  # fills rows of a half from its first; how many, and what they are


class Window(Generic[Told]):
    """The two halves.

    Args:
        rows: of a half.
        width: D.
        dtype: of the store.
        device: where rows are used.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.device = rows, device
        shape, self.on_gpu = (2 * rows, width), device.type == "cuda"
        if self.on_gpu:
            self.host = torch.empty(shape, dtype=dtype, pin_memory=True)
            self.x_RD = torch.empty(shape, dtype=dtype, device=device)
            self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        else:
            self.host = self.x_RD = memory.empty(shape, dtype, device)
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._used: list[torch.cuda.Event | None] = [None, None]

    def through(self, jobs: Iterator[Job[Told]]) -> Iterator[tuple[int, int, Told]]:
        """Fill the halves in turn, one ahead of the one that is used.

        Gives the first row of ``x_RD``, the rows and what its job told, for each job. They stay until the next is asked
        for: by then all work that reads them must be queued.
        """
        with ThreadPoolExecutor(1) as reader:
            half, coming = 0, reader.submit(self._fill, jobs, 0)
            while (filled := coming.result()) is not None:
                after(self._copied[half], self.device)
                coming = reader.submit(self._fill, jobs, 1 - half)
                yield half * self.rows, *filled
                self._used[half] = made(self.x_RD)
                half = 1 - half

    def _fill(self, jobs: Iterator[Job[Told]], half: int) -> tuple[int, Told] | None:
        """Run the next job into a half and, on a GPU, queue its copy; None where there is none."""
        job = next(jobs, None)
        if job is None:
            return None
        copied = self._copied[half]
        if copied is not None:
            copied.synchronize()
        own = slice(half * self.rows, (half + 1) * self.rows)
        count, told = job(self.host[own].numpy())
        if self.on_gpu:
            with torch.cuda.device(self.device), torch.cuda.stream(self.copies):
                after(self._used[half], self.device)
                self.x_RD[own][:count].copy_(self.host[own][:count], non_blocking=True)
                self._copied[half] = made(self.x_RD)
        return count, told


def rows_of_half(buffer: int, row_bytes: int) -> int:
    """Rows that half of a buffer holds."""
    return buffer // (2 * row_bytes)


def as_torch(dtype: np.dtype[Any]) -> torch.dtype:
    """The same type of torch."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
