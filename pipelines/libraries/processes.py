"""Transformations of libraries, computed in processes of their own beside decoding and backbones.

Libraries draw from generators that the whole process shares, so each photograph is transformed by one process that
does nothing else meanwhile, after its generators were seeded from the photograph's key. Pixels travel in memory that
the processes share.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.kernels import processes
from substyle.kernels.dispatch import keep_freed_memory
from substyle.kernels.errors import SubstyleError
from substyle.kernels.processes import Address, Block, memory
from substyle.pipelines import libraries
from substyle.pipelines.libraries.library import Applied
from substyle.pipelines.transforms import base

_KEPT = 256  # transformations that a process keeps; with drawn parameters, each photograph has one of its own
_ENDED = (
    "a process that transforms photographs has ended: is there enough memory, and does a script that is run have "
    'if __name__ == "__main__"?'
)
_PATIENCE_S = 60.0  # for one photograph, before the processes are ended
_MEMORY = 4 << 30  # bytes that a process may allocate beyond what it starts with


@dataclass(frozen=True)
class Job:
    """Photographs ``start``, … of a batch to transform.

    Attributes:
        arguments: drawn arguments of each photograph.
        seeds: of each photograph.
        shape: (B, S, S, 3), of source and target.
    """

    call: base.LibraryCall
    name: str
    start: int
    arguments: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    shape: tuple[int, ...]
    source: Address
    target: Address


class Rendering:
    """Variants of one batch: computed a few transformations ahead of the one that is asked for.

    A context manager: within it, processes may write to its memory. After an error it ends them, whatever they do.

    Args:
        pool: the processes.
        canvas_BSSC: (B, S, S, 3) uint8, copied.
        transformations: in the order in which they will be asked for.
        drawn: their drawn arguments, by name.
        keys_B: Philox keys of the images.
    """

    def __init__(
        self,
        pool: Pool,
        canvas_BSSC: NDArray[np.uint8],
        transformations: Sequence[base.Transformation],
        drawn: Mapping[str, base.Arrays],
        keys_B: NDArray[np.uint64],
    ) -> None:
        self.pool, self.shape = pool, canvas_BSSC.shape
        self._waiting, self._begun = deque(transformations), dict[str, tuple[Block, list[Future[str]]]]()
        self._drawn, self._keys_B = drawn, keys_B
        self._parts = max(1, min(len(keys_B), -(-pool.processes // len(transformations))))
        self._source = pool.block(canvas_BSSC.nbytes)
        self._source.array(self.shape)[:] = canvas_BSSC

    def __enter__(self) -> Rendering:
        for _ in range(2 * self.pool.processes):
            self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind not in (None, GeneratorExit) or not self._stopped():
            self.pool.end()

    def _begin(self) -> None:
        if not self._waiting:
            return
        transformation = self._waiting.popleft()
        assert transformation.library is not None
        target = self.pool.block(self._source.memory.size())
        arguments = _arguments(transformation, self._drawn[transformation.name], len(self._keys_B))
        seeds = transformation.seeds(self._keys_B).tolist()
        size = -(-len(seeds) // self._parts)
        futures: list[Future[str]] = []
        self._begun[transformation.name] = target, futures  # first: a part that has begun writes to the target
        for start in range(0, len(seeds), size):
            job = Job(
                *(transformation.library, transformation.name, start),
                *(tuple(arguments[start : start + size]), tuple(seeds[start : start + size]), self.shape),
                *(self._source.address, target.address),
            )
            futures.append(self.pool.submit(_render, job))

    def take(self, name: str) -> NDArray[np.uint8]:
        """Return the variants of a transformation. Shape: (B, S, S, 3) uint8.

        Raises:
            SubstyleError: the library failed, took too long, or returned pixels of another shape or dtype.
        """
        while name not in self._begun:
            self._begin()
        target, futures = self._begun[name]
        try:
            said = [future.result(_PATIENCE_S * len(self._keys_B)) for future in futures]
        except (BrokenProcessPool, CancelledError) as error:  # cancelled: by an error in another batch
            raise SubstyleError(f"{name}: {_ENDED}") from error
        except TimeoutError as error:
            raise SubstyleError(f"{name}: took more than {_PATIENCE_S:.0f} s for a photograph") from error
        if any(said):
            raise SubstyleError(next(filter(None, said)))
        del self._begun[name]
        self._begin()
        pixels_BSSC = target.array(self.shape).copy()
        self.pool.free(target)
        return pixels_BSSC

    def _stopped(self) -> bool:
        """Give the memory back once nothing runs any more; False if something goes on."""
        futures = [future for _, some in self._begun.values() for future in some]
        for future in futures:
            future.cancel()
        if wait(futures, _PATIENCE_S).not_done:
            return False
        for block in (self._source, *(target for target, _ in self._begun.values())):
            self.pool.free(block)
        return True


def _arguments(transformation: base.Transformation, drawn: base.Arrays, images: int) -> list[dict[str, Any]]:
    """Drawn arguments of each photograph, as they stand in the suite file."""
    found: list[dict[str, Any]] = [{} for _ in range(images)]
    for parameter in transformation.parameters:
        values_B = drawn[parameter.name]
        exact = {}
        if isinstance(parameter, base.Choice):  # which float32 would round
            exact = {np.asarray(value, np.float32).tobytes(): value for value in parameter.values}
        for own, value in zip(found, values_B, strict=True):
            own[parameter.name] = exact.get(value.tobytes(), value.tolist())
    return found


class Pool:
    """Processes and the memory they share."""

    def __init__(self, processes: int) -> None:
        self.processes, self._owner = processes, os.getpid()
        self._executor: ProcessPoolExecutor | None = None
        self._free: list[Block] = []
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., str], *arguments: Any) -> Future[str]:  # noqa: ANN401
        """Run a function in a process, in a new one if those before have ended."""
        with self._lock, processes.safe_path():
            if self._executor is not None:
                try:
                    return self._executor.submit(function, *arguments)
                except BrokenProcessPool:
                    self._executor = None
            self._executor = ProcessPoolExecutor(self.processes, get_context("spawn"), _begin_process)
            return self._executor.submit(function, *arguments)

    def end(self) -> None:
        """End the processes at once. A fork of the program leaves those of the program alone."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            for process in list((executor._processes or {}).values()):  # public only from Python 3.14 on
                process.kill()
            executor.shutdown(wait=True, cancel_futures=True)

    def block(self, size: int) -> Block:
        """A block of this size, which nobody else has."""
        with self._lock:
            found = next((each for each in self._free if each.memory.size() == size), None)
            if found is not None:
                self._free.remove(found)
                return found
        return Block(size)

    def free(self, block: Block) -> None:
        """Let others have a block that no process writes to. Those of other sizes are given up."""
        with self._lock:
            size = block.memory.size()
            self._free = [*(each for each in self._free if each.memory.size() == size), block][-4 * self.processes :]

    def begin(self, transformations: Sequence[base.Transformation]) -> None:
        """Start the processes and let them import the libraries, without waiting."""
        calls = {t.library.of.partition(":")[0]: t.library for t in transformations if t.library is not None}
        for _ in range(self.processes):
            for call in calls.values():
                self.submit(_import, call.of)


