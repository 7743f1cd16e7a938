"""Store locks: a lock file with the holder's run id, host, pid and start time. Parts of a run hold a store together.

Locks change, and stores are created or restructured, under a mutex. On a disk, both are locks of the operating system,
which releases them when their holder dies; the lock file says who that is. In a bucket, lock and mutex are objects that
name their holder, created only if absent, and renewed while they are held. A holder on this host is dead if its process
is; one on another host if its object was not renewed for three minutes. A takeover replaces exactly the version that
was read. A holder that finds its object replaced has lost the lock.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import pydantic.dataclasses
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from substyle.engine.store.files import is_running, started, write_once, writing
from substyle.engine.store.layout import STRICT, LockedError, StoreError
from substyle.errors import ConfigError
from substyle.pipelines.storage import LocalPlace, ObjectError, ObjectPlace, Place, Version, place

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
    def lock_name(self) -> str:
        """Name of the part's lock file."""
        return NAME if self.count == 1 else f"lock-{self.index}-of-{self.count}.json"


WHOLE = Part()


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Holder:
    """Holder of a store, or of a part of its shards.

    Attributes:
        run: id of the run; host, pid, start: its process (see `files.started`); since: when it acquired the lock.
        part: (index, count).
        system: boot id and PID namespace, for locks in a bucket, which hosts with the same name may share.
        beat: number of renewals, for locks in a bucket.
    """

    run: str
    host: str
    pid: int
    since: str
    start: str | None = None
    part: tuple[int, int] = (1, 1)
    system: str | None = None
    beat: int = 0

    @staticmethod
    def here(run: str, part: Part = WHOLE, system: str | None = None) -> Holder:
        """Describe this process."""
        me, since, numbers = os.getpid(), datetime.now(UTC).isoformat(), (part.index, part.count)
        return Holder(run, socket.gethostname(), me, since, started(me), numbers, system)

    @staticmethod
    def read(text: bytes) -> Holder:
        """Parse a lock. Invalid content gives a holder that is not running, because locks are written atomically."""
        try:
            return _HOLDER.validate_json(text)
        except ValueError:
            return Holder("unknown", socket.gethostname(), -1, "unknown")

    def to_json(self) -> bytes:
        """Encode as JSON, the inverse of `read`."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        part = f"part {self.part[0]}/{self.part[1]}, " if self.part[1] > 1 else ""
        return f"run {self.run} ({part}pid {self.pid} on {self.host}, since {self.since})"

    @property
    def is_here(self) -> bool:
        """Whether the holder is a process of this system, so that it can be checked."""
        return self.host == socket.gethostname() and self.system in (None, system())

    def alive(self) -> bool:
        """Return whether the holder may be running. Processes on other hosts count as running."""
        return not self.is_here or is_running(self.pid, self.start)

    def has_other_part(self, part: Part) -> bool:
        """Return whether the holder has a different part with the same count."""
        return self.part[1] == part.count > 1 and self.part[0] != part.index


_HOLDER = TypeAdapter(Holder)


def system() -> str | None:
    """Return boot id and PID namespace, which distinguish hosts and containers with the same name; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


BEAT = 20.0  # seconds between renewals
STALE = 180.0  # seconds without renewal after which a lock of another host expires
_FREE = b""  # like the mutex file of a local store
_POLL = 0.05, 1.0  # initial and maximum seconds between attempts to acquire a mutex


