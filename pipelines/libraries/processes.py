"""Transformations of libraries, computed in processes of their own beside decoding and backbones.

Libraries draw from generators that the whole process shares, so each photograph is transformed by one process that
does nothing else meanwhile, after its generators were seeded from the photograph's key. Pixels travel in memory that
the processes share.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import random
import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.errors import SubstyleError
from substyle.pipelines import libraries, processes
from substyle.pipelines.libraries.library import Applied
from substyle.pipelines.transforms import base

_KEPT = 256  # transformations that a process keeps; with drawn parameters, each photograph has one of its own
_PATIENCE_S = 60.0  # for one photograph, before the processes are ended
_MEMORY = 4 << 30  # bytes that a process may allocate beyond what it starts with


class Rendering:
    """Variants of one batch: computed a few transformations ahead of the one that is asked for.

    A context manager. After an error it ends the processes, whatever they do.

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
        self._pool, self._drawn, self._keys_B = pool, drawn, keys_B
        self._waiting, self._begun = deque(transformations), deque[tuple[int, list[Any]]]()
        self._parts = max(1, min(len(keys_B), -(-pool.processes // len(transformations))))
        ahead = min(2 * pool.processes, len(transformations))
        self._shape = (1 + ahead, *canvas_BSSC.shape)  # the canvases, and the variants that are computed at a time
        self._block = pool.block((1 + ahead) * canvas_BSSC.nbytes)
        self._pixels_nBSSC = self._block.array(self._shape)
        self._pixels_nBSSC[0] = canvas_BSSC

    def __enter__(self) -> Rendering:
        for place in range(1, self._shape[0]):
            self._begin(place)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        futures = [future for _, some in self._begun for future in some]
        if kind not in (None, GeneratorExit) or wait(futures, _PATIENCE_S).not_done:
            self._pool.end()
        else:
            self._pool.spare.append(self._block)

    def _begin(self, place: int) -> None:
        """Let the processes write the variants of the next transformation, if any, to a place in the shared memory."""
        if not self._waiting:
            return
        transformation = self._waiting.popleft()
        assert transformation.library is not None
        arguments = _arguments(transformation, self._drawn[transformation.name], len(self._keys_B))
        seeds = transformation.seeds(self._keys_B).tolist()
        call, memory = (transformation.library, transformation.name), (self._block.address, self._shape, place)
        futures = []
        for part in np.array_split(np.arange(len(seeds)), self._parts):
            images = [(index, arguments[index], seeds[index]) for index in part.tolist()]
            futures.append(self._pool.submit(_render, *call, images, *memory))
        self._begun.append((place, futures))

    def take(self, name: str) -> NDArray[np.uint8]:
        """Return the variants of the next transformation. Shape: (B, S, S, 3) uint8.

        Args:
            name: of the transformation, for errors.

        Raises:
            SubstyleError: the library failed, took too long, or returned pixels of another shape or dtype.
        """
        place, futures = self._begun[0]
        try:
            for future in futures:
                future.result(_PATIENCE_S * len(self._keys_B))
        except RuntimeError as error:  # of loky; also after an error in another batch
            ended = "a process that transforms photographs has ended: is there enough memory?"
            raise SubstyleError(f"{name}: {ended}") from error
        except TimeoutError as error:
            raise SubstyleError(f"{name}: took more than {_PATIENCE_S:.0f} s for a photograph") from error
        self._begun.popleft()
        pixels_BSSC: NDArray[np.uint8] = self._pixels_nBSSC[place].copy()
        self._begin(place)
        return pixels_BSSC


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
    """Processes, started once they are needed."""

    def __init__(self, count: int) -> None:
        self.processes, self._owner = count, os.getpid()
        self._executor: Any = None
        self.spare = deque[processes.Block](maxlen=2)  # blocks that nobody writes to; new memory takes time to map
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., None], *arguments: Any) -> Any:  # noqa: ANN401 - loky has no types
        """Run a function in a process, in a new one if those before have ended."""
        with self._lock:
            if self._executor is not None:
                try:
                    return self._executor.submit(function, *arguments)
                except BrokenProcessPool:
                    pass
            self._executor = processes.executor(self.processes, 1, begin=_limit_memory)
            return self._executor.submit(function, *arguments)

    def block(self, size: int) -> processes.Block:
        """A spare block of this size, or a new one."""
        with suppress(IndexError):
            if (block := self.spare.pop()).memory.size() == size:
                return block
        return processes.Block(size)

    def end(self) -> None:
        """End the processes at once. A fork of the program leaves those of the program alone."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(kill_workers=True)

    def begin(self, transformations: Sequence[base.Transformation]) -> None:
        """Start the processes and let them import the libraries, without waiting."""
        calls = {t.library.of.partition(":")[0]: t.library for t in transformations if t.library is not None}
        for _ in range(self.processes):
            for call in calls.values():
                self.submit(_import, call.of)


def pool(count: int) -> Pool:
    """Processes of this program. A fork of it has its own."""
    return _pool(count, os.getpid())


@functools.cache
def _pool(count: int, _: int) -> Pool:
    return Pool(count)


# --- in the processes -------------------------------------------------------------------------------------------------


def _limit_memory() -> None:
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    limit = (int(own.split()[1]) << 10) + _MEMORY
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _import(of: str) -> None:
    prefix, _, name = of.partition(":")
    libraries.library(prefix).parameters(name)
    gc.freeze()  # loky collects garbage every second, if psutil is not installed


@functools.lru_cache(maxsize=_KEPT)
def _made(of: str, fixed: str, drawn: str) -> Applied:
    prefix, _, name = of.partition(":")
    return libraries.library(prefix).make(name, {**json.loads(fixed), **json.loads(drawn)})


def _render(
    call: base.LibraryCall,
    name: str,
    images: Sequence[tuple[int, Mapping[str, Any], int]],
    address: processes.Address,
    shape: tuple[int, ...],
    place: int,
) -> None:
    """Transform photographs of a batch.

    Args:
        images: index in the batch, drawn arguments and seed of each photograph.
        address: of shared memory with canvases and variants of this shape (n, B, S, S, 3).
        place: of the variants.

    Raises:
        SubstyleError: the library failed, or returned pixels of another shape or dtype.
    """
    pixels_nBSSC = np.ndarray(shape, np.uint8, processes.memory(address))
    for index, arguments, seed in images:
        try:
            applied = _made(call.of, call.arguments, json.dumps(arguments))
            _seed(seed)
            found = applied(pixels_nBSSC[0, index].copy(), seed)
        except BaseException as error:  # noqa: BLE001 - whatever a library raises, also to end the process
            raise SubstyleError(f"{name} ({call.of}) failed: {type(error).__name__}: {error}") from None
        if not isinstance(found, np.ndarray) or found.shape != shape[2:] or found.dtype != np.uint8:
            what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise SubstyleError(f"{name} ({call.of}) returned {what}, expected uint8 {shape[2:]}")
        pixels_nBSSC[place, index] = found


def _seed(seed: int) -> None:
    """Seed the generators that libraries draw from."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setRNGSeed(seed & 0x7FFFFFFF)
