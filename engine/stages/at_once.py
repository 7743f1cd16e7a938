"""Compute several units of a stage at the same time, each in a process of its own.

On a CPU, processes that have a part of the cores each end sooner than one after another with all of them. Of several
GPUs each process has one.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import torch

from substyle.engine import observability
from substyle.engine.observability import Span
from substyle.engine.probes.dataset import SHARE, budget_of, free_bytes
from substyle.engine.store.table import EmbeddingTable
from substyle.pipelines import processes

_SMALLEST = 1 << 24  # numbers in all tables: below, processes take longer to start than they save
_FEW = 1024  # features: see `_cost`
_OF_A_PROCESS = 3 << 30  # bytes of host memory besides the table
_LOOK_S = 0.5  # between two looks at what is finished
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Places:
    """Where the processes compute.

    Attributes:
        count: number of processes.
        threads: CPU threads of each.
        gpus: what CUDA_VISIBLE_DEVICES is for each; () on a CPU.
    """

    count: int = 1
    threads: int = 0
    gpus: tuple[str, ...] = ()

    @classmethod
    def of(cls, tables: Sequence[EmbeddingTable], device: torch.device, threads: int, *, alone: bool) -> Places:
        """Choose for units with these tables; one process means that none is needed.

        Args:
            device: first device of the stage; alone: whether no other GPU may be used.
            threads: CPU threads at most; 0 for those of torch.
        """
        cores = threads or min(len(os.sched_getaffinity(0)), torch.get_num_threads())
        sizes = [size_of(table) for table in tables]
        closed = sys.stdout is None or sys.stderr is None  # which processes cannot inherit
        if closed or threads == 1 or len(tables) < 2 or sum(sizes) < _SMALLEST:
            return cls()
        gpus: tuple[str, ...] = ()
        if device.type == "cpu":  # with more processes than that, cores would wait for the largest unit
            costs = [_cost(table) for table in tables]
            places = min(cores, max(1, round(sum(costs) / max(costs))))
            held = 2 * max(size * table.x_TND.dtype.itemsize for size, table in zip(sizes, tables, strict=True))
        else:
            gpus = () if alone else _alike(device)
            places, held = len(gpus), max(_beside(table, device) for table in tables)
        room = int(SHARE * free_bytes(_CPU) // (held + _OF_A_PROCESS))
        count = max(1, min(len(tables), places, room))
        return cls(count, max(1, cores // count), gpus[:count])


def size_of(table: EmbeddingTable) -> int:
    """Numbers of a table."""
    return math.prod(table.x_TND.shape)


def _beside(table: EmbeddingTable, device: torch.device) -> int:
    """Bytes of host memory that a table takes beside a GPU."""
    budget = budget_of(table, device)
    how, held = budget.place("auto")
    return budget.needs(how) if held is budget.host else 0


def longest_first(table: EmbeddingTable) -> tuple[int, int]:
    """Sort key of units: by cost, and narrower tables before others of the same cost."""
    return -_cost(table), table.x_TND.shape[-1]


def _cost(table: EmbeddingTable) -> int:
    """Relative time of a unit: its numbers, but probes of few features take as long as those of a thousand, since they
    need more passes."""
    return math.prod(table.x_TND.shape[:-1]) * max(table.x_TND.shape[-1], _FEW)


def _alike(device: torch.device) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES has to be for each GPU of this process that is of the same model as a device."""
    given, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    names = given.split(",") if given else list(map(str, range(count)))
    own = torch.cuda.get_device_name(device)
    return tuple(name for number, name in enumerate(names[:count]) if torch.cuda.get_device_name(number) == own)


Work = Callable[[Path], bool | None]  # writes results into a folder; False if they are not complete


def compute(
    name: str, units: Mapping[str, Work], into: Callable[[str, Work], None], places: Places, *, quiet: bool
) -> None:
    """Compute units in processes. After an error, those that have begun are finished.

    A unit whose process ends, of which too little memory is the usual reason, is computed again in this process, after
    all others.

    Args:
        name: what is computed, for messages.
        units: what writes the results of each unit, in another process; those that take longest first.
        into: puts what a function writes in the place of the unit's results, in a thread of this process.
    """
    shares = processes.Block(8 * len(units))  # finished fraction of each unit
    share_U = np.frombuffer(shares.memory, np.float64)
    pool, again = _Pool(places, shares), list[str]()

    def one(number: int, unit: str, work: Work) -> None:
        if pool.failed.is_set():
            return
        try:
            into(unit, lambda folder: pool.compute(number, work, folder))
        except BrokenProcessPool:
            if pool.failed.is_set():
                raise
            print(f"{name} of {unit}: its process has ended, as if memory ran out; once more, alone", file=sys.stderr)
            again.append(unit)
        except BaseException:
            pool.failed.set()
            raise
        share_U[number] = 1.0

    with (
        observability.stage(f"{name} of {len(units)} backbones", 100, "%", quiet=quiet) as bar,
        ThreadPoolExecutor(places.count) as threads,
    ):
        left = {threads.submit(one, number, *unit) for number, unit in enumerate(units.items())}
        shown, stopped = 0, True
        try:
            while left:
                done, left = wait(left, _LOOK_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                now = int(100 * share_U.mean())
                bar.advance(now - shown)
                shown = now
            stopped = False
        except Exception:
            pool.failed.set()
            wait(left)
            stopped = False
            raise
        finally:
            pool.end(stopped=stopped)
    for unit in again:
        into(unit, units[unit])


class _Pool:
    """Processes, each of which computes one unit at a time.

    Attributes:
        failed: set when no further unit is to begin.
    """

    def __init__(self, places: Places, shares: processes.Block) -> None:
        self.places, self.shares, self.failed = places, shares, Event()
        self._recorded = observability.is_recording()
        self._pools = [self._process(place) for place in range(places.count)]
        self._free = SimpleQueue[int]()
        for place in range(places.count):
            self._free.put(place)

    def _process(self, place: int) -> Any:  # noqa: ANN401
        settings = {"CUDA_VISIBLE_DEVICES": self.places.gpus[place]} if self.places.gpus else {}
        return processes.executor(1, self.places.threads, settings)

    def compute(self, number: int, work: Work, folder: Path) -> bool | None:
        """Compute a unit in a free process. Raises BrokenProcessPool if it ends; another takes its place."""
        place = self._free.get()
        try:
            future = self._pools[place].submit(_compute, work, folder, self.shares.address, number, self._recorded)
            complete: bool | None
            complete, spans = future.result()
        except BrokenProcessPool:
            if not self.failed.is_set():
                self._pools[place] = self._process(place)
            raise
        finally:
            self._free.put(place)
        observability.extend(spans)
        return complete

    def end(self, *, stopped: bool) -> None:
        """End the processes.

        Args:
            stopped: whatever they do, as after Ctrl-C.
        """
        self.failed.set()
        while self._pools:
            self._pools.pop().shutdown(kill_workers=stopped)
        gc.collect()  # semaphores, which are reported as leaked after an interruption


# --- in the processes -------------------------------------------------------------------------------------------------


def _compute(
    work: Work, folder: Path, shares: processes.Address, number: int, recorded: bool
) -> tuple[bool | None, list[Span]]:
    share_U = np.frombuffer(processes.memory(shares), np.float64)

    def share(bar: observability.ProgressBar) -> None:
        share_U[number] = min(bar.n / max(bar.total, 1), 0.99)

    with observability.listening(share), observability.recording() if recorded else nullcontext() as trace:
        complete = work(folder)
    return complete, trace.spans if trace else []
