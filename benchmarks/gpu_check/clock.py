"""Seconds of work on a device: CUDA events on a GPU, the processor's clock elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

FLUSH = 1 << 28  # bytes written between repeats: more than any L2 cache there is
_AHEAD = 1_000_000  # cycles, about half a millisecond: by then the host has queued what is to be timed


class Clock:
    """Times work.

    Args:
        device: where the work runs.
        repeats: timed runs of each piece of work.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self._flush: torch.Tensor | None = None

    def seconds(
        self,
        work: Callable[[], object],
        *,
        warm: int = 3,
        limit: float = 20.0,
        flush: bool = True,
        ahead: bool = True,
        calls: int = 1,
        stream: torch.cuda.Stream | None = None,
    ) -> dict[str, float]:
        """Median, 20th and 80th percentile of one call over the repeats, and how many repeats there were.

        Args:
            work: what is timed; on a GPU it queues work on the stream.
            warm: runs before the first that counts.
            limit: seconds after which no further repeat is begun; one is always made.
            flush: whether the L2 cache is emptied before each repeat.
            ahead: whether the host may queue work before the clock starts, so that short work is timed and not the
                host; not for work of many launches, in which the host's time is part of the price.
            calls: calls of one repeat.
            stream: the stream the work goes to, the current one when left out.
        """
        for _ in range(warm):
            work()
        self.synchronize()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < self.repeats and (not times or time.perf_counter() - began < limit):
            on_gpu = self.device.type == "cuda"
            spent = self._on_gpu(work, flush, ahead, calls, stream) if on_gpu else _on_cpu(work, calls)
            times.append(spent / calls)
        ordered = sorted(times)
        last = len(ordered) - 1
        return {
            "median": statistics.median(ordered),
            "p20": ordered[round(0.2 * last)],
            "p80": ordered[round(0.8 * last)],
            "repeats": len(ordered),
        }

    def _on_gpu(
        self, work: Callable[[], object], flush: bool, ahead: bool, calls: int, stream: torch.cuda.Stream | None
    ) -> float:
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            if flush:
                if self._flush is None:
                    self._flush = torch.empty(FLUSH, dtype=torch.uint8, device=self.device)
                self._flush.zero_()
            if ahead:
                torch.cuda._sleep(_AHEAD)  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) / 1000.0

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _on_cpu(work: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - began
