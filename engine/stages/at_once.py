"""Compute several units of a stage at the same time, each in a process of its own.

On a CPU, processes that have a part of the cores each end sooner than one after another with all of them. Of several
GPUs each process has one.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import loky  # type: ignore[import-untyped]
import numpy as np
import torch

from substyle.engine import devices, observability
from substyle.engine.observability import Span
from substyle.engine.probes.dataset import SHARE, free_bytes
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import processes
from substyle.kernels.errors import SubstyleError

_SMALLEST = 1 << 24  # numbers in all tables: below, processes take longer to start than they save
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
    def of(cls, tables: Sequence[EmbeddingTable], device: str, threads: int) -> Places:
        """Choose for units with these tables; one process means that none is needed.

        Args:
            device: setting of the stage; a GPU with a number is the only one.
            threads: setting of the stage, CPU threads at most; 0 for all cores.
        """
        cores = threads or len(os.sched_getaffinity(0))
        sizes = [table.x_TND.shape[0] * table.x_TND.shape[1] * table.x_TND.shape[2] for table in tables]
        if sum(sizes) < _SMALLEST or len(tables) < 2:
            return cls()
        target = devices.resolve(device).torch_device
        most = max(size * table.x_TND.dtype.itemsize for size, table in zip(sizes, tables, strict=True))
        gpus: tuple[str, ...] = ()
        if target.type == "cpu":
            places, held = cores, 2 * most
        else:
            gpus = _visible() if ":" not in device else ()
            places, held = len(gpus), 0 if most <= SHARE * free_bytes(target) else most
        room = int(SHARE * free_bytes(_CPU) // (held + _OF_A_PROCESS))
        count = max(1, min(len(tables), places, room))
        return cls(count, max(1, cores // count), gpus[:count])


def _visible() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES has to be for each GPU of this process."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else list(map(str, range(torch.cuda.device_count())))
    return tuple(names[: torch.cuda.device_count()])


Work = Callable[[Path], bool | None]  # writes results into a folder; False if they are not complete


def compute(
    name: str, units: Mapping[str, Work], into: Callable[[str, Work], None], places: Places, *, quiet: bool
) -> None:
    """Compute units in processes. After an error, those that have begun are finished.

    Args:
        name: what is computed, for messages.
        units: what writes the results of each unit, in another process.
        into: puts what a function writes in the place of the unit's results, in a thread of this process.

    Raises:
        SubstyleError: a process has ended.
    """
    shares = processes.Block(8 * len(units))  # finished fraction of each unit
    share_U = np.frombuffer(shares.memory, np.float64)
    recorded = observability.is_recording()
    pools = [_process(places.threads, gpu) for gpu in places.gpus or ("",) * places.count]
    free = SimpleQueue[int]()
    for place in range(len(pools)):
        free.put(place)

    def one(number: int, unit: str, work: Work) -> None:
        def computed(folder: Path) -> bool | None:
            place = free.get()
            try:
                future = pools[place].submit(_compute, work, folder, shares.address, number, recorded)
                complete: bool | None
                complete, spans = future.result()
            except BrokenProcessPool as error:
                what = "a process has ended: is there enough memory? With threads = 1 there is no other"
                raise SubstyleError(f"{name} of {unit}: {what}") from error
            finally:
                free.put(place)
            observability.extend(spans)
            return complete

        into(unit, computed)
        share_U[number] = 1.0

    with (
        observability.stage(f"{name} of {len(units)} backbones", 100, "%", quiet=quiet) as bar,
        ThreadPoolExecutor(places.count) as threads,
    ):
        left = {threads.submit(one, number, *unit) for number, unit in enumerate(units.items())}
        shown, stopped = 0, False
        try:
            while left:
                done, left = wait(left, _LOOK_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                now = int(100 * share_U.mean())
                bar.advance(now - shown)
                shown = now
        except BaseException as error:
            stopped = not isinstance(error, Exception)  # by Ctrl-C
            for future in left:
                future.cancel()
            wait(() if stopped else left)
            raise
        finally:
            while pools:
                pools.pop().shutdown(kill_workers=stopped)
            gc.collect()  # semaphores, which are reported as leaked after an interruption


def _process(threads: int, gpu: str) -> loky.ProcessPoolExecutor:
    """A process that computes one unit at a time. Unlike those of the standard library it does not run the program's
    main module, which may be a script."""
    settings = {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
    return loky.ProcessPoolExecutor(1, initializer=_begin, initargs=(os.getpid(), threads), env=settings)


# --- in the processes -------------------------------------------------------------------------------------------------


def _begin(parent: int, threads: int) -> None:
    processes.begin(parent)
    torch.set_num_threads(threads)


def _compute(
    work: Work, folder: Path, shares: processes.Address, number: int, recorded: bool
) -> tuple[bool | None, list[Span]]:
    share_U = np.frombuffer(processes.memory(shares), np.float64)

    def share(_: str, done: int, total: int, __: float) -> None:
        share_U[number] = min(done / max(total, 1), 0.99)

    with observability.listening(share), observability.recording() if recorded else nullcontext() as trace:
        complete = work(folder)
    return complete, trace.spans if trace else []
