"""Which shard goes to which worker next, and what becomes of a shard whose worker died or failed.

Knows numbers of workers and shards alone. A worker may hold several shards, those it is about to finish and the next;
when it fails, any may be the reason. All are given out again, each to a worker that holds no other, so that a shard
that fails everywhere is told from one that was only near.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Trouble:
    """A shard with which workers have failed.

    Attributes:
        on: workers; tries: how often; why: the last reason.
    """

    on: set[int] = field(default_factory=set)
    tries: int = 0
    why: str = ""


class Dispatch:
    """Gives out shards until each is finished or given up.

    Args:
        shards: numbers, in the order in which they are given out.
        retries: how often a shard is given out again after it failed.

    Attributes:
        lost: shards that were given up.
    """

    def __init__(self, shards: Iterable[int], retries: int) -> None:
        self.retries = retries
        self.lost: dict[int, Trouble] = {}
        self._fresh = deque(shards)
        self._again: list[int] = []
        self._trouble: dict[int, Trouble] = {}
        self._held: dict[int, list[int]] = {}
        self._in_a_row = 0

    @property
    def over(self) -> bool:
        """Whether nothing is left to give out or to wait for."""
        return not (self._fresh or self._again or any(self._held.values()))

    @property
    def hopeless(self) -> bool:
        """Whether so many shards were given up one after the other that the rest would be too: a full disk, say."""
        return self._in_a_row >= max(4, 2 * len(self._held))

    def join(self, worker: int) -> None:
        """A worker is there."""
        self._held[worker] = []

    def held(self, worker: int) -> list[int]:
        """What a worker has in hand."""
        return list(self._held.get(worker, ()))

    def next(self, worker: int) -> int | None:
        """The shard to give to a worker; None where there is none for it now."""
        held = self._held[worker]
        if any(shard in self._trouble for shard in held):
            return None
        shard = None if held else next((shard for shard in self._again if self._may(worker, shard)), None)
        if shard is not None:
            self._again.remove(shard)
        elif self._fresh:
            shard = self._fresh.popleft()
        if shard is not None:
            held.append(shard)
        return shard

    def written(self, worker: int, shard: int) -> None:
        """A worker has finished a shard."""
        self._held[worker].remove(shard)
        self._trouble.pop(shard, None)
        self._in_a_row = 0

    def failed(self, worker: int, why: str) -> list[int]:
        """A worker has died or failed, and is no longer there. Returns the shards it had in hand."""
        held = self._held.pop(worker, [])
        for shard in held:
            trouble = self._trouble.setdefault(shard, Trouble())
            trouble.on.add(worker)
            trouble.tries, trouble.why = trouble.tries + 1, why
            if len(held) == 1 and trouble.tries > self.retries:
                self.lost[shard] = self._trouble.pop(shard)
                self._in_a_row += 1
            else:
                self._again.append(shard)
        return held

    def _may(self, worker: int, shard: int) -> bool:
        """Whether a shard goes to that worker: it has not failed there, or has failed on all that are there."""
        on = self._trouble[shard].on
        return worker not in on or on >= self._held.keys()
