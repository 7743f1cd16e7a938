"""Prefetching of the rows of training steps."""

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

# Rows on their way from a store to the device that trains, through a buffer of two halves.
#
# A thread reads rows into one half while rows of the other are used. On a GPU the halves are pinned memory of the host,
# with two more on the device: copies go on a stream of their own, wait for the last reader of the half that they
# overwrite, and are waited for by its next one; the host waits only before it writes to memory that a copy still reads.

Told = TypeVar("Told")
Job = Callable[[NDArray[Any]], tuple[int, Told]]  # fills rows of a half from its first; how many, and what they are


class DoubleBuffer(Generic[Told]):
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
            self.host = self.x_RD = dispatch.empty(shape, dtype, device)
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


_CHUNK, _CHUNKS_AHEAD = 32, 8  # steps drawn together, and how many times: a GPU takes some thousands a second
NEVER = 1 << 62  # steps that can be drawn before rows move, where they never do


@dataclass(frozen=True)
class Drawn:
    """Rows of a step: image n in transformation t of each, and for each part of the batch their answers."""

    t_B: I64
    n_B: I64
    answers: list[I64]


@dataclass(frozen=True)
class Placed:
    """Rows in the memory of a device.

    Attributes:
        x_RD: embeddings, in memory that stays where it is.
        row_B: which rows of it.
        scale_R: factor of each row of int8, None for others.
    """

    x_RD: torch.Tensor
    row_B: I64
    scale_R: torch.Tensor | None = None


class Loader(Protocol):
    """Rows of one step after another."""

    @property
    def left(self) -> int:
        """Steps whose rows stay where they are until a further one is asked for; 0 before the first."""
        ...

    def step(self) -> tuple[Drawn, Placed]:
        """The next step's rows. Where ``left`` is 0, all work that reads earlier ones must be queued by now."""
        ...

    def close(self) -> None:
        """Nothing more is asked for."""
        ...


class Straight:
    """Rows that lie in memory for good.

    Args:
        place: where rows (t, n) lie.
        draw: draws a step.
    """

    left = NEVER

    def __init__(self, place: Callable[[I64, I64], Placed], draw: Callable[[], Drawn]) -> None:
        self.place, self.draw = place, draw

    def step(self) -> tuple[Drawn, Placed]:
        """The next step's rows."""
        drawn = self.draw()
        return drawn, self.place(drawn.t_B, drawn.n_B)

    def close(self) -> None:
        """Nothing is under way."""


class DrawnAhead(Straight):
    """The same, drawn by a thread, some steps ahead of the one that is asked for: a GPU waits for no host."""

    def __init__(self, place: Callable[[I64, I64], Placed], draw: Callable[[], Drawn], steps: int) -> None:
        super().__init__(place, draw)
        self._undrawn, self._thread = steps, ThreadPoolExecutor(1)
        self._coming: deque[Future[list[Drawn]]] = deque()
        self._drawn: deque[Drawn] = deque()

    def step(self) -> tuple[Drawn, Placed]:
        """The next step's rows."""
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
    """Rows of a table that lies elsewhere, read some steps ahead.

    Args:
        table: whose rows they are.
        device: where they are brought.
        draw: draws a step of ``size`` rows; called by the thread that reads.
        steps: that may be asked for.
        at_once: steps whose rows lie there at the same time, and are read at once.
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
        """Draws of as many steps as fit, and the reading of their rows; both by the thread that reads."""
        for start in range(0, self.steps, self.at_once):
            drawn = [self.draw() for _ in range(min(self.at_once, self.steps - start))]
            yield lambda out_RD, drawn=drawn: self._read(drawn, out_RD)  # type: ignore[misc]

    def _read(self, drawn: list[Drawn], out_RD: NDArray[Any]) -> tuple[int, list[Drawn]]:
        t_B, n_B = (np.concatenate([getattr(step, side) for step in drawn]) for side in ("t_B", "n_B"))
        self.table.take(t_B, n_B, out_RD[: len(t_B)])
        return len(t_B), drawn

    @property
    def left(self) -> int:
        """Steps whose rows are there."""
        return len(self._drawn) - self._taken

    def step(self) -> tuple[Drawn, Placed]:
        """The next step's rows; where ``left`` is 0, earlier ones are overwritten from now on."""
        if not self.left:
            self._first, _, self._drawn = next(self._coming)
            self._taken = 0
        start = self._first + self._taken * self.size
        drawn, self._taken = self._drawn[self._taken], self._taken + 1
        return drawn, Placed(self.window.x_RD, np.arange(start, start + self.size))

    def close(self) -> None:
        """Wait for the thread."""
        self._coming.close()  # type: ignore[attr-defined]
