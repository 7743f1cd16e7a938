"""A worker: a process on some machine that fills the shards it is given, and tells how it goes.

It holds decoder, style networks and backbones of its own. Pixels and embeddings stay in it: what it makes are chunks
and journal records of its shards, as a process with `--part` would make them. Messages are numbers of shards, counts
and reasons. Knows nothing of Ray; methods are called on threads of their own.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.loop import Callbacks, EmbedSummary, Loop
from substyle.engine.embedding.plan import EmbedPlan, Lacking
from substyle.engine.embedding.prepare import PixelPipeline, prepare_backbones
from substyle.engine.store import identity, lock
from substyle.engine.store.manifest import SourceEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.storage import Place
from substyle.pipelines.transforms.registry import load_plugin

_TELL_EVERY_S = 0.5


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker must know, as plain values that travel.

    Attributes:
        folder: working directory of the run, against which relative paths are read.
        cache: folder of the compiled artefacts; plugins: files to load.
        sources: photographs and how they are opened, those of the run first.
        store: where it is; part: of its shards that the run owns; run: the run's id.
        backbones, settings, config: what is embedded, and how.
    """

    folder: str
    cache: str
    plugins: tuple[Path, ...]
    sources: tuple[SourceEntry, ...]
    store: Place
    part: lock.Part
    run: str
    backbones: tuple[BackboneChoice, ...]
    settings: Settings
    config: EmbedConfig


@dataclass
class ProgressUpdate:
    """What has happened since the last time: embeddings, shards written, images quarantined; whether it wants more."""

    arrived: int = 0
    written: list[int] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    asks: bool = False


class _Stopped(Exception):
    """Nothing has gone wrong: the worker was told to stop."""


class Worker(Callbacks):
    """See the module. `place`, then `prepare`, then `fill`, while `news`, `give`, `finish`, `stop` are called."""

    def __init__(self, order: WorkerSpec) -> None:
        self.order = order
        self.summary = EmbedSummary()
        self._given: queue.SimpleQueue[tuple[int, Lacking] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards what follows
        self._news = ProgressUpdate()
        self._told: set[str] = set()  # of the quarantined
        self._stopping = False

    def place(self) -> str:
        """Where it is, for people."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    def prepare(self) -> None:
        """Open the source and the store, load what the run has compiled, or compile it where it is not there.

        Raises:
            StoreError: the store is not there, or this machine makes other embeddings than those it was begun with.
            SubstyleError: as `prepare_backbones`, or for a source that is not there.
        """
        order = self.order
        if os.path.isdir(order.folder):  # else paths that are relative will be named as missing
            os.chdir(order.folder)
        os.environ["SUBSTYLE_CACHE"] = order.cache
        for plugin in order.plugins:
            load_plugin(plugin)
        store = EmbeddingStore.open(order.store)
        source, *others = map(identity.open_entry, order.sources)
        pipeline = PixelPipeline(order.settings, order.config)
        plan = EmbedPlan(source, order.store, pipeline, part=order.part, others=tuple(others))
        compiled = prepare_backbones(order.backbones, plan.samples(), quiet=True)
        entries = [store.ensure_backbone(backbone.describe()) for backbone in compiled]
        self._loop = Loop(store, plan, entries, compiled, self.summary, order.run)

    def fill(self) -> EmbedSummary:
        """Fill shards until told to finish or stop. Returns what it has done.

        Raises:
            what went wrong. What it had in hand is not finished then, but for what `news` or the journal say.
        """
        with suppress(_Stopped):
            self._loop.run(self._shards(), self, lambda: self._given.put(None))
        return self.summary

    def give(self, shard: int, lacking: Lacking) -> None:
        """The shard to fill next."""
        self._given.put((shard, lacking))

    def finish(self) -> None:
        """There are no more shards."""
        self._given.put(None)

    def stop(self) -> None:
        """Give up what is begun. A shard that is being written is finished."""
        self._stopping = True
        self._given.put(None)

    def news(self) -> ProgressUpdate:
        """What has happened since the last call; waits a moment for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._news.asks or self._news.written, _TELL_EVERY_S)
            told, self._news = self._news, ProgressUpdate()
            return told

    # --- on the loop's threads --------------------------------------------------------------------------------------

    def _shards(self) -> Iterator[tuple[int, Lacking]]:
        while True:
            with self._changed:
                self._news.asks = True
                self._changed.notify_all()
            given = self._given.get()
            if given is None:
                return
            yield given

    def arrived(self, count: int) -> None:
        """Count embeddings; here a loop that is told to stop does."""
        if self._stopping:
            raise _Stopped
        with self._changed:
            self._news.arrived += count

    def writing(self, shard: int) -> None:
        """See that the run still owns the store: its driver may be dead, and another run may have begun."""
        lock.require_run(self.order.store, self.order.run, self.order.part)

    def written(self, shard: int) -> None:
        """Tell of a finished shard, and of images that were quarantined so far."""
        quarantined = dict(self.summary.quarantined)  # the loop goes on adding to it
        with self._changed:
            self._news.written.append(shard)
            self._news.quarantined.update({key: quarantined[key] for key in quarantined.keys() - self._told})
            self._told |= quarantined.keys()
            self._changed.notify_all()
