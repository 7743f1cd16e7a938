"""Locks in a bucket: an object that names its holder, put only where none is, and renewed while it is held.

No system releases it when its holder dies. A holder on this host is looked for among the processes; one on another host
counts as gone when its object was not renewed for three minutes. Whoever takes a lease over replaces the very version
that was met, and a holder that finds its own replaced has lost it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from substyle.engine.store.files import is_running, started
from substyle.engine.store.layout import LockedError, StoreError
from substyle.pipelines.storage import ObjectError, ObjectPlace, Version

# Who holds a lock: the run, its host and process, and which part of the shards it does.


@dataclass(frozen=True)
class Holder:
    """Who holds a store, or a part of its shards.

    Attributes:
        run: id of the run; host, pid, start: its process (see `processes.started`); since: when it took the lock.
        part: (index, count).
        system: of a lock in a bucket, which several hosts of one name may reach: the system's start and the space in
            which it numbers processes.
        beat: of a lock in a bucket: how often it was renewed.
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
    def here(run: str, part: tuple[int, int] = (1, 1), system: str | None = None) -> Holder:
        """This process."""
        me = os.getpid()
        return Holder(run, socket.gethostname(), me, datetime.now(UTC).isoformat(), started(me), part, system)

    @staticmethod
    def read(text: bytes) -> Holder:
        """The holder that a lock names; for another text one that never ran, because locks are written whole."""
        try:
            return Holder._of(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return Holder("unknown", socket.gethostname(), -1, "unknown")

    @staticmethod
    def _of(data: Mapping[str, Any]) -> Holder:
        index, count = data.get("part", (1, 1))
        holder = Holder(**{**data, "part": (index, count)})
        texts = (holder.run, holder.host, holder.since, holder.start or "", holder.system or "")
        numbers = (holder.pid, index, count, holder.beat)
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            raise TypeError("not a holder")
        return holder

    def to_json(self) -> bytes:
        """What `read` reads."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        part = f"part {self.part[0]}/{self.part[1]}, " if self.part[1] > 1 else ""
        return f"run {self.run} ({part}pid {self.pid} on {self.host}, since {self.since})"

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this host, of which it is known whether it runs."""
        return self.host == socket.gethostname() and self.system in (None, system())

    def alive(self) -> bool:
        """Whether it may still run: of a process on another host nothing is known, and it counts as running."""
        return not self.is_here or is_running(self.pid, self.start)

    def beside(self, part: tuple[int, int]) -> bool:
        """Whether it does another part of the same number of parts."""
        return self.part[1] == part[1] > 1 and self.part[0] != part[0]


def system() -> str | None:
    """What tells this system's processes from those of another host or container of the same name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


BEAT = 20.0  # seconds between two renewals
STALE = 180.0  # seconds without one, after which a holder on another host counts as gone
_FREE = b""  # as the file of a local store has it
_POLL = 0.05, 1.0  # seconds between two looks at a mutex that somebody has, at first and at most


class Lease:
    """An object that this process has put and renews on a thread of its own until it is given back."""

    def __init__(self, place: ObjectPlace, holder: Holder, version: Version) -> None:
        self.place, self.holder, self._version = place, holder, version
        self._renewed = time.monotonic()
        self._ended = threading.Event()
        self._lost = ""
        self._thread = threading.Thread(target=self._renew, name=f"renew {place.name}", daemon=True)
        self._thread.start()

    @staticmethod
    def create(place: ObjectPlace, holder: Holder) -> Lease:
        """Take a lease that nobody has. Raises FileExistsError where somebody has it."""
        content = holder.to_json()
        try:
            return Lease(place, holder, place.create(content))
        except FileExistsError:
            found, version = place.read_version()
            if found != content:  # else the answer was lost and the request was made again
                raise
            return Lease(place, holder, version)

    def require(self) -> None:
        """Raise LockedError when another process has taken it over, or may have done so by now."""
        if not self._lost and time.monotonic() - self._renewed > STALE:
            self._lost = f"could not be renewed for {STALE:.0f} s"
        if self._lost:
            raise LockedError(f"{self.place}: this lock {self._lost}. What was finished before is kept.")

    def end(self) -> bool:
        """Renew it no longer; mark its object as free. Returns whether it was held until now."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            self._put(_FREE)
        return not self._lost

    def _renew(self) -> None:
        while not self._ended.wait(BEAT) and not self._lost:
            began = time.monotonic()
            self.holder = replace(self.holder, beat=self.holder.beat + 1)
            # no connection now: it is tried again later, and `require` knows when that is too late
            with suppress(ObjectError):
                self._put(self.holder.to_json())
                self._renewed = began

    def _put(self, content: bytes) -> None:
        """Replace what this process has put before; where it is not there any more, the lease is lost."""
        try:
            self._version = self.place.exchange(content, self._version)
        except FileExistsError:
            try:
                found, version = self.place.read_version()
            except FileNotFoundError:
                found, version = None, self._version
            # where the answer to a request was lost, what is there is what this process has put
            if found == content or (found and Holder.read(found).run == self.holder.run):
                self._version = version
            else:
                self._lost = "was taken over"


@contextmanager
def mutex(place: ObjectPlace) -> Iterator[None]:
    """Be the one process that has this object for the block; others wait. It stays, and says that it is free.

    Raises:
        StoreError: the server does not know conditional writes, or cannot be reached.
        LockedError: the mutex was lost meanwhile.
    """
    lease = _take(place)
    try:
        yield
        lease.require()
    finally:
        lease.end()


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
            if found == content:  # the answer to our own request was lost
                return Lease(place, holder, version)
            if found == _FREE or not other.alive() or time.monotonic() - since > STALE:
                if found != _FREE:
                    print(f"taking over {place} of {other}, which is no longer running", file=sys.stderr)
                taken = place.exchange(content, version)
                return Lease(place, holder, taken)
        except (FileNotFoundError, FileExistsError):
            continue  # somebody was quicker
        time.sleep(wait)
        wait = min(wait * 1.5, _POLL[1])


def _first(place: ObjectPlace, content: bytes) -> Version:
    """Put a mutex where none is, on a server that is shown to keep its conditions. Raises FileExistsError."""
    refused = StoreError(
        f"{place.root}: this server does not keep the conditions of a write (If-None-Match, If-Match), without which "
        "processes cannot share a store. Use a server that does, or a local store"
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
        place.unlink()
        raise refused
    return made