def pool(processes: int) -> Pool:
    """Processes of this program, started once they are needed. A fork of it has its own."""
    return _pool(processes, os.getpid())


@functools.cache
def _pool(processes: int, _: int) -> Pool:
    made = Pool(processes)
    atexit.register(made.end)  # an executor that is collected while the interpreter ends finds its module gone
    return made


# --- in the processes -------------------------------------------------------------------------------------------------


def _begin_process() -> None:
    """One thread and bounded memory for each process; they end with the program, and not before."""
    processes.begin()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()  # of intermediate results
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    limit = (int(own.split()[1]) << 10) + _MEMORY
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _import(of: str) -> str:
    prefix, _, name = of.partition(":")
    libraries.library(prefix).parameters(name)
    return ""


@functools.lru_cache(maxsize=_KEPT)
def _made(of: str, fixed: str, drawn: str) -> Applied:
    prefix, _, name = of.partition(":")
    return libraries.library(prefix).make(name, {**json.loads(fixed), **json.loads(drawn)})


def _render(job: Job) -> str:
    """Transform photographs of a job; returns an error, or an empty string."""
    try:
        source = np.ndarray(job.shape, np.uint8, memory(job.source))
        target = np.ndarray(job.shape, np.uint8, memory(job.target))
        for index, (arguments, seed) in enumerate(zip(job.arguments, job.seeds, strict=True), job.start):
            applied = _made(job.call.of, job.call.arguments, json.dumps(arguments))
            _seed(seed)
            found = applied(source[index].copy(), seed)
            if not isinstance(found, np.ndarray) or found.shape != job.shape[1:] or found.dtype != np.uint8:
                what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
                return f"{job.name} ({job.call.of}) returned {what}, expected uint8 {job.shape[1:]}"
            target[index] = found
    except BaseException as error:  # noqa: BLE001 - whatever a library raises, also to end the process
        return f"{job.name} ({job.call.of}) failed: {type(error).__name__}: {error}"
    return ""


def _seed(seed: int) -> None:
    """Seed the generators that libraries draw from."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setRNGSeed(seed & 0x7FFFFFFF)
