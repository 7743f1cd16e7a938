"""Prefetching of rows for training steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.cuda import after, made
from substyle.engine.probes.tasks import I64
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import dispatch

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
            self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
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
        count, told = job(self.host[own].numpy())
        if self.on_gpu:
            with torch.cuda.device(self.device), torch.cuda.stream(self.copies):
                after(self._used[half], self.device)
                self.x_RD[own][:count].copy_(self.host[own][:count], non_blocking=True)
                self._copied[half] = made(self.x_RD)
        return count, told


def rows_of_half(buffer: int, row_bytes: int) -> int:
    """Number of rows that fit into half of a buffer."""
    return buffer // (2 * row_bytes)


def as_torch(dtype: np.dtype[Any]) -> torch.dtype:
    """Convert a numpy dtype to torch."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


_CHUNK, _CHUNKS_AHEAD = 32, 8  # steps per draw, and draws ahead: a GPU performs thousands of steps per second
NEVER = 1 << 62  # `Loader.left` of rows that are never overwritten


@dataclass(frozen=True)
class Drawn:
    """Rows of a step, transformation t of image n, and the targets of each part of the batch."""

    t_B: I64
    n_B: I64
    answers: list[I64]


@dataclass(frozen=True)
class Placed:
    """Rows in device memory.

    Attributes:
        x_RD: embeddings, at a fixed address.
        row_B: indices into ``x_RD``.
        scale_R: scale of each int8 row, else None.
    """

    x_RD: torch.Tensor
    row_B: I64
    scale_R: torch.Tensor | None = None


class Loader(Protocol):
    """Iterates over the rows of training steps."""

    @property
    def left(self) -> int:
        """Number of further steps available before earlier rows are overwritten; 0 before the first."""
        ...

    def step(self) -> tuple[Drawn, Placed]:
        """Return the rows of the next step. If ``left`` is 0, all work that reads earlier rows must be queued."""
        ...

    def close(self) -> None:
        """Stop loading."""
        ...


class Straight:
    """Loader of resident rows.

    Args:
        place: locates rows (t, n).
        draw: draws a step.
    """

    left = NEVER

    def __init__(self, place: Callable[[I64, I64], Placed], draw: Callable[[], Drawn]) -> None:
        self.place, self.draw = place, draw

    def step(self) -> tuple[Drawn, Placed]:
        """Return the rows of the next step."""
        drawn = self.draw()
        return drawn, self.place(drawn.t_B, drawn.n_B)

    def close(self) -> None:
        """Nothing to stop."""


class DrawnAhead(Straight):
    """Loader of resident rows whose steps are drawn ahead by a thread, so that a GPU does not wait for the host."""

    def __init__(self, place: Callable[[I64, I64], Placed], draw: Callable[[], Drawn], steps: int) -> None:
        super().__init__(place, draw)
        self._undrawn, self._thread = steps, ThreadPoolExecutor(1)
        self._coming: deque[Future[list[Drawn]]] = deque()
        self._drawn: deque[Drawn] = deque()

    def step(self) -> tuple[Drawn, Placed]:
        """Return the rows of the next step."""
        if not self._drawn:
            while self._undrawn and len(self._coming) < _CHUNKS_AHEAD:
                count = min(_CHUNK, self._undrawn)
                self._coming.append(self._thread.submit(self._draw, count))
                self._undrawn -= count
            self._drawn.extend(self._coming.popleft().result())
        drawn = self._drawn.popleft()
        return drawn, self.place(drawn.t_B, drawn.n_B)

    def _draw(self, count: int) -> list[Drawn]:
        return [self.draw() for _ in range(count)]

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.shutdown(cancel_futures=True)


class ReadAhead:
    """Loader that reads rows of a store several steps ahead.

    Args:
        table: the table.
        device: training device.
        draw: draws a step of ``size`` rows; called on the reader thread.
        size: rows per step.
        steps: total number of steps.
        at_once: steps read together into half of the buffer.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        device: torch.device,
        draw: Callable[[], Drawn],
        *,
        size: int,
        steps: int,
        at_once: int,
    ) -> None:
        self.size, self.steps, self.at_once, self.draw, self.table = size, steps, at_once, draw, table
        self.window = DoubleBuffer[list[Drawn]](at_once * size, table.width, as_torch(table.x_TND.dtype), device)
        self._coming = self.window.through(self._jobs())
        self._first = 0
        self._drawn: list[Drawn] = []
        self._taken = 0

    def _jobs(self) -> Iterator[Job[list[Drawn]]]:
        """Jobs that read the rows of up to ``at_once`` steps; draws and reads run on the reader thread."""
        for start in range(0, self.steps, self.at_once):
            drawn = [self.draw() for _ in range(min(self.at_once, self.steps - start))]
            yield lambda out_RD, drawn=drawn: self._read(drawn, out_RD)  # type: ignore[misc]

    def _read(self, drawn: list[Drawn], out_RD: NDArray[Any]) -> tuple[int, list[Drawn]]:
        t_B, n_B = (np.concatenate([getattr(step, side) for step in drawn]) for side in ("t_B", "n_B"))
        self.table.take(t_B, n_B, out_RD[: len(t_B)])
        return len(t_B), drawn

    @property
    def left(self) -> int:
        """Number of further steps in the current half."""
        return len(self._drawn) - self._taken

    def step(self) -> tuple[Drawn, Placed]:
        """Return the rows of the next step; if ``left`` is 0, earlier rows are overwritten from now on."""
        if not self.left:
            self._first, _, self._drawn = next(self._coming)
            self._taken = 0
        start = self._first + self._taken * self.size
        drawn, self._taken = self._drawn[self._taken], self._taken + 1
        return drawn, Placed(self.window.x_RD, np.arange(start, start + self.size))

    def close(self) -> None:
        """Wait for the thread."""
        self._coming.close()  # type: ignore[attr-defined]
