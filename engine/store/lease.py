"""Locks in a bucket: an object that names its holder, created only if absent, and renewed while it is held.

A holder on this host is dead if its process is; one on another host if its object was not renewed for three minutes. A
takeover replaces exactly the version that was read. A holder that finds its object replaced has lost the lock.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from substyle.engine.store.files import is_running, started
from substyle.engine.store.layout import STRICT, LockedError, StoreError
from substyle.pipelines.storage import ObjectError, ObjectPlace, Version


@dataclass(frozen=True, config=STRICT)
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
    def here(run: str, part: tuple[int, int] = (1, 1), system: str | None = None) -> Holder:
        """Describe this process."""
        me = os.getpid()
        return Holder(run, socket.gethostname(), me, datetime.now(UTC).isoformat(), started(me), part, system)

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

    def beside(self, part: tuple[int, int]) -> bool:
        """Return whether the holder has a different part with the same count."""
        return self.part[1] == part[1] > 1 and self.part[0] != part[0]


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


@contextmanager
def mutex(place: ObjectPlace) -> Iterator[None]:
    """Hold an object exclusively inside the ``with`` block, waiting for other processes. It is then marked as free.

    Raises:
        StoreError: the server does not support conditional writes, or cannot be reached.
        LockedError: the mutex was lost inside the block.
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
        place.unlink()
        raise refused
    return made
