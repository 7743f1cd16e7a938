"""Store locks: a lock file with the holder's run id, host, pid and start time. Parts of a run hold a store together.

Lock files change, and stores are created or restructured, under a mutex. On a disk, the operating system releases the
mutex when its holder dies; in a bucket, lock and mutex are renewed objects (see `lease`).
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
    """Part ``index`` of ``count`` concurrent processes on one store. Shard s belongs to part s mod count + 1."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError("part", f"{self.index}/{self.count}", "i/n with 1 ≤ i ≤ n, such as 2/4")

    @staticmethod
    def parse(text: str) -> Part:
        """Parse ``i/n``. Raises ConfigError if it is invalid."""
        numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if numbers is None:
            raise ConfigError("part", text, "i/n with 1 ≤ i ≤ n, such as 2/4")
        return Part(int(numbers[1]), int(numbers[2]))

    def shards(self, count: int) -> range:
        """Return the shards of this part, out of ``count``."""
        return range(self.index - 1, count, self.count)

    @property
    def numbers(self) -> tuple[int, int]:
        """(index, count)."""
        return self.index, self.count

    @property
    def lock_name(self) -> str:
        """Name of the part's lock file."""
        return NAME if self.count == 1 else f"lock-{self.index}-of-{self.count}.json"


WHOLE = Part()


_leases: dict[ObjectPlace, Lease] = {}  # locks in buckets held by this process


@contextmanager
def mutex(store: Place) -> Iterator[None]:
    """Acquire the mutex for changes of locks, manifest, metadata and journal segments, waiting for other processes.

    Raises:
        StoreError: the store cannot be written, or its file system or server does not support locks.
        LockedError: this process held a store in a bucket, and another process has taken it over.
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
    """Own the store, or a part of its shards, inside the ``with`` block.

    The lock of a dead process on this host is taken over, with a message; in a bucket also that of another host that
    was not renewed for three minutes.

    Args:
        take_over: take over all locks of other hosts, whose runs the user knows to have ended.

    Raises:
        LockedError: another run holds the store and is alive or on another host. Different parts with the same count do
            not conflict.
    """
    if isinstance(store, ObjectPlace):
        with _hold_object(store, run, part, take_over):
            yield
        return
    path = store / part.lock_name
    content = Holder.here(run, part.numbers).to_json()
    try:  # starts before the lock is written, because an interrupt may come at any step
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
    """Raise LockedError if this process held a store in a bucket and has lost its lock."""
    for path, held in list(_leases.items()):
        if path.parent == store:
            held.require()


def require_run(store: Place, run: str, part: Part = WHOLE) -> None:
    """Raise LockedError if a run no longer holds its lock. For workers of the run."""
    path = store / part.lock_name
    try:
        mine = Holder.read(path.read_bytes()).run == run
    except FileNotFoundError:
        mine = False
    if not mine:
        raise LockedError(f"{path}: run {run} has lost this lock; its workers stop writing")


def new_run_id() -> str:
    """Create a run id from the UTC time and random digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def _release(path: Path, content: bytes) -> None:
    """Remove a lock if its content is unchanged."""
    try:
        mine = path.read_bytes() == content
    except OSError:
        return  # never written, removed by hand, or not a file
    if mine:
        path.unlink(missing_ok=True)


def _clear_or_refuse(path: Path, part: Part, take_over: bool) -> None:
    try:
        holder = Holder.read(path.read_bytes())
    except FileNotFoundError:
        return  # released in the meantime
    except OSError as error:
        raise LockedError(f"{path}: cannot read lock: {error.strerror}; remove it") from error
    if not holder.alive() or (take_over and not holder.is_here):
        _say_taken(holder)
        path.unlink(missing_ok=True)
    elif not holder.beside(part.numbers):
        raise LockedError(
            f"{path.parent}: locked by {holder}; wait for it to end, or remove {path} if it is no longer running"
        )


def _say_taken(holder: Holder) -> None:
    print(f"taking over the lock of {holder}", file=sys.stderr)


@contextmanager
def _hold_object(store: ObjectPlace, run: str, part: Part, take_over: bool) -> Iterator[None]:
    holder = Holder.here(run, part.numbers, system())
    with mutex(store):
        now = (store / MUTEX).head().changed  # just written, so this is the server's time, as are all times of objects
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
        print(f"cannot release lock {held.place}, which expires after {STALE:.0f} s: {error}", file=sys.stderr)


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
            f"{path.parent}: locked by {holder}, last renewed {max(age, 0):.0f} s ago; wait for it to end. The lock of "
            f"another host expires {STALE:.0f} s after its last renewal, or at once with embed --take-over"
        )
