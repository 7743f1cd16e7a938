"""Prefetching of rows for training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.cuda import after, made, side_stream
from substyle.kernels import dispatch
from substyle.kernels.dispatch import upload

Payload = TypeVar("Payload")
Job = Callable[[NDArray[Any]], tuple[int, Payload]]  # fills the first rows of a half; returns their number and payload


class DoubleBuffer(Generic[Payload]):
    """Double buffer between a store and the training device.

    A thread fills one half while the other is in use. For a GPU the halves are pinned host memory, mirrored on the
    device; copies run on their own stream and are ordered with events. The host waits only before it overwrites memory
    that a copy still reads.

    Args:
        rows: rows per half.
        width: D.
        dtype: dtype of the store.
        device: training device.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.device = rows, device
        shape, self.on_gpu = (2 * rows, width), device.type == "cuda"
        if self.on_gpu:
            self.host = torch.empty(shape, dtype=dtype, pin_memory=True)
            self.x_RD = torch.empty(shape, dtype=dtype, device=device)
            self.copies = side_stream(device)
        else:
            self.host = self.x_RD = dispatch.empty(shape, dtype, device)
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._used: list[torch.cuda.Event | None] = [None, None]

    def through(self, jobs: Iterator[Job[Payload]]) -> Iterator[tuple[int, int, Payload]]:
        """Run jobs alternately on the two halves, one ahead of the consumer.

        Yields (first row in ``x_RD``, number of rows, payload) per job. The rows are valid until the next iteration;
        by then all work that reads them must be queued.
        """
        with ThreadPoolExecutor(1) as reader:
            half, coming = 0, reader.submit(self._fill, jobs, 0)
            while (filled := coming.result()) is not None:
                after(self._copied[half], self.device)
                coming = reader.submit(self._fill, jobs, 1 - half)
                yield half * self.rows, *filled
                self._used[half] = made(self.x_RD)
                half = 1 - half

    def _fill(self, jobs: Iterator[Job[Payload]], half: int) -> tuple[int, Payload] | None:
        """Run the next job on a half and, on a GPU, queue its copy; None if there is none."""
        job = next(jobs, None)
        if job is None:
            return None
        copied = self._copied[half]
        if copied is not None:
            copied.synchronize()
        own = slice(half * self.rows, (half + 1) * self.rows)
        count, payload = job(self.host[own].numpy())
        if self.on_gpu:
            with torch.cuda.device(self.device), torch.cuda.stream(self.copies):
                after(self._used[half], self.device)
                self.x_RD[own][:count].copy_(self.host[own][:count], non_blocking=True)
                self._copied[half] = made(self.x_RD)
        return count, payload


def rows_of_half(buffer: int, row_bytes: int) -> int:
    """Number of rows that fit into half of a buffer."""
    return buffer // (2 * row_bytes)


def as_torch(dtype: np.dtype[Any]) -> torch.dtype:
    """Convert a numpy dtype to torch."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


@dataclass(frozen=True)
class Drawn:
    """Rows of n steps, transformation t of image n, and their targets for each part of the batch, (n, count)."""

    t_nB: torch.Tensor
    n_nB: torch.Tensor
    targets: list[torch.Tensor]

    def select(self, steps: slice, device: torch.device) -> Drawn:
        """Copy some of the steps to a device."""
        t_nB, n_nB, *targets = (upload(v[steps].numpy(), device) for v in (self.t_nB, self.n_nB, *self.targets))
        return Drawn(t_nB, n_nB, targets)


Draw = Callable[[int, int], Drawn]  # draws steps: number of the first, how many


@dataclass(frozen=True)
class Placed:
    """Rows in device memory.

    Attributes:
        x_RD: embeddings, at a fixed address.
        row_nB: int64 indices into ``x_RD`` of each step, or of one step, (B,); on the device.
        scale_R: scale of each int8 row, else None.
    """

    x_RD: torch.Tensor
    row_nB: torch.Tensor
    scale_R: torch.Tensor | None = None


class Straight:
    """Loader of resident rows.

    Args:
        place: locates rows.
        draw: draws steps, on the device.
    """

    def __init__(self, place: Callable[[Drawn], Placed], draw: Draw) -> None:
        self.place, self.draw, self._taken = place, draw, 0

    def take(self, most: int) -> tuple[Drawn, Placed]:
        """Return the rows of the next ``most`` steps."""
        drawn = self.draw(self._taken, most)
        self._taken += most
        return drawn, self.place(drawn)

    def close(self) -> None:
        """Nothing to stop."""


Read = tuple[Drawn, torch.Tensor | None]  # rows that were read, and the scales of int8 rows


class ReadAhead:
    """Loader that reads rows several steps ahead.

    Args:
        window: buffer, of ``at_once`` steps in each half.
        read: reads rows (transformation t of image n) into an array, and returns the scales of int8 rows.
        draw: draws steps of ``size`` rows on the CPU; called on the reader thread, as ``read`` is.
        size: rows per step.
        steps: total number of steps.
        at_once: steps read together into half of the buffer.
    """

    def __init__(
        self,
        window: DoubleBuffer[Read],
        read: Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[Any]], torch.Tensor | None],
        draw: Draw,
        *,
        size: int,
        steps: int,
        at_once: int,
    ) -> None:
        self.window, self.read, self.draw = window, read, draw
        self.size, self.steps, self.at_once = size, steps, at_once
        self._coming = self.window.through(self._jobs())
        self._first = self._taken = self._count = 0
        self._scale_R: torch.Tensor | None = None

    def _jobs(self) -> Iterator[Job[Read]]:
        """Jobs that read the rows of up to ``at_once`` steps; draws and reads run on the reader thread."""
        for start in range(0, self.steps, self.at_once):
            drawn = self.draw(start, min(self.at_once, self.steps - start))
            yield lambda out_RD, drawn=drawn: self._read(drawn, out_RD)  # type: ignore[misc]

    def _read(self, drawn: Drawn, out_RD: NDArray[Any]) -> tuple[int, Read]:
        t_R, n_R = (v.flatten().numpy() for v in (drawn.t_nB, drawn.n_nB))
        return len(t_R), (drawn, self.read(t_R, n_R, out_RD[: len(t_R)]))

    def take(self, most: int) -> tuple[Drawn, Placed]:
        """Return the rows of the next steps, at most those left in this half of the buffer.

        If none is left, earlier rows are overwritten from now on: all work that reads them must be queued.
        """
        if self._taken == self._count:
            self._first, rows, (self._drawn, scale_B) = next(self._coming)
            self._taken, self._count = 0, rows // self.size
            if scale_B is not None:
                if self._scale_R is None:
                    self._scale_R = torch.empty(len(self.window.x_RD), device=self.window.x_RD.device)
                self._scale_R[self._first : self._first + rows].copy_(upload(scale_B.numpy(), self._scale_R.device))
        own = slice(self._taken, min(self._taken + most, self._count))
        self._taken = own.stop
        x_RD = self.window.x_RD
        row = torch.arange(own.start * self.size, own.stop * self.size, device=x_RD.device) + self._first
        return self._drawn.select(own, x_RD.device), Placed(x_RD, row.view(-1, self.size), self._scale_R)

    def close(self) -> None:
        """Wait for the thread."""
        self._coming.close()  # type: ignore[attr-defined]


Loader = Straight | ReadAhead
