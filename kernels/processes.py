"""Processes that compute for this one, and memory that they share with it."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, parent_process

import numpy as np
from numpy.typing import NDArray

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


def begin(parent: int = 0) -> None:
    """Call first in a process: it ends with its parent, however that ends, not by Ctrl-C, and prints to stderr only.

    Args:
        parent: process id of the parent, if multiprocessing has not started the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what libraries print is no answer of a command
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    if not parent:
        process = parent_process()
        assert process is not None
        connection.wait([process.sentinel])
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
