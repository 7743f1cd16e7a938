"""Scaling of planner, lock and journal to 10^9 photographs × 31 variants on 512 workers.

`Fleet` simulates many workers that fill one store, as discrete events in computed time: shard times follow a model,
workers are slow, join late or die within a shard, and the driver restarts. Nothing is decoded or embedded. Real and
timed are the planning, the lock, the writing and compaction of records, and the reading of a journal. Records omit
their per-image notes, whose cost is measured separately on one full record.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.harness import OURS, RESULTS, Row, Timing
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.embedding.plan import PendingShards, lacking
from substyle.engine.estimate.plan import plan
from substyle.engine.estimate.roofline import DEVICES
from substyle.engine.store import compaction, journal, lock, records
from substyle.engine.store.layout import MAX_ROWS
from substyle.engine.store.records import ImageNote, Record
from substyle.pipelines.storage import LocalPlace
from substyle.pipelines.transforms.registry import suite

NAME = "scale"
QUESTION = "do planner, lock and journal carry a thousand million photographs in 31 variants on 512 workers?"
WORKERS = 512
BACKBONE = "timm:vit_base_patch16_224"
SIZES = {"quick": (10**6, 10**7), "full": (10**7, 10**8, 10**9)}


_DONE, _DIED, _BACK = range(3)  # shard finished; worker died; worker or shard available


@dataclass(frozen=True)
class Model:
    """Behaviour of the workers.

    Attributes:
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
    """

    seconds: float = 0.0
    busy: float = 0.0
    useful: float = 0.0
    wasted: float = 0.0
    deaths: int = 0
    plans: list[float] = field(default_factory=list)
    journal: float = 0.0


class Fleet:
    """Workers that embed ``images`` images with one backbone, in shards of ``rows`` rows."""

    def __init__(self, store: Path, model: Model, images: int, rows: int, names: Sequence[str]) -> None:
        self.store, self.model, self.images, self.rows = LocalPlace(store), model, images, rows
        self.names = tuple(names)
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
        # simulated time does not wait for a disk
        with patch.object(os, "fsync", lambda _: None):
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


def run(quick: bool) -> list[Row]:
    """Simulate runs of growing size, to find what grows faster than the number of photographs."""
    names = suite("substance31")
    made = plan(Study(NAME, (BackboneChoice(BACKBONE),)), 10**9, DEVICES["h100"])
    photograph = 3600 * made.hours / made.photographs
    model = Model(WORKERS, MAX_ROWS * photograph, _spread())
    sizes = SIZES["quick" if quick else "full"]
    rows = [row for images in sizes for row in _rows(model, images, names, headline=images == sizes[-1])]
    return [*rows, _notes(names)]


def _spread() -> float:
    """Standard deviation of the logarithm of a batch's time, from the saved result of ViT-B/16 on two cores."""
    kept = json.loads((RESULTS / "embed.json").read_text())
    timing = next(row["timings"][OURS] for row in kept["rows"] if row["name"] == "ViT-B/16")
    return max(math.log(timing["p80"] / timing["p20"]) / 1.683, 0.01)  # p80 - p20 of a standard normal


def _rows(model: Model, images: int, names: tuple[str, ...], *, headline: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="substyle-scale-") as place:
        fleet = Fleet(Path(place), model, images, MAX_ROWS, names)
        outcome = fleet.run()
        index, unfinished = _reading(fleet)
        facts = _facts(fleet, outcome)
        what = f"10^{round(math.log10(images))} photographs"
        commit = Timing.of([outcome.journal])
        return [
            Row(f"plan a run over {what}, nothing done", "shards", fleet.shards, {OURS: Timing.of(outcome.plans[:1])},
                headline=headline),
            Row(f"commit and compact a shard's record, {what}; without fsync", "records", fleet.shards,
                {OURS: commit}, facts=facts, headline=headline),
            Row(f"load a finished journal of {fleet.shards:,} records", "calls", 1, {OURS: index}, headline=headline),
            Row(f"say which of {fleet.shards * len(names):,} embeddings of shards lack", "calls", 1, {OURS: unfinished},
                headline=headline),
        ]  # fmt: skip


def _reading(fleet: Fleet) -> tuple[Timing, Timing]:
    """Time loading a journal and querying it for finished shards, in seconds."""
    loading, asking = [], []
    for _ in range(3):
        began = time.perf_counter()
        index = journal.read_index(fleet.store)
        loaded = time.perf_counter()
        if not index.finished(fleet.backbone, fleet.names, fleet.shards).all():
            raise SystemExit("shards are still pending after the last driver")
        loading.append(loaded - began)
        asking.append(time.perf_counter() - loaded)
    return Timing.of(loading), Timing.of(asking)


def _facts(fleet: Fleet, outcome: Outcome) -> dict[str, Any]:
    files = [path for path in (fleet.store / journal.FOLDER).rglob("*") if path.is_file()]
    return {
        "workers": fleet.model.workers,
        "shard_rows": fleet.rows,
        "shard_seconds": round(fleet.model.shard_seconds, 3),
        "service_times": "H100 roofline of `substyle plan`; spread of the measured ViT-B/16",
        "simulated_hours": round(outcome.seconds / 3600, 4),
        "all_busy_share": round(outcome.busy / outcome.seconds, 4),
        "wasted_share": round(outcome.wasted / (outcome.useful + outcome.wasted), 5),
        "deaths": outcome.deaths,
        "driver_restarts": len(outcome.plans) - 2,
        "plan_seconds": [round(seconds, 3) for seconds in outcome.plans],
        "journal_files": len(files),
        "journal_bytes": sum(path.stat().st_size for path in files),
    }


def _notes(names: tuple[str, ...]) -> Row:
    """Measure the notes of a full record: bytes per image, loose and compacted, and time to write and compact."""
    rng = np.random.default_rng(0)
    count = MAX_ROWS
    images = tuple(
        ImageNote(i, 375, 500, "", rng.bytes(72).hex(), ("grayscale",) if i % 50 == 0 else ()) for i in range(count)
    )
    record = Record(0, 0, count, "vit_base-00000000", {name: rng.bytes(16).hex() for name in names}, images, 1.0, "r")
    seconds = []
    with tempfile.TemporaryDirectory(prefix="substyle-scale-") as folder:
        for _ in range(5):
            began = time.perf_counter()
            loose = journal.write(LocalPlace(folder), record)
            compaction.compact(LocalPlace(folder))
            seconds.append(time.perf_counter() - began)
    facts = {"loose_bytes": loose / count, "compacted_bytes": len(records.encode([(0, record)])) / count}
    return Row("note what decoding learned of an image", "images", count, {OURS: Timing.of(seconds)}, facts=facts)
