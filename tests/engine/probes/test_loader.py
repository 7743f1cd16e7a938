"""Rows on their way to a GPU, told by streams whose work is done at the first or at the last moment that is allowed.

What overtakes work that it should have waited for gives other rows than those that were read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from substyle.engine.probes import loader
from substyle.engine.probes.loader import DoubleBuffer, Job

CUDA, ROWS, WIDTH = torch.device("cuda", 0), 4, 3


class Stream:
    """A fake stream: work runs in order, as late as allowed or immediately."""

    def __init__(self, eager: bool) -> None:
        self.eager, self.work, self.done = eager, list[Callable[[], object]](), 0
        self.lock = threading.RLock()

    def queue(self, work: Callable[[], object]) -> None:
        self.work.append(work)
        if self.eager:
            self.run(len(self.work))

    def run(self, end: int) -> None:
        with self.lock:
            while self.done < end:
                self.done += 1
                self.work[self.done - 1]()


class GPU:
    """Fake streams, events and tensors."""

    def __init__(self, *, copies_at_once: bool) -> None:
        self.copies, self.compute = Stream(copies_at_once), Stream(False)
        self.current = threading.local()

    @property
    def here(self) -> Stream:
        """Stream of the current thread."""
        return getattr(self.current, "stream", self.compute)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.current.stream = stream
        yield
        self.current.stream = self.compute

    @contextmanager
    def device(self, device: object) -> Iterator[None]:
        yield

    def made(self, tensor: object) -> SimpleNamespace:
        stream, end = self.here, len(self.here.work)
        return SimpleNamespace(synchronize=lambda: stream.run(end))

    def after(self, event: SimpleNamespace | None, device: object) -> None:
        if event is not None:
            self.here.queue(event.synchronize)


class OnGPU:
    """Fake memory with queued copies."""

    def __init__(self, gpu: GPU, rows: torch.Tensor) -> None:
        self.gpu, self.rows = gpu, rows

    def __getitem__(self, own: slice) -> OnGPU:
        return OnGPU(self.gpu, self.rows[own])

    def copy_(self, host: torch.Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self.gpu.here.queue(lambda: self.rows.copy_(host))


@pytest.fixture(params=["copies at the first moment", "copies at the last moment"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> GPU:
    made = GPU(copies_at_once=request.param == "copies at the first moment")

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: object = None, pin_memory: bool = False) -> Any:  # noqa: ANN401
        assert pin_memory is (device is None)
        memory = torch.full(shape, -1.0, dtype=dtype)
        return memory if pin_memory else OnGPU(made, memory)

    monkeypatch.setattr(loader, "torch", SimpleNamespace(empty=empty, cuda=made))
    monkeypatch.setattr(loader, "side_stream", lambda device: made.copies)
    monkeypatch.setattr(loader, "made", made.made)
    monkeypatch.setattr(loader, "after", made.after)
    return made


def jobs(counts: list[int]) -> Iterator[Job[int]]:
    for number, count in enumerate(counts):

        def job(out_RD: np.ndarray[Any, Any], number: int = number, count: int = count) -> tuple[int, int]:
            out_RD[:count] = 100 * number + np.arange(count)[:, None]
            return count, number

        yield job


def test_rows_arrive_and_stay_until_they_are_read(gpu: GPU) -> None:
    there: Any = DoubleBuffer[int](ROWS, WIDTH, torch.float16, CUDA)
    counts, read = [4, 4, 3, 4, 1], []
    for first, count, number in there.through(jobs(counts)):
        assert first == ROWS * (number % 2)

        def work(own: slice = slice(first, first + count)) -> None:
            read.append(there.x_RD.rows[own].clone())

        gpu.compute.queue(work)
    gpu.compute.run(len(gpu.compute.work))
    assert [len(rows) for rows in read] == counts
    for number, rows in enumerate(read):
        expected = (100 * number + torch.arange(len(rows)))[:, None].expand(-1, WIDTH)
        assert torch.equal(rows, expected.half())


def test_nothing_to_read(gpu: GPU) -> None:
    there: Any = DoubleBuffer[int](ROWS, WIDTH, torch.float16, CUDA)
    assert list(there.through(jobs([]))) == []
