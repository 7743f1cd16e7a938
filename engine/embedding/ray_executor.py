"""By workers on the machines of a Ray cluster, each with a GPU or some cores to itself.

Ray places the workers and carries messages. Nothing of size goes through its object store: workers read photographs and
write chunks and journal records themselves, so all machines must see the source and the store under the same paths.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from substyle.engine import cache
from substyle.engine.config import BackboneChoice, EmbedConfig, ExecutorConfig
from substyle.engine.embedding.loop import EmbedSummary, EmbedTask
from substyle.engine.embedding.plan import Lacking, pending_shards
from substyle.engine.embedding.ray_cluster import Cluster, ClusterError, ShardQueue, joined
from substyle.engine.embedding.ray_worker import ProgressUpdate, Worker, WorkerSpec
from substyle.engine.observability import ProgressBar, stage
from substyle.engine.store import identity, lock
from substyle.engine.store.layout import LockedError
from substyle.kernels.errors import SubstyleError
from substyle.pipelines.transforms.registry import loaded

# The workers of one run as Ray's actors: started, given shards, listened to, and replaced when they die or fail.

_STOPPING_S = 20.0  # for what a worker has begun to write when the run is interrupted
_LOOK_EVERY_S = 2.0
_CALLS = 8  # of one worker at once: one fills, one waits for news, the others are short
_DIED = "its process died: killed, out of memory, or its machine has gone"
_SHOWN = 10  # lost shards that a message names


class ShardsError(SubstyleError):
    """Some shards could not be filled."""


@dataclass
class _Slot:
    """A place for a worker, and the worker that has it.

    Attributes:
        number: of the place; actor: Ray's handle; where: of the worker's process, for people.
        filling: the call that fills shards; asks: whether it waits for a shard.
        unsure: embeddings that were shown, but whose shards are not finished.
        failed: workers that have failed here before they were ready, one after the other.
    """

    number: int
    actor: Any = None
    where: str = ""
    filling: Any = None
    asks: bool = False
    unsure: int = 0
    failed: int = 0


class WorkerPool:
    """The workers that fill the shards of one task."""

    def __init__(
        self, config: ExecutorConfig, cluster: Cluster, task: EmbedTask, order: WorkerSpec, bar: ProgressBar
    ) -> None:
        self.config, self.cluster, self.task, self.order, self.bar = config, cluster, task, order, bar
        self.changed: dict[int, Lacking] = {}  # what shards lack since a worker has failed
        self.dispatch = ShardQueue(task.todo.lacking, config.retries)
        count = cluster.workers(config, most=len(task.todo.lacking))
        self.seats = {number: _Slot(number) for number in range(1, count + 1)}
        self.calls: dict[Any, tuple[_Slot, str]] = {}  # under way, by Ray's reference
        self.unable: SubstyleError | None = None  # why the last worker that gave up its place did

    def work(self) -> None:
        """Until every shard is finished or given up."""
        import ray

        for seat in self.seats.values():
            self._start(seat)
        while not self.dispatch.over:
            done, _ = ray.wait(list(self.calls), timeout=_LOOK_EVERY_S)
            for reference in done:
                self._hear(reference)
            if self.dispatch.hopeless:
                break
            self._hand_out()
            if not self.seats:
                raise self.unable or ClusterError("no worker is left")
            self._require_room()
        self._finish()

    def stop(self) -> None:
        """Let workers finish what they are writing, and end them."""
        import ray

        filling = [seat.filling for seat in self.seats.values() if seat.filling is not None]
        for seat in self.seats.values():
            if seat.filling is not None:
                seat.actor.stop.remote()
        try:
            if filling:
                ray.wait(filling, num_returns=len(filling), timeout=_STOPPING_S)
        finally:
            for seat in self.seats.values():
                if seat.actor is not None:
                    ray.kill(seat.actor)

    def require_all(self) -> None:
        """Raise ShardsError that names the shards which were given up."""
        lost = self.dispatch.lost
        if not lost:
            return
        said = [f"{self._named(shard)}: {lost[shard].why}" for shard in sorted(lost)[:_SHOWN]]
        more = [f"and {len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else []
        rest = "all others are finished" if self.dispatch.over else "the rest was not tried"
        head = f"{self.task.store.path}: {len(lost)} of {self.task.todo.shards} shards failed each time; {rest}"
        raise ShardsError("\n  ".join([head, *said, *more]))

    # --- workers ----------------------------------------------------------------------------------------------------

    def _start(self, seat: _Slot) -> None:
        import ray

        need = self.cluster.need
        made = ray.remote(Worker).options(
            num_cpus=need["CPU"], num_gpus=need.get("GPU", 0), max_restarts=0, max_concurrency=_CALLS
        )
        seat.actor, seat.where, seat.filling, seat.asks, seat.unsure = made.remote(self.order), "", None, False, 0
        self._call(seat, "place")
        self._call(seat, "prepare")

    def _call(self, seat: _Slot, method: str) -> Any:  # noqa: ANN401 - Ray's reference
        reference = getattr(seat.actor, method).remote()
        self.calls[reference] = seat, method
        return reference

    def _hear(self, reference: Any) -> None:  # noqa: ANN401 - Ray's reference
        """What a call has come to."""
        import ray

        found = self.calls.pop(reference, None)
        if found is None:  # of a worker that has failed meanwhile
            return
        seat, method = found
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(seat, error.cause if isinstance(error.cause, SubstyleError) else error)
        except ray.exceptions.RayError as error:
            self._failed(seat, error)
        else:
            getattr(self, f"_on_{method}")(seat, answer)

    def _on_place(self, seat: _Slot, where: str) -> None:
        seat.where = where

    def _on_prepare(self, seat: _Slot, answer: None) -> None:
        seat.failed = 0
        self.dispatch.join(seat.number)
        ready = sum(there.filling is not None for there in self.seats.values()) + 1
        self.bar.note(f"{ready} of {len(self.seats)} workers")
        seat.filling = self._call(seat, "fill")
        self._call(seat, "news")

    def _on_news(self, seat: _Slot, news: ProgressUpdate) -> None:
        self._call(seat, "news")
        seat.asks |= news.asks
        seat.unsure += news.arrived
        self.bar.advance(news.arrived)
        self.task.summary.quarantined.update(news.quarantined)
        for shard in news.written:
            self._written(seat, shard)

    def _written(self, seat: _Slot, shard: int) -> None:
        self.dispatch.written(seat.number, shard)
        self.task.summary.new_shards += 1
        seat.unsure -= self._embeddings(shard)

    def _failed(self, seat: _Slot, error: Exception) -> None:
        """A worker has died or failed: another takes its place and what it had in hand is given out again."""
        import ray

        for reference in [reference for reference, (there, _) in self.calls.items() if there is seat]:
            del self.calls[reference]
        ray.kill(seat.actor)  # one that failed may be in any state
        if isinstance(error, LockedError):
            raise error
        died = isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
        self.cluster.keep_logs |= died
        why = _DIED if died else _reason(error)
        if seat.filling is None:
            self._could_not_start(seat, why, died=died)
            return
        self._look_again(seat)
        held = self.dispatch.failed(seat.number, why)
        self.bar.advance(-seat.unsure)
        print(f"worker {seat.number} ({seat.where}) is replaced: {why}", file=sys.stderr)
        for shard in held:
            if shard in self.dispatch.lost:
                print(
                    f"{self._named(shard)} is given up after {self.dispatch.lost[shard].tries} tries", file=sys.stderr
                )
        self._start(seat)

    def _could_not_start(self, seat: _Slot, why: str, *, died: bool) -> None:
        seat.failed += 1
        if died and seat.failed <= self.config.retries:
            print(f"worker {seat.number} is started again: {why}", file=sys.stderr)
            self._start(seat)
            return
        self.unable = ClusterError(f"worker {seat.number} ({seat.where or 'not placed'}): {why}")
        print(f"{self.unable}: its place stays empty", file=sys.stderr)
        del self.seats[seat.number]

    def _look_again(self, seat: _Slot) -> None:
        """Take what a worker had in hand from the journal: it may have finished more than it could tell."""
        task = self.task
        now = pending_shards(task.store, task.entries, task.plan.pipeline.settings.transformations, task.plan.part)
        for shard in self.dispatch.held(seat.number):
            if shard not in now.lacking:
                self._written(seat, shard)
                continue
            before = self._embeddings(shard)
            self.changed[shard] = now.lacking[shard]  # some of several backbones may be there
            seat.unsure -= before - self._embeddings(shard)

    # --- shards -----------------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for seat in self.seats.values():
            if seat.asks and (shard := self.dispatch.next(seat.number)) is not None:
                seat.asks = False
                seat.actor.give.remote(shard, self._lacking(shard))

    def _finish(self) -> None:
        """No shard is left: workers that wait for one end, and tell where their time went."""
        import ray

        ready = [seat for seat in self.seats.values() if seat.filling is not None]
        for seat in ready:
            seat.actor.finish.remote()
        for seat in ready:
            try:
                did: EmbedSummary = ray.get(seat.filling)
            except ray.exceptions.RayError:
                continue  # it died when all was done
            seconds = self.task.summary.seconds
            for what, spent in did.seconds.items():
                seconds[what] = seconds.get(what, 0.0) + spent
            self.task.summary.quarantined.update(did.quarantined)

    def _require_room(self) -> None:
        """Raise ClusterError where no worker is ready and none can be: the machines have gone."""
        if all(seat.filling is None and not seat.where for seat in self.seats.values()) and not self.cluster.places():
            raise ClusterError(
                f"no machine of the Ray cluster has room for a worker with {self.cluster.words} any more"
            )

    def _lacking(self, shard: int) -> Lacking:
        return self.changed.get(shard) or self.task.todo.lacking[shard]

    def _embeddings(self, shard: int) -> int:
        """How many a shard lacks."""
        return self.task.todo.sizes[shard] * sum(map(len, self._lacking(shard)))

    def _named(self, shard: int) -> str:
        rows = self.task.store.settings.shard_rows
        return f"shard {shard} (rows {shard * rows} to {(shard + 1) * rows - 1})"


def _reason(error: Exception) -> str:
    """Why a worker has failed, in a line."""
    cause = getattr(error, "cause", None)  # of Ray's wrapper around what no worker raises on purpose
    return f"{type(cause).__name__}: {cause}" if cause is not None else str(error)


@contextmanager
def ray_executor(
    config: ExecutorConfig, embed: EmbedConfig, backbones: Sequence[BackboneChoice]
) -> Iterator[RayExecutor]:
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
        if not embed.on_gpu and (gpus := cluster.gpus()):
            print(
                f"{gpus} GPUs of the cluster are not used: this machine, which prepares, computes on cpu",
                file=sys.stderr,
            )
        yield RayExecutor(config, cluster, backbones)


@dataclass(frozen=True)
class RayExecutor:
    """Embeds by workers of a cluster; see `ray_executor`."""

    config: ExecutorConfig
    cluster: Cluster
    backbones: Sequence[BackboneChoice]

    def run(self, task: EmbedTask, *, quiet: bool) -> None:
        """Fill all shards of a task.

        Raises:
            ShardsError: shards that failed on `retries` further workers as well; all others are filled.
            SubstyleError: no worker could begin, or too much failed for the rest to be tried.
        """
        if not task.todo.lacking:
            return
        title, todo = task.plan.title, task.todo
        with stage(title, todo.total, "embeddings", done=todo.done, quiet=quiet) as bar:
            crew = WorkerPool(self.config, self.cluster, task, self._order(task), bar)
            try:
                crew.work()
            finally:
                crew.stop()
                with lock.mutex(task.store.path):
                    task.store.tidy()  # what a worker that was killed has left
        crew.require_all()

    def _order(self, task: EmbedTask) -> WorkerSpec:
        plan = task.plan
        store = plan.store_path
        return WorkerSpec(
            folder=os.getcwd(),
            cache=str(cache.root().absolute()),
            plugins=loaded(),
            sources=tuple(identity.entry_of(source, plan.splits()) for source in (plan.source, *plan.others)),
            store=Path(os.path.abspath(store)) if isinstance(store, Path) else store,
            part=plan.part,
            run=task.run,
            backbones=tuple(self.backbones),
            settings=plan.pipeline.settings,
            config=plan.pipeline.config,
        )
