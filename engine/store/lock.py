"""One run owns a store: a lock file with the holder's run id, host, pid and start. Parts of one run hold it together.

All changes of lock files, and the short steps that make or reshape a store, happen under a mutex. On a disk the
operating system releases it when its holder dies; in a bucket both are objects that are renewed (`lease`).
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from substyle.engine.store import lease
from substyle.engine.store.files import write_durably, writing
from substyle.engine.store.layout import LockedError, StoreError
from substyle.engine.store.lease import STALE, Holder, Lease, system
from substyle.kernels.errors import ConfigError
from substyle.pipelines.storage import ObjectError, ObjectPlace, Place

NAME = "lock.json"
LOCKS = "lock*.json"
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

    def shards(self, count: int) -> range:
        """The shards that this part does, of so many."""
        return range(self.index - 1, count, self.count)

    @property
    def numbers(self) -> tuple[int, int]:
        """(index, count)."""
        return self.index, self.count

    @property
    def lock_name(self) -> str:
        """Name of its lock file."""
        return NAME if self.count == 1 else f"lock-{self.index}-of-{self.count}.json"


WHOLE = Part()


_leases: dict[ObjectPlace, Lease] = {}  # the locks in buckets that this process has


@contextmanager
def mutex(store: Place) -> Iterator[None]:
    """The one process that may change locks, manifest, metadata and journal segments now; others wait.

    Raises:
        StoreError: the store cannot be written, or its file system or server has no locks.
        LockedError: it is a store in a bucket that this process has held, and another has taken over.
    """
    if isinstance(store, ObjectPlace):
        require(store)
        with lease.mutex(store / MUTEX):
            yield
        return
    with writing(store / MUTEX):
        descriptor = os.open(store / MUTEX, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        with writing(store / MUTEX):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def hold(store: Place, run: str, part: Part = WHOLE, *, take_over: bool = False) -> Iterator[None]:
    """Own the store, or a part of its shards, for the block.

    A lock whose process is dead (same host, no such process) is taken over with a message; in a bucket also one of
    another host that was not renewed for three minutes.

    Args:
        take_over: take over the locks of other hosts, whatever they say; the user knows that their runs have ended.

    Raises:
        LockedError: a live run, or one on another host, holds it; parts of one number n may run side by side.
    """
    if isinstance(store, ObjectPlace):
        with _hold_object(store, run, part, take_over):
            yield
        return
    path = store / part.lock_name
    content = Holder.here(run, part.numbers).to_json()
    try:  # from before the lock is there: an interrupt may come between any two steps
        with mutex(store):
            for other in sorted(store.glob(LOCKS)):
                _clear_or_refuse(other, part, take_over)
            write_durably(path, content)
        yield
    finally:
        try:
            _release(path, content)
        except KeyboardInterrupt:
            _release(path, content)
            raise


def require(store: Place) -> None:
    """Raise LockedError when this process has held a store in a bucket, and another has taken it over."""
    for path, held in list(_leases.items()):
        if path.parent == store:
            held.require()


def require_run(store: Place, run: str, part: Part = WHOLE) -> None:
    """Hold a run's worker to what the run owns: raise LockedError where another run, or none, holds the lock by now."""
    path = store / part.lock_name
    try:
        mine = Holder.read(path.read_bytes()).run == run
    except FileNotFoundError:
        mine = False
    if not mine:
        raise LockedError(f"{path}: is no longer that of run {run}; its workers write no more")


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


def _clear_or_refuse(path: Path, part: Part, take_over: bool) -> None:
    try:
        holder = Holder.read(path.read_bytes())
    except FileNotFoundError:
        return  # released meanwhile
    except OSError as error:
        raise LockedError(f"{path}: this lock cannot be read: {error.strerror}; remove it") from error
    if not holder.alive() or (take_over and not holder.is_here):
        _say_taken(holder)
        path.unlink(missing_ok=True)
    elif not holder.beside(part.numbers):
        raise LockedError(
            f"{path.parent}: {holder} holds this store. Wait for it to end; if it cannot be running any more, "
            f"remove {path}."
        )


def _say_taken(holder: Holder) -> None:
    print(f"taking over the lock of {holder}, which is no longer running", file=sys.stderr)


# --- in a bucket ------------------------------------------------------------------------------------------------------


@contextmanager
def _hold_object(store: ObjectPlace, run: str, part: Part, take_over: bool) -> Iterator[None]:
    holder = Holder.here(run, part.numbers, system())
    with mutex(store):
        now = (store / MUTEX).head().changed  # just written: by the server's clock, as all times of objects are
        for other in sorted(store.glob(LOCKS)):
            _clear_or_refuse_object(other, part, now, take_over)
        with writing(store):
            held = Lease.create(store / part.lock_name, holder)
    _leases[held.place] = held
    try:
        yield
    finally:
        del _leases[held.place]
        _give_back(store, held)


def _give_back(store: ObjectPlace, held: Lease) -> None:
    try:
        with mutex(store):
            if held.end():
                held.place.unlink(missing_ok=True)
    except (StoreError, ObjectError) as error:
        print(f"{error} The lock {held.place} stays until it is {STALE:.0f} s old.", file=sys.stderr)


def _clear_or_refuse_object(path: ObjectPlace, part: Part, now: datetime | None, take_over: bool) -> None:
    try:
        content, version = path.read_version()
    except FileNotFoundError:
        return
    holder = Holder.read(content)
    age = (now - version.changed).total_seconds() if now and version.changed else 0.0
    gone = not holder.alive() or (not holder.is_here and (take_over or age > STALE))
    if gone:
        _say_taken(holder)
        path.unlink(missing_ok=True)
    elif not holder.beside(part.numbers):
        raise LockedError(
            f"{path.parent}: {holder} holds this store and renewed its lock {max(age, 0):.0f} s ago. Wait for it to "
            f"end; on another host it counts as gone {STALE:.0f} s after that, or at once for embed --take-over."
        )
