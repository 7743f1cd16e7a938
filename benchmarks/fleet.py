"""Simulation of many workers that fill one store; the plan, the lock and the journal are the product's own.

Discrete events in simulated time: shard times follow a model, workers are slow, join late or die within a shard, and
the driver restarts. Nothing is decoded or embedded, but every finished shard writes a journal record.
"""

from __future__ import annotations

import heapq
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from substyle.engine.embedding.plan import PendingShards, lacking
from substyle.engine.store import compaction, journal, lock
from substyle.engine.store.records import Record
from substyle.pipelines.storage import LocalPlace

_DONE, _DIED, _BACK = range(3)  # shard finished; worker died; worker or shard available


@dataclass(frozen=True)
class Model:
    """Behaviour of the workers.

    Attributes:
        workers: number of workers.
        shard_seconds: median time of a shard on a normal worker; spread: standard deviation of its logarithm.
        slow: fraction of slow workers, each slower by a factor of 1 + Pareto(2.5).
        life: mean seconds until a worker dies; noticed: until its shard is reassigned; rest: until it returns.
        late: fraction of workers that join within the first ``late_seconds``.
        restarts: fractions of shards committed when the driver stops without notice; it restarts ``rest`` later.
    """

    workers: int
    shard_seconds: float
    spread: float
    slow: float = 0.03
    life: float = 6 * 3600.0
    noticed: float = 30.0
    rest: float = 300.0
    late: float = 0.25
    late_seconds: float = 600.0
    restarts: tuple[float, ...] = (1 / 3, 2 / 3)


@dataclass
class Outcome:
    """Result of a simulated run.

    Attributes:
        seconds: simulated duration; busy: until the first worker of the last driver runs out of work.
        useful, wasted: worker seconds spent on committed and on lost shards.
        deaths: number of workers that died.
        plans: real seconds that each driver takes to read the journal and plan.
        journal: real seconds of writing and compacting records.
        calls: file-system calls by kind.
    """

    seconds: float = 0.0
    busy: float = 0.0
    useful: float = 0.0
    wasted: float = 0.0
    deaths: int = 0
    plans: list[float] = field(default_factory=list)
    journal: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)


class Fleet:
    """Workers that embed ``images`` images with one backbone, in shards of ``rows`` rows."""

    def __init__(self, store: Path, model: Model, images: int, rows: int, names: Sequence[str]) -> None:
        self.store, self.model, self.images, self.rows, self.names = (
            LocalPlace(store),
            model,
            images,
            rows,
            tuple(names),
        )
        self.rng = np.random.default_rng(0)
        slow_W = self.rng.random(model.workers) < model.slow
        self.pace_W = np.where(slow_W, 1 + self.rng.pareto(2.5, model.workers), 1.0)
        self.backbone = "vit_base-00000000"
        self.outcome = Outcome()
        self.now = 0.0
        self.events: list[tuple[float, int, int, int, int]] = []  # time, order, kind, worker, shard
        self.order = 0

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.rows)

    def plan(self) -> PendingShards:
        """Read the journal and find the pending shards, as a driver does on start."""
        began = time.perf_counter()
        size_S = np.full(self.shards, self.rows)
        size_S[-1] -= self.shards * self.rows - self.images
        made = lacking(size_S, journal.read_index(self.store), [self.backbone], self.names, lock.WHOLE)
        self.outcome.plans.append(time.perf_counter() - began)
        return made

    def run(self) -> Outcome:
        """Run drivers in turn until no shard is pending."""
        committed = 0
        with counted(self.outcome.calls):
            for share in (*self.model.restarts, 1.0):
                with lock.hold(self.store, lock.new_run_id()):
                    todo = self.plan()
                    if len(todo.shard_W) != self.shards - committed:
                        raise SystemExit(f"{len(todo.shard_W)} shards are pending; expected {self.shards - committed}")
                    committed += self._drive(todo, int(share * self.shards) - committed)
                    if share == 1.0:
                        with lock.mutex(self.store):
                            compaction.compact(self.store)
                self.now += self.model.rest
        self.outcome.seconds = self.now - self.model.rest
        if len(self.plan().shard_W):
            raise SystemExit("shards are still pending after the last driver")
        return self.outcome

    def _drive(self, todo: PendingShards, count: int) -> int:
        """Run one driver until ``count`` shards are committed; shards in progress are then lost."""
        model = self.model
        upkeep = [compaction.Upkeep(self.store, number) for number in range(model.workers)]
        coming, back = iter(todo.shard_W.tolist()), deque[int]()
        begun: dict[int, float] = {}  # start time of each worker's shard
        idle: set[int] = set()
        self.events.clear()
        join_W = np.where(self.rng.random(model.workers) < model.late, self.rng.random(model.workers), 0)
        for worker, delay in enumerate((join_W * model.late_seconds * (self.now == 0)).tolist()):
            self._after(delay, _BACK, worker, -1)
        done = 0
        while done < count:
            self.now, _, kind, worker, shard = heapq.heappop(self.events)
            if kind == _DONE:
                self.outcome.useful += self.now - begun.pop(worker)
                self._commit(shard, upkeep[worker])
                done += 1
            elif kind == _DIED:
                self.outcome.wasted += self.now - begun.pop(worker)
                self.outcome.deaths += 1
                self._after(model.noticed, _BACK, -1, shard)
                self._after(model.rest, _BACK, worker, -1)
                continue
            elif shard >= 0:
                back.append(shard)
                if not idle:
                    continue
                worker = idle.pop()
            given = back.popleft() if back else next(coming, None)
            if given is None:
                idle.add(worker)
                self.outcome.busy = self.outcome.busy if len(idle) > 1 else self.now
                continue
            begun[worker] = self.now
            takes = float(model.shard_seconds * self.pace_W[worker] * np.exp(model.spread * self.rng.normal()))
            dies = float(self.rng.exponential(model.life))
            self._after(min(takes, dies), _DONE if takes < dies else _DIED, worker, given)
        self.outcome.wasted += sum(self.now - since for since in begun.values())
        return done

    def _after(self, delay: float, kind: int, worker: int, shard: int) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + delay, self.order, kind, worker, shard))

    def _commit(self, shard: int, upkeep: compaction.Upkeep) -> None:
        start, stop = shard * self.rows, min(shard * self.rows + self.rows, self.images)
        digests = self.rng.bytes(16 * len(self.names)).hex()
        sums = {name: digests[32 * t : 32 * t + 32] for t, name in enumerate(self.names)}
        record = Record(shard, start, stop, self.backbone, sums, (), 1.0, "simulated")
        began = time.perf_counter()
        upkeep.written(1, journal.write(self.store, record))
        self.outcome.journal += time.perf_counter() - began


_counting: list[Counter[str]] = []
_KINDS = {"os.rename": "renames", "os.remove": "removals", "os.listdir": "lists", "os.mkdir": "folders"}


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _counting:
        return
    if event == "open" and isinstance(arguments[2], int):
        _counting[-1]["creates" if arguments[2] & os.O_CREAT else "opens"] += 1
    elif event in _KINDS:
        _counting[-1][_KINDS[event]] += 1


@contextmanager
def counted(calls: Counter[str]) -> Iterator[None]:
    """Count file-system calls; fsync is counted but skipped, since simulated time does not wait for a disk."""
    if not getattr(counted, "installed", False):
        sys.addaudithook(_hook)
        counted.installed = True  # type: ignore[attr-defined]
    real = os.fsync

    def fsync(_: int) -> None:
        calls["flushes"] += 1

    os.fsync = fsync
    _counting.append(calls)
    try:
        yield
    finally:
        _counting.pop()
        os.fsync = real