class Lease:
    """A lock object created by this process and renewed on a background thread until it is released."""

    def __init__(self, place: ObjectPlace, holder: Holder, version: Version) -> None:
        self.place, self.holder, self._version = place, holder, version
        self._renewed = time.monotonic()
        self._ended = threading.Event()
        self._lost = ""
        self._thread = threading.Thread(target=self._renew, name=f"renew {place.name}", daemon=True)
        self._thread.start()

    @staticmethod
    def create(place: ObjectPlace, holder: Holder) -> Lease:
        """Acquire a free lease. Raises FileExistsError if it is held."""
        content = holder.to_json()
        try:
            return Lease(place, holder, place.create(content))
        except FileExistsError:
            found, version = place.read_version()
            if found != content:  # equal content: the response was lost and the request retried
                raise
            return Lease(place, holder, version)

    def require(self) -> None:
        """Raise LockedError if another process has taken the lease over, or may have."""
        if not self._lost and time.monotonic() - self._renewed > STALE:
            self._lost = f"could not be renewed for {STALE:.0f} s"
        if self._lost:
            raise LockedError(f"{self.place}: lock {self._lost}; finished shards are kept")

    def end(self) -> bool:
        """Stop renewing and mark the object as free. Returns whether the lease was held until now."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            self._put(_FREE)
        return not self._lost

    def _renew(self) -> None:
        while not self._ended.wait(BEAT) and not self._lost:
            began = time.monotonic()
            self.holder = replace(self.holder, beat=self.holder.beat + 1)
            # retried at the next beat; `require` detects when it is too late
            with suppress(ObjectError):
                self._put(self.holder.to_json())
                self._renewed = began

    def _put(self, content: bytes) -> None:
        """Replace the version last written by this process; if it has changed, the lease is lost."""
        try:
            self._version = self.place.exchange(content, self._version)
        except FileExistsError:
            try:
                found, version = self.place.read_version()
            except FileNotFoundError:
                found, version = None, self._version
            # if a response was lost, the object is the one that this process wrote
            if found == content or (found and Holder.read(found).run == self.holder.run):
                self._version = version
            else:
                self._lost = "was taken over or removed"


def _take(place: ObjectPlace) -> Lease:
    holder = Holder.here(secrets.token_hex(8), system=system())
    content = holder.to_json()
    wait, since = _POLL[0], time.monotonic()
    seen: Version | None = None
    while True:
        try:
            return Lease(place, holder, _first(place, content))
        except FileExistsError:
            pass
        try:
            found, version = place.read_version()
            if seen is None or (seen.e_tag, seen.version) != (version.e_tag, version.version):
                seen, since = version, time.monotonic()
            other = Holder.read(found)
            if found == content:  # the response to our own request was lost
                return Lease(place, holder, version)
            if found == _FREE or not other.alive() or time.monotonic() - since > STALE:
                if found != _FREE:
                    print(f"taking over {place} of {other}, which is no longer running", file=sys.stderr)
                taken = place.exchange(content, version)
                return Lease(place, holder, taken)
        except (FileNotFoundError, FileExistsError):
            continue  # another process was faster
        time.sleep(wait)
        wait = min(wait * 1.5, _POLL[1])


def _first(place: ObjectPlace, content: bytes) -> Version:
    """Create a mutex and verify that the server supports conditional writes. Raises FileExistsError if it exists."""
    refused = StoreError(
        f"{place.root}: the server does not support conditional writes (If-None-Match, If-Match), which locks need; "
        "use another server or a local store"
    )
    try:
        made = place.create(content)
    except ObjectError as error:
        if error.status == HTTPStatus.NOT_IMPLEMENTED:
            raise refused from error
        raise
    stranger = Version('"0"' if made.e_tag else None, "0" if made.version else None)
    attempts: list[Callable[[], Version]] = [
        lambda: place.create(b"second"),
        lambda: place.exchange(b"second", stranger),
    ]
    for attempt in attempts:
        try:
            attempt()
        except FileExistsError:
            continue
        place.remove()
        raise refused
    return made


_leases: dict[ObjectPlace, Lease] = {}  # locks in buckets held by this process


@contextmanager
def mutex(store: Place) -> Iterator[None]:
    """Acquire the mutex for changes of locks, manifest, metadata and journal, waiting for other processes.

    Raises:
        StoreError: the store cannot be written, or its file system or server does not support locks.
        LockedError: this process held a store in a bucket or its mutex, and another process has taken it over.
    """
    if isinstance(store, ObjectPlace):
        require(store)
        lease = _take(store / MUTEX)
        try:
            yield
            lease.require()
        finally:
            lease.end()
        return
    with writing(store / MUTEX):
        held = FileLock(str(store / MUTEX)).acquire()
    with held:
        yield


@contextmanager
def hold(store: Path | Place, run: str, part: Part = WHOLE, *, take_over: bool = False) -> Iterator[None]:
    """Own the store, or a part of its shards, inside the ``with`` block.

    The lock of a dead process on this host is taken over, with a message; in a bucket also that of another host that
    was not renewed for three minutes. On a disk, that of another host stays: file systems may not share locks.

    Args:
        take_over: take over all locks of other hosts, whose runs the user knows to have ended.

    Raises:
        LockedError: another run holds the store and is alive or on another host. Different parts with the same count do
            not conflict.
    """
    store = place(store)
    if isinstance(store, ObjectPlace):
        with _hold_object(store, run, part, take_over):
            yield
        return
    path, lock = store / part.lock_name, _file_lock(store / part.lock_name)
    content = Holder.here(run, part).to_json()
    try:  # starts before the lock is acquired, because an interrupt may come at any step
        with mutex(store), writing(path):
            for other in sorted(store.glob(LOCKS)):
                _clear_or_refuse(other, part, take_over)
            try:
                lock.acquire()
            except Timeout:  # its lock.json was removed by hand
                raise LockedError(f"{path}: another process holds this lock; wait for it to end") from None
            write_once(path, content)
        yield
    finally:
        try:
            _release(path, content)
        except KeyboardInterrupt:
            _release(path, content)
            raise
        finally:
            lock.release()


def _file_lock(path: Place) -> FileLock:
    """The lock of the operating system beside a lock file."""
    return FileLock(str(path.parent / f".{path.name}"), timeout=1)  # s, in which a holder that ends releases it


def _is_free(path: Place) -> bool:
    try:
        with _file_lock(path).acquire(timeout=0):
            return True
    except Timeout:
        return False


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


def _release(path: Place, content: bytes) -> None:
    """Remove a lock if its content is unchanged."""
    try:
        mine = path.read_bytes() == content
    except OSError:
        return  # never written, removed by hand, or not a file
    if mine:
        path.remove()


def _clear_or_refuse(path: Place, part: Part, take_over: bool, now: datetime | None = None) -> None:
    """Remove a lock whose holder is gone. Raises LockedError for one that does not hold another part."""
    try:
        if isinstance(path, ObjectPlace):
            content, version = path.read_version()
        else:
            content, version = path.read_bytes(), Version(None, None)
    except FileNotFoundError:
        return  # released in the meantime
    except OSError as error:
        raise LockedError(f"{path}: cannot read lock: {error.strerror}; remove it") from error
    age = 0.0
    advice = f"; wait for it to end, or remove {path} if it is no longer running"
    if now is not None and version.changed is not None:
        age = (now - version.changed).total_seconds()
        advice = (
            f", last renewed {max(age, 0):.0f} s ago; wait for it to end. The lock of another host expires "
            f"{STALE:.0f} s after its last renewal, or at once with embed --take-over"
        )
    holder = Holder.read(content)
    if isinstance(path, LocalPlace):
        # a run of an earlier version is alive without a lock of the operating system
        gone = (not holder.alive() or (take_over and not holder.is_here)) and _is_free(path)
    else:
        gone = not holder.alive() or (not holder.is_here and (take_over or age > STALE))
    if gone:
        print(f"taking over the lock of {holder}", file=sys.stderr)
        path.remove()
    elif not holder.has_other_part(part):
        raise LockedError(f"{path.parent}: locked by {holder}{advice}")


@contextmanager
def _hold_object(store: ObjectPlace, run: str, part: Part, take_over: bool) -> Iterator[None]:
    with mutex(store):
        now = (store / MUTEX).head().changed  # just written, so this is the server's time, as are all times of objects
        for other in sorted(store.glob(LOCKS)):
            _clear_or_refuse(other, part, take_over, now)
        with writing(store):
            held = Lease.create(store / part.lock_name, Holder.here(run, part, system()))
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
                held.place.remove()
    except (StoreError, ObjectError) as error:
        print(f"cannot release lock {held.place}, which expires after {STALE:.0f} s: {error}", file=sys.stderr)
