"""The embedding loop: shards of photographs → canvases → variants → embeddings → store.

The calling thread renders variants while another one decodes the next batch; `scheduler` embeds and writes them in the
background.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import starmap
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cuda, observability
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.cuda import copy_to_host
from substyle.engine.embedding.blobs import Blob, RealVariants, read
from substyle.engine.embedding.plan import EmbedPlan, PendingShards, ShardTask
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.scheduler import Batch, Scheduler, ShardInProgress
from substyle.engine.observability import ProgressBar, stage
from substyle.engine.store import journal, manifest
from substyle.engine.store.compaction import Upkeep
from substyle.engine.store.identity import PhotographsError, Remedies, unreadable
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.store.records import FileNote, ImageNote
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.decode import Decoded

_Read = tuple[list[Blob], Decoded, torch.cuda.Event | None]  # a batch of files, decoded; after that event on a GPU
# images of one variant that may be queued for a backbone, many where a CPU switches between several
_AHEAD, _AHEAD_ALONE = 512, 128


@dataclass
class EmbedSummary:
    """Summary of one call of `embed`.

    Attributes:
        images: photographs of the store; variants: photographs × transformations.
        shards: shards of the store; new_shards: shards finished by this call.
        quarantined: reasons by key of images that this call could not decode.
        left_out: reasons by key, by real transformation, of variants that this call left out.
        seconds: wall time by stage: prepare, decode, variants, backbones, total. Reading, decoding, embedding and
            writing run in the background; ``decode`` is the time spent waiting for files and their canvases,
            ``backbones`` for embedding and writing. ``ready`` is the time from the start of the process to that of the
            loop, if available. Seconds of several workers are summed, except prepare, total and ready.
    """

    images: int = 0
    variants: int = 0
    shards: int = 0
    new_shards: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, what: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def add(self, done: EmbedSummary) -> None:
        """Add what was done to some shards."""
        self.new_shards += done.new_shards
        self.quarantined.update(done.quarantined)
        for name, reasons in done.left_out.items():
            self.left_out.setdefault(name, {}).update(reasons)
        for what, seconds in done.seconds.items():
            self.spend(what, seconds)


class Loop:
    """Embeds shards of a store, one after the other, on the device of this process."""

    def __init__(
        self,
        store: EmbeddingStore,
        pipeline: PixelPipeline,
        entries: Sequence[BackboneEntry],
        compiled: Sequence[CompiledBackbone],
        run: str,
        remedies: Remedies,
        readers: int,
    ) -> None:
        self.store, self.pipeline, self.remedies, self.readers = store, pipeline, remedies, readers
        self.entries, self.compiled, self.run_id = entries, compiled, run
        self.upkeep = Upkeep(store.path, os.getpid())
        device = self.pipeline.target.torch_device
        self._stream = cuda.side_stream(device) if device.type == "cuda" else None

    def run(
        self,
        shards: Iterable[ShardTask],
        summary: EmbedSummary,
        on_embedded: Callable[[int], None],
        writing: Callable[[], None] = lambda: None,
        on_written: Callable[[int, EmbedSummary], None] = lambda number, done: None,
    ) -> None:
        """Embed shards. An exception of a callback, which may run on another thread, ends the loop.

        Args:
            shards: asked for before earlier ones are embedded, on a thread that may block; then those that it has had
                are finished meanwhile.
            summary: is updated.
            on_embedded: called with the number of embeddings that have been computed since the last call.
            writing: called before embeddings of a backbone are written to a shard.
            on_written: called with the number of a shard that is finished, and what was done to it.
        """
        self.summary, self.writing, self.written = summary, writing, on_written
        config = self.pipeline.config
        ahead = _AHEAD if config.on_gpu or len(self.compiled) > 1 else _AHEAD_ALONE
        with (
            ThreadPoolExecutor(self.readers) as self._readers,
            ThreadPoolExecutor(1, "substyle-decode", cuda.use_stream, (self._stream,)) as self._decoding,
        ):
            backlog = Scheduler(
                self.compiled,
                self._write,
                on_embedded,
                waiting=max(ahead // config.images, 1),
                most_in_flight=config.batches_in_flight,
                device=self.pipeline.target.torch_device,
            )
            with backlog.working():
                for shard, part, decoding in self._batches(shards, backlog):
                    clock = observability.Mark.now()
                    blobs, decoded, made = backlog.until(decoding)
                    cuda.take(decoded.canvas_BSSC, made)
                    self._spend("decode", clock)
                    self._batch(shard, part, blobs, decoded, backlog)
                    if part.stop == len(shard.task.keys):
                        backlog.done(shard)

    def _batches(
        self, shards: Iterable[ShardTask], backlog: Scheduler
    ) -> Iterator[tuple[ShardInProgress, range, Future[_Read]]]:
        """Yield the batches of all shards while the next one is decoded and the files of another are read."""
        size = self.pipeline.config.images
        parts = (
            (shard, range(len(shard.task.keys))[i : i + size])
            for shard in map(ShardInProgress, shards)
            for i in range(0, len(shard.task.keys), size)
        )

        def ask() -> tuple[ShardInProgress, range, Future[_Read]] | None:
            """The next batch, whose files are read and then decoded; blocks while ``shards`` does."""
            for shard, part in parts:
                reading = [self._readers.submit(read, shard.task.records[i]) for i in part]
                return shard, part, self._decoding.submit(self._read, reading)
            return None

        asking = ThreadPoolExecutor(1)
        try:
            coming = deque(asking.submit(ask) for _ in range(2))
            while (found := backlog.until(coming.popleft())) is not None:
                coming.append(asking.submit(ask))
                yield found
        finally:
            asking.shutdown(wait=False, cancel_futures=True)  # ``shards`` may block

    def _read(self, reading: Sequence[Future[Blob]]) -> _Read:
        """Decode a batch, on the decoding thread. Returns files without their data."""
        with observability.span("embed", "read", len(reading)):
            blobs = [future.result() for future in reading]
        return [replace(blob, data=b"") for blob in blobs], *self._decoded([blob.data for blob in blobs])

    def _decoded(self, data: Sequence[bytes]) -> tuple[Decoded, torch.cuda.Event | None]:
        with observability.span("embed", "decode", len(data)):
            decoded = self.pipeline.decoder(data)
        return decoded, cuda.made(decoded.canvas_BSSC)

    def _decode(self, data: Sequence[bytes]) -> Decoded:
        """Decode images of the current batch, also on the decoding thread: a decoder serves one."""
        decoded, made = self._decoding.submit(self._decoded, data).result()
        cuda.take(decoded.canvas_BSSC, made)
        return decoded

    def _batch(
        self, shard: ShardInProgress, part: range, blobs: Sequence[Blob], decoded: Decoded, backlog: Scheduler
    ) -> None:
        task, own = shard.task, slice(part.start, part.stop)
        keys = task.keys[own]
        self._require_same(task, part, blobs)
        rows_B = task.row_K[own]
        reasons = [blob.reason or reason for blob, reason in zip(blobs, decoded.reasons, strict=True)]
        clock = observability.Mark.now()
        small = copy_to_host(manifest.shrunk(decoded.canvas_BSSC), held=decoded.canvas_BSSC)
        names: list[str] = []
        distinct: list[torch.Tensor] = []
        chosen = self.pipeline.settings.transformations
        wanted = [name for name in chosen if any(name in names for names in task.lacking)]
        real = RealVariants(task.records[own], decoded.canvas_BSSC, self._decode, self._readers.map)
        for variant in self.pipeline.maker(wanted)(decoded.canvas_BSSC, keys, task.test_K[own], real):
            names.append(variant.name)
            distinct.append(variant.distinct_B)
            made = cuda.made(variant.pixels_BSSC)
            clock = self._spend("variants", clock, len(part))
            ok_B = decoded.ok_B & real.ok_B(variant.name)
            batch = Batch(shard, variant.name, variant.pixels_BSSC, rows_B, keys, ok_B, made)
            for turn, places in enumerate(backlog.places):
                if any(variant.name in task.lacking[place] for place in places):
                    backlog.add(turn, batch)
            clock = self._spend("backbones", clock)
        seen_TB = copy_to_host(torch.stack(distinct))
        files = [(blob.content, blob.mark) for blob in blobs]
        row_B = rows_B + task.first
        for name, found in real.blobs.items():
            self._require_same(task, part, found, name)
            shard.files += [
                FileNote(row, name, blob.reason, blob.content, blob.mark)
                for row, blob in zip(row_B.tolist(), found, strict=True)
            ]
            if why := {keys[b]: reason for b, reason in real.left_out(name) if decoded.ok_B[b]}:
                shard.left_out.setdefault(name, {}).update(why)
        absent_TB = ~np.stack([real.ok_B(name) for name in names])
        shard.notes.append(partial(_notes, row_B, decoded.size_B2, reasons, files, names, small, seen_TB, absent_TB))
        shard.quarantined.update({key: reason for key, reason in zip(keys, reasons, strict=True) if reason is not None})

    def _require_same(self, task: ShardTask, part: range, blobs: Sequence[Blob], variant: str = "") -> None:
        """Check files of a batch against what earlier passes noted of them.

        Args:
            variant: the real transformation that the files show.

        Raises:
            PhotographsError: the bytes have changed.
            StoreError: a file cannot be read any more, without which its embeddings would be left out.
        """
        if variant not in task.noted:
            return
        ok_K, content_K2 = task.noted[variant]
        for i, blob in zip(part, blobs, strict=True):
            named = f"{variant} of {task.keys[i]}" if variant else task.keys[i]
            if ok_K[i] and not blob.content:
                raise unreadable(self.store.path, named, blob.reason)
            if content_K2[i].any() and blob.content and journal.hex_of(content_K2[i][None]) != [blob.content]:
                raise PhotographsError(
                    f"{named}: content has changed since {self.store.path} was created; {self.remedies.changed}"
                )

    def _write(self, shard: ShardInProgress, seconds: float) -> None:
        """Commit a shard to the store, on the writing thread."""
        task = shard.task
        with observability.span("embed", "write", len(task.keys)):
            notes = [note for some in shard.notes for note in some()]
            filled = zip(self.entries, task.lacking, shard.buffers, strict=True)
            involved = [(entry, {name: found[name] for name in names}) for entry, names, found in filled if names]
            size = 0
            for entry, embeddings in involved:
                share = seconds / len(involved)
                self.writing()
                size += self.store.write_shard(
                    *(entry, task.number, embeddings, notes), seconds=share, run=self.run_id, files=shard.files
                )
            self.upkeep.written(len(involved), size)
        done = EmbedSummary(new_shards=1, quarantined=shard.quarantined, left_out=shard.left_out)
        self.summary.add(done)
        self.written(task.number, done)

    def _spend(self, what: str, since: observability.Mark, items: int = 0) -> observability.Mark:
        now = observability.Mark.now()
        self.summary.spend(what, now.wall - since.wall)
        observability.add("embed", what if what == "variants" else f"wait for {what}", since, items)
        return now


def _notes(
    row_B: NDArray[np.int64],
    size_B2: NDArray[np.int32],
    reasons: Sequence[str | None],
    blobs: Sequence[tuple[str, int]],
    names: Sequence[str],
    small_BRC: Callable[[], NDArray[np.uint8]],
    distinct_TB: Callable[[], NDArray[np.bool_]],
    absent_TB: NDArray[np.bool_],
) -> list[ImageNote]:
    """Notes on the images of a batch; waits for copies from a GPU.

    Args:
        blobs: content hash and mark of each; names: of the T variants; absent_TB: variants that are left out.
    """
    small, alike_TB = manifest.as_hex(small_BRC()), ~(distinct_TB() | absent_TB)
    noted = []
    for i, (row, reason) in enumerate(zip(row_B.tolist(), reasons, strict=True)):
        height, width = size_B2[i].tolist()
        alike = [name for name, alike_B in zip(names, alike_TB, strict=True) if reason is None and alike_B[i]]
        thumbnail = small[i] if reason is None else ""
        noted.append(ImageNote(row, height, width, reason or "", thumbnail, tuple(alike), *blobs[i]))
    return noted


@dataclass(frozen=True)
class EmbedTask:
    """Pending work of a store that is prepared and locked.

    Attributes:
        store: the store, open for writing.
        plan: the embedding plan.
        entries: the plan's backbones in the store, in order.
        run: id of the run that holds the lock.
        todo: the pending shards.
        summary: updated by the executor.
        quiet: whether to show no progress.
    """

    store: EmbeddingStore
    plan: EmbedPlan
    entries: Sequence[BackboneEntry]
    run: str
    todo: PendingShards
    summary: EmbedSummary
    quiet: bool

    def follow(self, bar: ProgressBar) -> None:
        """Tell a bar of embeddings of the photographs."""
        bar.photographs, bar.quarantined = self.summary.images, self.summary.quarantined


Executor: TypeAlias = Callable[[EmbedTask], None]
"""Embeds all pending shards of a task. Finished shards are kept on an exception."""


def embed_here(compiled: Sequence[CompiledBackbone], task: EmbedTask) -> None:
    """Embed all pending shards of a task in this process, in order; stops at the first error."""
    todo, plan = task.todo, task.plan
    loop = Loop(task.store, plan.pipeline, task.entries, compiled, task.run, plan.remedies, plan.readers)
    with stage(plan.title, todo.total, "embeddings", done=todo.done, quiet=task.quiet) as bar:
        task.follow(bar)
        loop.run(starmap(plan.shards(task.store), todo.lacking.items()), task.summary, bar.advance)
