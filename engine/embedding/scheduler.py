"""Background work of the embedding loop: queues of variants for backbones and of shards for the disk.

Variants are rendered, embedded and written concurrently, to keep all cores busy. With several backbones, each embeds
many batches in a row: switching networks evicts the processor's caches and costs milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cuda, observability
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import GateError
from substyle.engine.backbones.spec import Pending
from substyle.engine.cuda import Canvas
from substyle.engine.embedding.plan import ShardTask
from substyle.engine.store.records import FileNote, ImageNote

_UNWRITTEN = 2  # shards that may be queued for the disk
_LOOK_S = 0.1  # interval of checks for errors while waiting for the next batch
T = TypeVar("T")


@dataclass
class ShardInProgress:
    """A shard being embedded.

    Attributes:
        task: its photographs, and what it lacks.
        buffers: for each backbone, embeddings (r, D) float32 by transformation, NaN where none have been computed.
        notes: functions that return the notes of each batch's images, called when the shard is written.
        files: notes on files of real transformations.
        quarantined, left_out: as in `EmbedSummary`.
        missing: number of batches not embedded yet, plus one until the shard is closed.
    """

    task: ShardTask
    buffers: list[dict[str, NDArray[np.float32]]] = field(init=False)
    notes: list[Callable[[], list[ImageNote]]] = field(default_factory=list)
    files: list[FileNote] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: int = 1

    def __post_init__(self) -> None:
        self.buffers = [{} for _ in self.task.lacking]

    def put(self, backbone: int, name: str, row_B: NDArray[np.int64], embedded_BD: NDArray[np.floating]) -> None:
        """Store embeddings of a backbone and transformation.

        Buffers are allocated on the embedding thread, one at a time: those of a shard take 0.1 s, in which the calling
        thread would render no variants.
        """
        buffers = self.buffers[backbone]
        if name not in buffers:
            buffers[name] = np.full((self.task.rows, embedded_BD.shape[1]), np.nan, np.float32)
        buffers[name][row_B] = embedded_BD


@dataclass(frozen=True)
class Batch:
    """One variant of a batch of photographs of a shard.

    Attributes:
        name: the transformation.
        pixels_BSSC: (B, S, S, 3) uint8, not modified any more. Referenced until it is embedded, because its memory may
            belong to another library that reuses it on release.
        rows_B: rows in the shard's buffers.
        keys: keys of the photographs.
        ok_B: bool, whether each photograph is valid.
        made: event after which the pixels are ready; None if they are.
    """

    shard: ShardInProgress
    name: str
    pixels_BSSC: Canvas
    rows_B: NDArray[np.int64]
    keys: Sequence[str]
    ok_B: NDArray[np.bool_]
    made: torch.cuda.Event | None = None


class Scheduler:
    """Embeds batches on one thread and writes completed shards on another.

    Args:
        backbones: the backbones of the run; several layers of a network are one of them.
        write: writes a shard; its second argument is the wall time in seconds since the previous shard was complete.
        on_embedded: called with the number of new embeddings.
        waiting: maximum number of batches queued for each backbone.
        most_in_flight: number of batches in flight per backbone, to keep all its streams busy.
        device: device of the backbones.
    """

    def __init__(
        self,
        backbones: Sequence[CompiledBackbone],
        write: Callable[[ShardInProgress, float], None],
        on_embedded: Callable[[int], None],
        *,
        waiting: int,
        most_in_flight: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        self.device = device
        counts = [len(backbone.names) for backbone in backbones]
        # indices of each one's embeddings in a shard's buffers
        self.places = [range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        self.backbones, self.write, self.on_embedded = backbones, write, on_embedded
        self.waiting, self.most_in_flight = waiting, most_in_flight
        self._changed = threading.Condition()  # guards the attributes below
        self._queues: list[deque[Batch]] = [deque() for _ in backbones]
        self._writes: deque[Future[None]] = deque()
        self._turn = 0  # index of the current backbone
        # the caller is waiting; the caller has finished; the embedding thread has ended
        self._idle = self._last = self._over = False
        self._complete = time.perf_counter()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Context in which batches are added; on exit, everything has been embedded and written.

        Raises:
            exceptions of backbones and of writing. A shard that is being written is always finished.
        """
        with (
            ThreadPoolExecutor(1, "substyle-write") as self._writer,
            ThreadPoolExecutor(1, "substyle-embed") as embedder,
        ):
            try:  # starts before the thread, which waits forever if an interruption comes between
                # on a separate stream, so that a batch does not wait for pixels rendered after its own
                self._embedding = embedder.submit(cuda.own_stream(self.device)(self._embed))
                yield
                with self._changed:
                    self._idle = self._last = True
                    self._changed.notify_all()
                self._embedding.result()
                self._check_writing(0)
            finally:
                self._over = True
                with suppress(RuntimeError):  # not held: an interruption just after it was taken leaves it so
                    while True:
                        self._changed.release()
                with self._changed:
                    self._changed.notify_all()

    def add(self, backbone: int, batch: Batch) -> None:
        """Queue a batch for a backbone, blocking while its queue is full. Raises earlier exceptions of the threads."""
        queue = self._queues[backbone]
        with self._changed:
            batch.shard.missing += 1
            queue.append(batch)
            self._idle = len(queue) > self.waiting
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(queue) <= self.waiting or self._over)
            self._idle = False
        if self._over:
            self._embedding.result()
        self._check_writing(_UNWRITTEN)

    def until(self, more: Future[T]) -> T:
        """Wait for a future; meanwhile all queued batches are embedded. Raises earlier exceptions of the threads."""
        with self._changed:
            self._idle = not more.done()
            self._changed.notify_all()
        while not more.done():
            wait([more], timeout=_LOOK_S)
            if self._over:
                self._embedding.result()
            self._check_writing(len(self._writes))
        with self._changed:
            self._idle = False
        return more.result()

    def _check_writing(self, unwritten: int) -> None:
        """Wait until at most ``unwritten`` shards are queued for the disk. Raises exceptions of earlier writes."""
        while True:
            with self._changed:
                if not self._writes or (len(self._writes) <= unwritten and not self._writes[0].done()):
                    return
                oldest = self._writes.popleft()
            oldest.result()

    def done(self, shard: ShardInProgress) -> None:
        """Count down what a shard lacks: its batches, and the notice that no more will be added."""
        with self._changed:
            shard.missing -= 1
            if not shard.missing:
                now = time.perf_counter()
                self._writes.append(self._writer.submit(self.write, shard, now - self._complete))
                self._complete = now

    # --- on the embedding thread ------------------------------------------------------------------------------------

    def _embed(self) -> None:
        in_flight: deque[tuple[int, Batch, Pending, observability.Mark]] = deque()
        clock = observability.Mark.now()
        try:
            while True:
                with self._changed:
                    if not in_flight:
                        self._changed.wait_for(lambda: self._next() is not None or self._last or self._over)
                    turn = self._next()
                    if self._over or (turn is None and not in_flight):
                        return
                    if turn is not None:
                        self._turn = turn
                        batch = self._queues[turn].popleft()
                        self._changed.notify_all()
                if turn is not None:
                    now = observability.Mark.now()
                    cuda.after(batch.made, self.device)
                    in_flight.append((turn, batch, self.backbones[turn].embed.start(batch.pixels_BSSC), now))
                    if len(in_flight) <= self.most_in_flight:
                        continue
                ended, batch, started, since = in_flight.popleft()
                stored = self._put(ended, batch, started())
                since = max(since, clock, key=lambda mark: mark.wall)
                observability.add("embed", self.backbones[ended].spec.name, since, len(batch.ok_B))
                clock = observability.Mark.now()
                self.on_embedded(stored * len(batch.ok_B))
                self.done(batch.shard)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _put(self, turn: int, batch: Batch, embedded_BD: NDArray[np.floating]) -> int:
        """Store the embeddings of a pass that its shard lacks. Returns for how many backbones.

        Raises GateError if that of a valid photograph is not finite.
        """
        backbone = self.backbones[turn]
        lacked = [
            (place, name, columns)
            for place, name, columns in zip(self.places[turn], backbone.names, backbone.columns, strict=True)
            if batch.name in batch.shard.task.lacking[place]
        ]
        for place, name, columns in lacked:
            own_BD = embedded_BD[batch.ok_B, columns]
            if (bad_B := ~np.isfinite(own_BD).all(axis=1)).any():
                key = batch.keys[int(np.flatnonzero(batch.ok_B)[bad_B.argmax()])]
                raise GateError(
                    f"{name}, {batch.name}: embedding of {key} is not finite in {backbone.runtime['precision']}; if it "
                    'is in float32, embed with precision = "fp32" into another store'
                )
            batch.shard.put(place, batch.name, batch.rows_B[batch.ok_B], own_BD)
        return len(lacked)

    def _next(self) -> int | None:
        """The backbone to run: the current one while it has batches, then the one with the longest queue."""
        if self._queues[self._turn]:
            return self._turn
        longest = max(range(len(self._queues)), key=lambda i: len(self._queues[i]))
        enough = 1 if self._idle or len(self._queues) == 1 else max(self.waiting // 2, 1)
        return longest if len(self._queues[longest]) >= enough else None
