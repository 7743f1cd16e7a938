"""Embed with workers on a Ray cluster, each with a GPU or some cores to itself.

Ray places the workers and carries messages: the names of a shard's photographs, counts and errors. Workers read
photographs and write chunks themselves, so all machines must see source and store under the same paths. They do not
list the source, and hold nothing that grows with it.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from substyle.engine import cache
from substyle.engine.config import BackboneChoice, EmbedConfig, ExecutorConfig
from substyle.engine.embedding.loop import EmbedSummary, EmbedTask, Executor
from substyle.engine.embedding.plan import pending_shards
from substyle.engine.embedding.ray_cluster import Cluster, ClusterError, joined
from substyle.engine.embedding.ray_worker import Worker, WorkerSpec
from substyle.engine.observability import ProgressBar, stage
from substyle.engine.store import compaction, lock
from substyle.engine.store.layout import LockedError
from substyle.errors import SubstyleError
from substyle.pipelines.plugins import code_allowed
from substyle.pipelines.transforms.registry import loaded

_POLL_S = 1.0
_STOP_S = 20.0  # for shards that are being written when a run is interrupted
_SHARDS = 2  # of one worker at once: one is decoded while another is written
_CALLS = _SHARDS + 2  # of one worker at once: fill, progress, stop
_DIED = "its process died: killed, out of memory, or its machine has gone"
_SHOWN = 10  # lost shards that a message names


class ShardsError(SubstyleError):
    """Some shards could not be embedded."""


@dataclass
class ShardFailure:
    """Failures of a shard."""

    workers: set[int] = field(default_factory=set)  # on which it failed
    tries: int = 0
    reason: str = ""  # of the last one


class ShardQueue:
    """Shards that wait for a worker. A shard that failed is retried first, alone, on another worker if there is one.

    Args:
        shards: numbers, in order.
        retries: further tries of a shard that failed.

    Attributes:
        active: shards that workers have.
        lost: shards that failed each time.
    """

    def __init__(self, shards: Iterable[int], retries: int) -> None:
        self.retries = retries
        self.active: set[int] = set()
        self.lost: dict[int, ShardFailure] = {}
        self._fresh = deque(shards)
        self._failed: dict[int, ShardFailure] = {}
        self._lost_in_a_row = 0

    @property
    def done(self) -> bool:
        """Whether every shard is finished or lost."""
        return not (self._fresh or self._failed or self.active)

    def hopeless(self, workers: int) -> bool:
        """Whether so many shards were lost in a row that the rest would be too, as with a full disk."""
        return self._lost_in_a_row >= max(4, 2 * workers)

    def take(self, worker: int, workers: Set[int], beside: Iterable[int] = ()) -> int | None:
        """The next shard for one of the workers; None if there is none for it now.

        Args:
            beside: shards that it has already. The last shards are left to workers that have none.
        """
        waiting = (
            shard
            for shard, failure in self._failed.items()
            if shard not in self.active and (worker not in failure.workers or failure.workers >= workers)
        )
        failed = next(waiting, None)
        if beside:  # a failed shard waits until this worker has no other
            few = len(self._fresh) < len(workers)
            alone = few or failed is not None or any(shard in self._failed for shard in beside)
            return None if alone else self._begin(self._fresh.popleft())
        if failed is None and not self._fresh:
            return None
        return self._begin(self._fresh.popleft() if failed is None else failed)

    def _begin(self, shard: int) -> int:
        self.active.add(shard)
        return shard

    def finished(self, shard: int) -> None:
        """Mark an active shard as finished."""
        self.active.remove(shard)
        self._failed.pop(shard, None)
        self._lost_in_a_row = 0

    def failed(self, shard: int, worker: int, reason: str, *, alone: bool = True) -> bool:
        """Mark an active shard as failed. Returns whether it is lost.

        Args:
            alone: whether the worker had no other shard, which may be to blame; else this is no try.
        """
        self.active.remove(shard)
        failure = self._failed.setdefault(shard, ShardFailure())
        if not alone:
            return False
        failure.workers.add(worker)
        failure.tries, failure.reason = failure.tries + 1, reason
        if failure.tries <= self.retries:
            return False
        self.lost[shard] = self._failed.pop(shard)
        self._lost_in_a_row += 1
        return True


@dataclass
class _Slot:
    """A place for a worker."""

    number: int
    actor: Any = None  # Ray's handle of its worker
    where: str = ""  # process and host of the worker
    ready: bool = False  # whether the worker is prepared
    shards: list[int] = field(default_factory=list)  # that it embeds
    finished: int = 0  # embeddings of its shards that are finished
    shown: int = 0  # embeddings that the progress bar shows
    failed: int = 0  # starts in a row that failed


class WorkerPool:
    """Workers that embed the shards of one task.

    `ray.util.ActorPool` does not say which value failed, nor replaces an actor that died, so this uses `ray.wait`.
    """

    def __init__(
        self, config: ExecutorConfig, cluster: Cluster, task: EmbedTask, spec: WorkerSpec, bar: ProgressBar
    ) -> None:
        self.config, self.cluster, self.task, self.spec, self.bar = config, cluster, task, spec, bar
        self.lacking, self.shards = dict(task.todo.lacking), task.plan.shards(task.store)
        self.queue = ShardQueue(self.lacking, config.retries)
        count = cluster.workers(config, most=len(self.lacking))
        self.slots = {number: _Slot(number) for number in range(1, count + 1)}
        self.calls: dict[Any, tuple[_Slot, str, int]] = {}  # pending, by Ray's reference; with the shard of `fill`
        self.unable: SubstyleError | None = None  # why the last slot was given up

    def run(self) -> None:
        """Embed until every shard is finished or lost."""
        import ray

        for slot in self.slots.values():
            self._start(slot)
        while not self.queue.done and not self.queue.hopeless(len(self.slots)):
            done, _ = ray.wait(list(self.calls), timeout=_POLL_S)
            for reference in done:
                self._handle(reference)
            if not self.slots:
                raise self.unable or ClusterError("no worker is left")
            self._assign()
            self._require_room()

    def stop(self) -> None:
        """Let workers finish what they are writing, then end them."""
        import ray

        filling = [reference for reference, (_, method, _) in self.calls.items() if method == "fill"]
        for slot in self.slots.values():
            if slot.shards:
                slot.actor.stop.remote()
        try:
            if filling:
                ray.wait(filling, num_returns=len(filling), timeout=_STOP_S)
        finally:
            for slot in self.slots.values():
                if slot.actor is not None:
                    ray.kill(slot.actor)

    def require_all(self) -> None:
        """Raise ShardsError if shards were lost."""
        lost = self.queue.lost
        if not lost:
            return
        named = [f"{self._named(shard)}: {lost[shard].reason}" for shard in sorted(lost)[:_SHOWN]]
        more = [f"and {len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else []
        rest = "all others are finished" if self.queue.done else "the rest was not tried"
        head = f"{self.task.store.path}: {len(lost)} of {self.task.todo.shards} shards failed each time; {rest}"
        raise ShardsError("\n  ".join([head, *named, *more]))

    def _start(self, slot: _Slot) -> None:
        import ray

        need = self.cluster.need
        actor = ray.remote(Worker).options(
            num_cpus=need["CPU"], num_gpus=need.get("GPU", 0), max_restarts=0, max_concurrency=_CALLS
        )
        slot.actor, slot.where, slot.ready = actor.remote(self.spec), "", False
        slot.shards, slot.finished, slot.shown = [], 0, 0
        self._call(slot, "where")
        self._call(slot, "prepare")

    def _call(self, slot: _Slot, method: str, *arguments: object, shard: int = -1) -> None:
        self.calls[getattr(slot.actor, method).remote(*arguments)] = slot, method, shard

    def _assign(self) -> None:
        """Give shards to workers that have fewer than they can, and ask the others how far they are."""
        pending = {(slot.number, method) for slot, method, _ in self.calls.values()}
        ready = [slot for slot in self.slots.values() if slot.ready]
        for count in range(_SHARDS):
            for slot in ready:
                shard = None
                if len(slot.shards) == count:
                    shard = self.queue.take(slot.number, self.slots.keys(), slot.shards)
                if shard is not None:
                    slot.shards.append(shard)
                    self._call(slot, "fill", pickled(self.shards(shard, self.lacking[shard])), shard=shard)
        for slot in ready:
            if slot.shards and (slot.number, "progress") not in pending:
                self._call(slot, "progress")

    def _handle(self, reference: Any) -> None:  # noqa: ANN401 - Ray's reference
        """Take the result of a call."""
        import ray

        slot, method, shard = self.calls.pop(reference, (None, "", -1))
        if slot is None:  # of a worker that failed meanwhile
            return
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            self._failed(slot, cause if isinstance(cause, SubstyleError) else error)
            return
        match method:
            case "where":
                slot.where = answer
            case "prepare":
                slot.ready, slot.failed = True, 0
                self.bar.note(f"{sum(each.ready for each in self.slots.values())} of {len(self.slots)} workers")
            case "progress":
                self._show(slot, max(answer, slot.shown))
            case "fill" if answer is not None:  # else it was stopped
                self._finished(slot, shard, answer)

    def _show(self, slot: _Slot, embedded: int) -> None:
        self.bar.advance(embedded - slot.shown)
        slot.shown = embedded

    def _finished(self, slot: _Slot, shard: int, done: EmbedSummary | None = None) -> None:
        slot.shards.remove(shard)
        slot.finished += self._embeddings(shard)
        self._show(slot, max(slot.finished, slot.shown))
        self.queue.finished(shard)
        self.task.summary.add(done or EmbedSummary(new_shards=1))

    def _failed(self, slot: _Slot, error: Exception) -> None:
        """Replace a worker that died or failed, and queue its shards again."""
        import ray

        own = [reference for reference, (each, *_) in self.calls.items() if each is slot]
        ready, _ = ray.wait(own, num_returns=len(own), timeout=0) if own else ([], [])
        for reference in own:
            _, method, shard = self.calls.pop(reference)
            if method == "fill" and reference in ready:  # one that was finished before
                with suppress(ray.exceptions.RayError):
                    self._finished(slot, shard, ray.get(reference))
        ray.kill(slot.actor)  # one that failed may be in any state
        if isinstance(error, LockedError):
            raise error
        died = isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
        self.cluster.keep_logs |= died
        reason = _DIED if died else _reason(error)
        if not slot.ready:
            self._could_not_start(slot, reason, died=died)
            return
        print(f"worker {slot.number} ({slot.where}) is replaced: {reason}", file=sys.stderr)
        if slot.shards:
            self._return(slot, reason)
        self._start(slot)

    def _return(self, slot: _Slot, reason: str) -> None:
        """Queue the shards of a worker that failed, but those that the journal says were finished."""
        task = self.task
        now = pending_shards(task.store, task.entries, task.plan.pipeline.settings.transformations, task.plan.part)
        for shard in slot.shards[:]:
            if shard not in now.lacking:
                self._finished(slot, shard)
        shown, alone = slot.finished, len(slot.shards) == 1
        for shard in slot.shards:
            shown += self._embeddings(shard) - task.todo.sizes[shard] * sum(map(len, now.lacking[shard]))
            self.lacking[shard] = now.lacking[shard]  # some of several backbones may be finished
            if self.queue.failed(shard, slot.number, reason, alone=alone):
                print(f"{self._named(shard)} is given up after {self.queue.lost[shard].tries} tries", file=sys.stderr)
        self._show(slot, shown)

    def _could_not_start(self, slot: _Slot, reason: str, *, died: bool) -> None:
        slot.failed += 1
        if died and slot.failed <= self.config.retries:
            print(f"worker {slot.number} is started again: {reason}", file=sys.stderr)
            self._start(slot)
            return
        self.unable = ClusterError(f"worker {slot.number} ({slot.where or 'not placed'}): {reason}")
        print(f"{self.unable}: continuing without it", file=sys.stderr)
        del self.slots[slot.number]

    def _require_room(self) -> None:
        """Raise ClusterError if no worker is placed and none can be: the machines have gone."""
        if not any(slot.where for slot in self.slots.values()) and not self.cluster.places():
            raise ClusterError(
                f"no machine of the Ray cluster has room for a worker with {self.cluster.words} any more"
            )

    def _embeddings(self, shard: int) -> int:
        """Embeddings that a shard lacks."""
        return self.task.todo.sizes[shard] * sum(map(len, self.lacking[shard]))

    def _named(self, shard: int) -> str:
        rows = self.task.store.settings.shard_rows
        return f"shard {shard} (rows {shard * rows} to {(shard + 1) * rows - 1})"


def pickled(value: object) -> bytes:
    """Pickle a value for a worker, with functions that are defined inside others."""
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(value)
    return data


def _reason(error: Exception) -> str:
    """Why a worker failed, in a line."""
    cause = getattr(error, "cause", None)  # of Ray's wrapper around other errors than SubstyleError
    return f"{type(cause).__name__}: {cause}" if cause is not None else str(error)


@contextmanager
def ray_executor(config: ExecutorConfig, embed: EmbedConfig, backbones: Sequence[BackboneChoice]) -> Iterator[Executor]:
    """An executor whose cluster is joined for the block.

    Args:
        embed: as `ExecutorConfig.here` gives it.
        backbones: that workers load.

    Raises:
        ClusterError: it cannot be.
    """
    need = {"CPU": float(embed.cores), **({"GPU": 1.0} if embed.on_gpu else {})}
    with joined(config, need) as cluster:
        cluster.workers(config, most=1)  # better refused now than after minutes of preparation
        import ray

        if not embed.on_gpu and (gpus := ray.cluster_resources().get("GPU")):
            print(
                f"{gpus:g} GPUs of the cluster are not used: this machine, which prepares, computes on cpu",
                file=sys.stderr,
            )
        yield partial(_run, config, cluster, backbones)


def _run(config: ExecutorConfig, cluster: Cluster, backbones: Sequence[BackboneChoice], task: EmbedTask) -> None:
    """Fill all shards of a task.

    Raises:
        ShardsError: shards that failed on `retries` further workers as well; all others are filled.
        SubstyleError: no worker could begin, or too much failed for the rest to be tried.
    """
    plan, store, todo = task.plan, task.plan.store_path, task.todo
    if not todo.lacking:
        return
    spec = WorkerSpec(
        folder=os.getcwd(),
        cache=str(cache.root().absolute()),
        plugins=loaded(),
        store=store.absolute(),
        part=plan.part,
        run=task.run,
        backbones=tuple(backbones),
        settings=plan.pipeline.settings,
        config=plan.pipeline.config,
        photographs=pickled((plan.by_key(task.store.calibration), plan.visible())),
        remedies=plan.remedies,
        readers=plan.readers,
        run_code=code_allowed(),
    )
    with stage(plan.title, todo.total, "embeddings", done=todo.done, quiet=task.quiet) as bar:
        task.follow(bar)
        pool = WorkerPool(config, cluster, task, spec, bar)
        try:
            pool.run()
        finally:
            pool.stop()
            with lock.mutex(store):
                compaction.clear_leftovers(store)  # files that a killed worker left
    pool.require_all()
