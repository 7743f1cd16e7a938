"""Transformations of libraries, computed in processes of their own beside decoding and backbones.

Libraries draw from generators that the whole process shares, so each photograph is transformed by one process that
does nothing else meanwhile, after its generators were seeded from the photograph's key. Pixels travel in memory that
the processes share.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import random
import signal
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count
from multiprocessing import connection, get_context, parent_process
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.kernels.errors import SubstyleError
from substyle.pipelines import libraries
from substyle.pipelines.libraries.library import Applied
from substyle.pipelines.transforms import base

_KEPT = 256  # transformations that a process keeps; with drawn parameters, each photograph has one of its own
_serial = count()


class Block:
    """Anonymous memory that worker processes open by the path of this process's descriptor."""

    def __init__(self, size: int) -> None:
        file = os.memfd_create("substyle")
        weakref.finalize(self, os.close, file)
        os.truncate(file, size)
        self.memory = mmap.mmap(file, size)
        self.address = Address(f"/proc/{os.getpid()}/fd/{file}", next(_serial), size)

    def array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Its first bytes, uint8 of a shape."""
        return np.ndarray(shape, np.uint8, self.memory)


@dataclass(frozen=True)
class Address:
    """Where a process finds a block; ``serial`` tells one from an earlier one of the same descriptor."""

    path: str
    serial: int
    size: int


@dataclass(frozen=True)
class Job:
    """Photographs ``start``, … of a batch to transform.

    Attributes:
        code: digest of the code that makes the pixels, where the program has read it.
        arguments: drawn arguments of each photograph.
        seeds: of each photograph.
        shape: (B, S, S, 3), of source and target.
    """

    call: base.LibraryCall
    code: str
    name: str
    start: int
    arguments: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    shape: tuple[int, ...]
    source: Address
    target: Address


class Rendering:
    """Variants of one batch: computed a few transformations ahead of the one that is asked for.

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
        for _ in range(2 * pool.processes):
            self._begin()

    def _begin(self) -> None:
        if not self._waiting:
            return
        transformation = self._waiting.popleft()
        assert transformation.library is not None
        target = self.pool.block(self._source.memory.size())
        arguments = _arguments(transformation, self._drawn[transformation.name], len(self._keys_B))
        seeds = transformation.seeds(self._keys_B).tolist()
        size = -(-len(seeds) // self._parts)
        futures = [
            self.pool.executor.submit(
                _render,
                Job(
                    *(transformation.library, transformation.code, transformation.name, start),
                    *(tuple(arguments[start : start + size]), tuple(seeds[start : start + size]), self.shape),
                    *(self._source.address, target.address),
                ),
            )
            for start in range(0, len(seeds), size)
        ]
        self._begun[transformation.name] = target, futures

    def take(self, name: str) -> NDArray[np.uint8]:
        """Return the variants of a transformation. Shape: (B, S, S, 3) uint8.

        Raises:
            SubstyleError: the library failed, or returned pixels of another shape or dtype.
        """
        while name not in self._begun:
            self._begin()
        target, futures = self._begun.pop(name)
        try:
            said = [future.result() for future in futures]
        except BrokenProcessPool as error:
            self.pool.broken()
            reason = "a process that transforms photographs has ended; is there enough memory?"
            raise SubstyleError(f"{name}: {reason}") from error
        self._begin()
        if any(said):
            raise SubstyleError(next(filter(None, said)))
        pixels_BSSC = target.array(self.shape).copy()
        self.pool.free(target)
        return pixels_BSSC

    def close(self) -> None:
        """Wait for what runs, so that its memory can be used again."""
        self._waiting.clear()
        for target, futures in self._begun.values():
            for future in futures:
                future.cancel()
            wait(futures)
            self.pool.free(target)
        self._begun.clear()
        self.pool.free(self._source)


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
        self.processes = processes
        self.executor = ProcessPoolExecutor(processes, get_context("spawn"), _begin_process)
        # while the interpreter ends, an executor that is collected finds its module gone
        weakref.finalize(self, self.executor.shutdown, wait=False, cancel_futures=True)
        self._free: list[Block] = []
        self._lock = threading.Lock()

    def block(self, size: int) -> Block:
        """A block of this size, which nobody else has."""
        with self._lock:
            found = next((each for each in self._free if each.memory.size() == size), None)
            if found is not None:
                self._free.remove(found)
                return found
        return Block(size)

    def free(self, block: Block) -> None:
        """Let others have a block. Those of other sizes are given back to the system."""
        with self._lock:
            size = block.memory.size()
            self._free = [*(each for each in self._free if each.memory.size() == size), block][-4 * self.processes :]

    def begin(self, transformations: Sequence[base.Transformation]) -> None:
        """Start the processes and let them import the libraries, without waiting."""
        calls = {t.library.of.partition(":")[0]: t.library for t in transformations if t.library is not None}
        for _ in range(self.processes):
            for call in calls.values():
                self.executor.submit(_import, call.of)

    def broken(self) -> None:
        """Forget the processes, so that the next pool has new ones."""
        _pool.cache_clear()
        self.executor.shutdown(wait=False, cancel_futures=True)


def pool(processes: int) -> Pool:
    """Processes of this program, started once they are needed. A fork of it has its own."""
    return _pool(processes, os.getpid())


@functools.cache
def _pool(processes: int, _: int) -> Pool:
    return Pool(processes)


# --- in the processes -------------------------------------------------------------------------------------------------


def _begin_process() -> None:
    """One thread for each process; they end with the program, however it ends, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@functools.lru_cache(maxsize=64)
def _opened(address: Address) -> mmap.mmap:
    with open(address.path, "r+b") as file:
        return mmap.mmap(file.fileno(), address.size)


def _import(of: str) -> None:
    prefix, _, name = of.partition(":")
    libraries.library(prefix).parameters(name)


@functools.lru_cache(maxsize=_KEPT)
def _made(of: str, code: str, fixed: str, drawn: str) -> Applied:
    prefix, _, name = of.partition(":")
    library = libraries.library(prefix)
    if base.code_of(library.code(name)) != code:
        raise SubstyleError("its code has changed since the run began")
    return library.make(name, {**json.loads(fixed), **json.loads(drawn)})


def _render(job: Job) -> str:
    """Transform photographs of a job; returns an error, or an empty string."""
    import torch

    source = np.ndarray(job.shape, np.uint8, _opened(job.source))
    target = np.ndarray(job.shape, np.uint8, _opened(job.target))
    expected = job.shape[1:]
    for index, (arguments, seed) in enumerate(zip(job.arguments, job.seeds, strict=True), job.start):
        try:
            applied = _made(job.call.of, job.code, job.call.arguments, json.dumps(arguments))
            random.seed(seed)
            np.random.seed(seed)  # the generator that libraries draw from
            torch.default_generator.manual_seed(seed)
            found = applied(source[index].copy(), seed)
        except Exception as error:  # noqa: BLE001 - whatever a library raises
            return f"{job.name} ({job.call.of}) failed: {type(error).__name__}: {error}"
        if not isinstance(found, np.ndarray) or found.shape != expected or found.dtype != np.uint8:
            what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            return f"{job.name} ({job.call.of}) returned {what}, expected uint8 {expected}"
        target[index] = found
    return ""
