"""Who holds a lock: the run, its host and process, and which part of the shards it does."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from substyle.engine.store.processes import is_running, started


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
