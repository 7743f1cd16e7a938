"""A worker process, which embeds the shards that it is given.

A worker has its own decoder, style networks and backbones. It writes chunks and journal records itself, as a process
with `--part` does; pixels and embeddings never leave it. This module does not import Ray.
"""

from __future__ import annotations

import os
import pickle
import socket
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from substyle import files
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.blobs import read
from substyle.engine.embedding.loop import EmbedSummary, Loop
from substyle.engine.embedding.plan import ShardTask, samples
from substyle.engine.embedding.prepare import PixelPipeline, prepare_backbones
from substyle.engine.store import lock
from substyle.engine.store.identity import Remedies
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import ConfigError
from substyle.pipelines.plugins import ALLOW
from substyle.pipelines.storage import Place
from substyle.pipelines.transforms.registry import load_plugin


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs, as picklable values.

    Attributes:
        folder: working directory of the run, for relative paths.
        cache: folder of compiled artefacts.
        plugins: files to load.
        store: the store.
        part: shards that the run owns.
        run: id of the run that holds the lock.
        backbones, settings, config: what to embed, and how.
        photographs: pickled, since a plug-in may define them: those to check backbones with, by key, and one of each
            source that the machine of the run can read.
        remedies, readers: of the plan.
        run_code: whether the user lets code run that files name.
    """

    folder: str
    cache: str
    plugins: tuple[Path, ...]
    store: Place
    part: lock.Part
    run: str
    backbones: tuple[BackboneChoice, ...]
    settings: Settings
    config: EmbedConfig
    photographs: bytes
    remedies: Remedies
    readers: int
    run_code: bool = False


class _Stopped(Exception):
    """The worker was asked to stop."""


class Worker:
    """Embeds shards. Call `prepare` once, then `fill` for each shard; other calls may run beside it."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._embedded, self._stopping = 0, False
        self._tasks: SimpleQueue[ShardTask | None] = SimpleQueue()
        self._thread, self._changing = ThreadPoolExecutor(1), Lock()  # the lock guards the next two
        self._filled: dict[int, Future[EmbedSummary]] = {}  # of shards that are not finished
        self._running: Future[None] | None = None
        self._summary, self._spent = EmbedSummary(), dict[str, float]()

    def where(self) -> str:
        """Process and host, for messages."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    def prepare(self) -> None:
        """Open the store, and load or compile the backbones.

        Raises:
            StoreError: the store does not exist, or this machine computes other embeddings than those in it.
            DifferentError: a transformation is defined otherwise here than in the store.
            SubstyleError: see `prepare_backbones`; or this machine does not see the photographs.
        """
        spec = self.spec
        if os.path.isdir(spec.folder):  # else relative paths are reported as missing
            os.chdir(spec.folder)
        os.environ["SUBSTYLE_CACHE"] = spec.cache
        files.name_compiler_caches(again=True)
        if spec.run_code:
            os.environ[ALLOW] = "1"
        for plugin in spec.plugins:
            load_plugin(plugin)
        store = EmbeddingStore.open(spec.store)
        checked, visible = pickle.loads(spec.photographs)
        for record in visible:  # else all photographs would be quarantined
            if (blob := read(record)).reason:
                raise ConfigError("IMAGES", record.key, f"photographs that all machines see ({blob.reason})")
        pipeline = PixelPipeline(spec.settings, spec.config)
        store.require_definitions(pipeline.definitions)  # plug-ins and suite files may have changed since the run began
        compiled = prepare_backbones(spec.backbones, samples(store, pipeline, checked), quiet=True)
        described = [facts for backbone in compiled for facts in backbone.describe()]
        with lock.mutex(spec.store):  # another processor's pixels are recorded
            entries = [store.ensure_backbone(facts, pipeline.definitions) for facts in described]
        self._loop = Loop(store, pipeline, entries, compiled, spec.run, spec.remedies, spec.readers)

    def fill(self, task: bytes) -> EmbedSummary | None:
        """Embed a shard, given as a pickled `ShardTask`; a second one is decoded while the first is written.

        Returns what was done, or None if `stop` was called before it was finished.
        """
        shard: ShardTask = pickle.loads(task)
        filled = Future[EmbedSummary]()
        with self._changing:
            self._filled[shard.number] = filled
            self._tasks.put(shard)
            if self._running is None:
                self._running = self._thread.submit(self._run)
            either: list[Future[Any]] = [filled, self._running]
        wait(either, return_when=FIRST_COMPLETED)
        if not filled.done():
            either[1].result()
            return None
        return filled.result()

    def progress(self) -> int:
        """Embeddings that have been computed."""
        return self._embedded

    def stop(self) -> None:
        """Abandon shards, unless they are already being written."""
        self._stopping = True

    def _run(self) -> None:
        """Embed the shards of `fill` until it has no more, one fails, or `stop` is called."""
        try:
            self._loop.run(iter(self._tasks.get, None), self._summary, self._arrived, self._require_lock, self._written)
        except BaseException as error:
            self._tasks.put(None)  # for the thread that waits for another shard
            if not isinstance(error, _Stopped):
                raise

    def _arrived(self, count: int) -> None:
        if self._stopping:
            raise _Stopped
        self._embedded += count

    def _written(self, number: int, done: EmbedSummary) -> None:
        spent, before = dict(self._summary.seconds), self._spent
        self._spent = spent
        seconds = {what: much - before.get(what, 0.0) for what, much in spent.items()}
        with self._changing:
            self._filled.pop(number).set_result(replace(done, seconds=seconds))
            if not self._filled:
                self._tasks.put(None)
                self._running = None

    def _require_lock(self) -> None:
        # the run's driver may have died and another run may have begun
        lock.require_run(self.spec.store, self.spec.run, self.spec.part)
