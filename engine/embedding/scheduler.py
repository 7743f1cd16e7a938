"""What the embedding loop is ahead with: variants that wait for their backbones, and shards that wait for the disk.

Making variants, embedding them and writing the shard before go on side by side, so that no core waits for another.
Where there are several backbones, one goes on for many batches before the next has its turn: a network that takes over
from another finds nothing of its own in the processor's caches, which costs milliseconds every time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cuda, observability
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.spec import AsyncResult
from substyle.engine.cuda import Canvas
from substyle.engine.store.records import ImageNote

_UNWRITTEN = 2  # shards that may wait for the disk
_LOOK_S = 0.1  # between looks at what goes on, while nothing is given
T = TypeVar("T")


@dataclass
class ShardInProgress:
    """A unit of work under way.

    Attributes:
        number: of the shard; first: its first row; images: its images, as positions in the manifest.
        wanted: transformations that some backbone lacks.
        buffers: for each backbone the embeddings of those it lacks, (r, D) float32, NaN where nothing is yet.
        notes: what has been learnt of its images so far, batch after batch; asked for when the shard is written.
        missing: embedded batches that are still to come; one more while the shard is open.
    """

    number: int
    first: int
    images: range
    wanted: list[str]
    buffers: list[dict[str, NDArray[np.float32]]]
    notes: list[Callable[[], list[ImageNote]]] = field(default_factory=list)
    missing: int = 1


@dataclass(frozen=True)
class Batch:
    """One variant of some photographs of a shard.

    Attributes:
        name: the transformation.
        pixels_BSSC: (B, S, S, 3) uint8, to which nobody writes any more. It is held until its embeddings are there:
            its memory may be another library's, that takes it back at once.
        rows_B: the row of each in the shard's buffers; ok_B: bool, which of them are valid.
        made: the event after which the pixels are there; None where they are.
    """

    shard: ShardInProgress
    name: str
    pixels_BSSC: Canvas
    rows_B: NDArray[np.int64]
    ok_B: NDArray[np.bool_]
    made: torch.cuda.Event | None = None


class Scheduler:
    """Takes batches and shards from one thread, embeds the batches, and has shards written that have all of theirs.

    Args:
        backbones: of the run.
        write: writes a shard, given the wall time in seconds since the shard before it was complete.
        arrived: told how many embeddings have arrived.
        waiting: batches that may wait for each backbone.
        begun: batches that a backbone is given before the first of them has ended, so that all its streams have work.
        device: where the backbones run.
    """

    def __init__(
        self,
        backbones: Sequence[CompiledBackbone],
        write: Callable[[ShardInProgress, float], None],
        arrived: Callable[[int], None],
        *,
        waiting: int,
        begun: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - it cannot change
    ) -> None:
        self.device = device
        self.backbones, self.write, self.arrived = backbones, write, arrived
        self.waiting, self.begun = waiting, begun
        self._changed = threading.Condition()  # guards all that follows
        self._queues: list[deque[Batch]] = [deque() for _ in backbones]
        self._writes: deque[Future[None]] = deque()
        self._turn = 0  # whose batches are embedded
        self._idle = self._last = self._over = False  # the giver waits; will give no more; the embedding has ended
        self._complete = time.perf_counter()

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block that gives it work; after it everything is embedded and written.

        Raises:
            what went wrong in a backbone or in writing. A shard that is being written is finished in every case.
        """
        with (
            ThreadPoolExecutor(1, "substyle-write") as self._writer,
            ThreadPoolExecutor(1, "substyle-embed") as embedder,
        ):
            self._embedding = embedder.submit(self._embed)
            try:
                yield
                with self._changed:
                    self._idle = self._last = True
                    self._changed.notify_all()
                self._embedding.result()
                self._check_writing(0)
            finally:
                with self._changed:
                    self._over = True
                    self._changed.notify_all()

    def add(self, backbone: int, batch: Batch) -> None:
        """Let a backbone embed a batch; waits while too many wait for it. Raises what went wrong so far."""
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
        """Wait for what tells what comes next; meanwhile all that is there is embedded, however little.

        Raises what went wrong so far.
        """
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

    def close(self, shard: ShardInProgress) -> None:
        """All batches of a shard have been added."""
        self._arrived(shard)

    def _check_writing(self, unwritten: int) -> None:
        """Wait until no more than that many shards wait for the disk. Raises what went wrong with those before."""
        while True:
            with self._changed:
                if not self._writes or (len(self._writes) <= unwritten and not self._writes[0].done()):
                    return
                oldest = self._writes.popleft()
            oldest.result()

    def _arrived(self, shard: ShardInProgress) -> None:
        with self._changed:
            shard.missing -= 1
            if not shard.missing:
                now = time.perf_counter()
                self._writes.append(self._writer.submit(self.write, shard, now - self._complete))
                self._complete = now

    # --- on the embedding thread ------------------------------------------------------------------------------------

    def _embed(self) -> None:
        # on a stream of its own, so that a batch waits for its own pixels and not for those that are made after them
        with cuda.own_stream(self.device):
            self._embed_all()

    def _embed_all(self) -> None:
        begun: deque[tuple[int, Batch, AsyncResult, observability.Mark]] = deque()
        clock = observability.Mark.now()
        try:
            while True:
                with self._changed:
                    if not begun:
                        self._changed.wait_for(lambda: self._next() is not None or self._last or self._over)
                    turn = self._next()
                    if self._over or (turn is None and not begun):
                        return
                    if turn is not None:
                        self._turn = turn
                        batch = self._queues[turn].popleft()
                        self._changed.notify_all()
                if turn is not None:
                    now = observability.Mark.now()
                    cuda.after(batch.made, self.device)
                    begun.append((turn, batch, self.backbones[turn].start(batch.pixels_BSSC), now))
                    if len(begun) <= self.begun:
                        continue
                ended, batch, started, since = begun.popleft()
                embedded_BD = started.result()
                batch.shard.buffers[ended][batch.name][batch.rows_B[batch.ok_B]] = embedded_BD[batch.ok_B]
                since = max(since, clock, key=lambda mark: mark.wall)
                observability.add("embed", self.backbones[ended].spec.name, since, len(batch.ok_B))
                clock = observability.Mark.now()
                self.arrived(len(batch.ok_B))
                self._arrived(batch.shard)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _next(self) -> int | None:
        """The backbone whose turn it is: the same while something waits for it, then the one for which most waits."""
        if self._queues[self._turn]:
            return self._turn
        longest = max(range(len(self._queues)), key=lambda i: len(self._queues[i]))
        enough = 1 if self._idle or len(self._queues) == 1 else max(self.waiting // 2, 1)
        return longest if len(self._queues[longest]) >= enough else None
