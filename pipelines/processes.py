"""Processes that compute for this one, and memory that they share with it."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.dispatch import keep_freed_memory

_LOOK_S = 0.5  # between two looks at whether the parent is there
_SAFE_PATH = "PYTHONSAFEPATH"
_environment = threading.Lock()


@contextmanager
def safe_path() -> Iterator[None]:
    """Python processes that are started within the block import nothing from the current folder by themselves."""
    with _environment:
        before = os.environ.get(_SAFE_PATH)
        os.environ[_SAFE_PATH] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SAFE_PATH]
            else:
                os.environ[_SAFE_PATH] = before


def executor(
    count: int, threads: int, settings: Mapping[str, str] | None = None, begin: Callable[[], None] | None = None
) -> Any:  # noqa: ANN401 - loky has no types
    """Processes that end with this one, however it ends, not by Ctrl-C, and print to stderr only.

    Unlike those of the standard library they do not run the main module, which may be a script.

    Args:
        count: number of processes.
        threads: CPU threads of each.
        settings: further environment variables.
        begin: called in each process before the first task.
    """
    import loky  # type: ignore[import-untyped]

    unlimited = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}  # it takes 300 MB of shared memory for a leak
    variables = {"OMP_NUM_THREADS": str(threads), _SAFE_PATH: "1", **unlimited, **(settings or {})}
    with safe_path():  # trackers of resources get no settings
        resource_tracker.ensure_running()
        return loky.ProcessPoolExecutor(
            count, initializer=_begin, initargs=(os.getpid(), threads, begin), env=variables
        )


def _begin(parent: int, threads: int, begin: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what libraries print is no answer of a command
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()  # of intermediate results
    if begin is not None:
        begin()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


class Block:
    """Anonymous memory that worker processes open by the path of this process's descriptor."""

    def __init__(self, size: int) -> None:
        file = os.memfd_create("substyle")
        weakref.finalize(self, os.close, file)
        os.truncate(file, size)
        self.memory = mmap.mmap(file, size)
        status = os.fstat(file)
        self.address = Address(f"/proc/{os.getpid()}/fd/{file}", (status.st_dev, status.st_ino), size)

    def array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Its first bytes, uint8 of a shape."""
        return np.ndarray(shape, np.uint8, self.memory)


@dataclass(frozen=True)
class Address:
    """Where a process finds a block; ``file`` tells it from another of the same descriptor, before or after it."""

    path: str
    file: tuple[int, int]
    size: int


_mapped: dict[Address, mmap.mmap] = {}


def memory(address: Address) -> mmap.mmap:
    """The memory of a block. Raises OSError for another file, which the program may have opened since."""
    if address not in _mapped:
        for other in [each for each in _mapped if each.size != address.size or each.path == address.path]:
            del _mapped[other]
        with open(address.path, "r+b") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != address.file:
                raise OSError(f"{address.path} is another file")
            _mapped[address] = mmap.mmap(file.fileno(), address.size)
    return _mapped[address]
