"""One run owns a store: a lock file with the holder's run id, host, pid and start. Parts of one run hold it together.

All changes of lock files, and the short steps that make or reshape a store, happen under a mutex that the operating
system releases when its holder dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from substyle.engine.store.errors import LockedError
from substyle.engine.store.files import write_durably, writing
from substyle.engine.store.processes import is_running, started
from substyle.kernels.errors import ConfigError

NAME = "lock.json"
MUTEX = ".mutex"


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``count`` processes that fill one store side by side; part s mod count + 1 does shard s."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError("part", f"{self.index}/{self.count}", "i/n with 1 ≤ i ≤ n, such as 2/4")

    @staticmethod
    def parse(text: str) -> Part:
        """Part i of n from ``i/n``. Raises ConfigError on anything else."""
        numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if numbers is None:
            raise ConfigError("part", text, "i/n with 1 ≤ i ≤ n, such as 2/4")
        return Part(int(numbers[1]), int(numbers[2]))

    def does(self, shard: int) -> bool:
        """Whether this part does that shard."""
        return shard % self.count == self.index - 1

    def shards(self, count: int) -> range:
        """The shards that this part does, of so many."""
        return range(self.index - 1, count, self.count)

    @property
    def lock_name(self) -> str:
        """Name of its lock file."""
        return NAME if self.count == 1 else f"lock-{self.index}-of-{self.count}.json"


WHOLE = Part()


@dataclass(frozen=True)
class _Holder:
    run: str
    host: str
    pid: int
    since: str
    start: str | None = None
    part: tuple[int, int] = (1, 1)

    @staticmethod
    def of(data: Mapping[str, Any]) -> _Holder:
        """The holder that a lock file names. Raises ValueError, KeyError or TypeError on other data."""
        index, count = data.get("part", (1, 1))
        holder = _Holder(**{**data, "part": (index, count)})
        texts = (holder.run, holder.host, holder.since, holder.start or "")
        numbers = (holder.pid, index, count)
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            raise TypeError("not a holder")
        return holder

    def __str__(self) -> str:
        part = f"part {self.part[0]}/{self.part[1]}, " if self.part[1] > 1 else ""
        return f"run {self.run} ({part}pid {self.pid} on {self.host}, since {self.since})"

    def alive(self) -> bool:
        # of a process on another host nothing is known: it counts as running
        return self.host != socket.gethostname() or is_running(self.pid, self.start)


@contextmanager
def mutex(store: Path) -> Iterator[None]:
    """The one process that may change locks, manifest, metadata and journal segments now; others wait.

    Raises:
        StoreError: the store cannot be written, or its file system has no locks.
    """
    with writing(store / MUTEX):
        descriptor = os.open(store / MUTEX, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        with writing(store / MUTEX):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def hold(store: Path, run: str, part: Part = WHOLE) -> Iterator[None]:
    """Own the store, or a part of its shards, for the block.

    A lock whose process is dead (same host, no such process) is taken over with a message.

    Raises:
        LockedError: a live run, or one on another host, holds it; parts of one number n may run side by side.
    """
    path = store / part.lock_name
    me = os.getpid()
    mine = _Holder(run, socket.gethostname(), me, datetime.now(UTC).isoformat(), started(me), (part.index, part.count))
    content = json.dumps(asdict(mine)).encode()
    try:  # from before the lock is there: an interrupt may come between any two steps
        with mutex(store):
            for other in sorted(store.glob("lock*.json")):
                _clear_or_refuse(other, part)
            write_durably(path, content)
        yield
    finally:
        try:
            _release(path, content)
        except KeyboardInterrupt:
            _release(path, content)
            raise


def new_run_id() -> str:
    """An id for one run: its start in UTC and a few random digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def _release(path: Path, content: bytes) -> None:
    """Remove a lock if it is still the one that was written."""
    try:
        mine = path.read_bytes() == content
    except OSError:
        return  # never written, removed by hand, or something else that stands there
    if mine:
        path.unlink(missing_ok=True)


def _clear_or_refuse(path: Path, part: Part) -> None:
    try:
        holder = _Holder.of(json.loads(path.read_text()))
    except FileNotFoundError:
        return  # released meanwhile
    except OSError as error:
        raise LockedError(f"{path}: this lock cannot be read: {error.strerror}; remove it") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # locks are written whole: this is none that a run holds
        holder = _Holder("unknown", socket.gethostname(), -1, "unknown")
    if not holder.alive():
        print(f"taking over the lock of {holder}, which is no longer running", file=sys.stderr)
        path.unlink(missing_ok=True)
        return
    beside = holder.part[1] == part.count > 1 and holder.part[0] != part.index
    if not beside:
        raise LockedError(
            f"{path.parent}: {holder} holds this store. Wait for it to end; if it cannot be running any more, "
            f"remove {path}."
        )
