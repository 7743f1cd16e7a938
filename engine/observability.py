"""Progress bars, and time spans for profiling and traces."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

_LINE_EVERY_S, _REFRESH_S = 15.0, 0.5  # in a log, and of a bar in a terminal
_TICK_S = 1.0  # between two drawings of a bar that does not advance
_REPORT_EVERY_S = 10.0  # to listeners
_MEMORY_S = 60.0  # of the rate: one slow batch changes it little


Listener = Callable[["ProgressBar"], object]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Report the progress of all stages in the block to a function: every ten seconds, and when they end."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


Left = Callable[[str, float | None], str]  # name of a bar and its seconds left -> text about those of the whole run
_left: Left | None = None


@contextmanager
def whole_run(left: Left) -> Iterator[None]:
    """Show a text about the time left of the whole run beside each progress bar in the block."""
    global _left  # noqa: PLW0603 - one run per process, instead of an argument of every function
    before, _left = _left, left
    try:
        yield
    finally:
        _left = before


class ProgressBar(tqdm):  # type: ignore[misc]
    """A bar in a terminal, lines in a log; reports to listeners."""

    monitor_interval = 0  # no thread

    photographs = 0  # whose variants the items are
    quarantined: Sized = ()

    def __init__(self, name: str, total: int, unit: str, done: int, out: TextIO) -> None:
        self.name, self.text, self.log = name, "", not out.isatty()
        every = _LINE_EVERY_S if self.log else _REFRESH_S
        super().__init__(
            *(None, name, total),
            initial=done, unit=f" {unit}", file=out, disable=False, ncols=0 if self.log else None,
            dynamic_ncols=not self.log, mininterval=every, miniters=1, smoothing=every / _MEMORY_S,
        )  # fmt: skip
        self.reported_at = time.monotonic()
        self.shown_at = self.reported_at if self.log else -math.inf  # the first note is shown at once

    @staticmethod
    def format_meter(*args: object, **kwargs: object) -> str:
        """The text of a bar. A rate below one per second is "1.70 s/step", where tqdm has "1.70s/ steps"."""
        return re.sub(r"s/ (\w+?)s?\b", r" s/\1", tqdm.format_meter(*args, **kwargs))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or write a line unless there is nothing to say yet."""
        self.shown_at = time.monotonic()
        if self.log and self.n == self.initial and not self.text:
            return
        self.postfix = ", ".join(filter(None, (self.text, self._whole_run()))) or None
        if self.log:
            print(self, file=self.fp, flush=True)
        else:
            super().display(msg, pos)

    def _whole_run(self) -> str:
        if _left is None:
            return ""
        rate = self.format_dict["rate"]
        return _left(self.name, (self.total - self.n) / rate if rate and self.n <= self.total else None)

    def advance(self, count: int = 1) -> None:
        """Add finished items. Totals may be estimates; once one is exceeded, no time left is shown."""
        if self.total and self.n + count > self.total:
            self.desc = f"{self.name}, longer than estimated"
        self.update(count)
        if time.monotonic() - self.reported_at >= _REPORT_EVERY_S:
            self.report()

    def note(self, text: str) -> None:
        """Show a short text next to the bar."""
        self.text = text
        if time.monotonic() - self.shown_at >= self.mininterval:
            self.refresh()

    def report(self) -> None:
        """Report to listeners."""
        self.reported_at = time.monotonic()
        for listener in _listeners:
            listener(self)

    @property
    def rate(self) -> float:
        """Items per second."""
        state = self.format_dict
        return float(state["rate"] or (self.n - self.initial) / max(state["elapsed"], 1e-9))

    @property
    def units(self) -> dict[str, float]:
        """Units of the items, and of the photographs that they are made from, with their number per item."""
        shares = {self.unit.strip(): 1.0}
        return shares | {"photographs": self.photographs / self.total} if self.photographs and self.total else shares

    def end(self) -> None:
        """Show the end."""
        self.report()
        if self.log:
            self.display()
            self.disable = True  # closing would write an empty line
        else:
            self.close()


ProgressBar.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which a killed process leaves behind


@contextmanager
def stage(
    name: str, total: int, unit: str, *, done: int = 0, estimated: bool = False, quiet: bool = False
) -> Iterator[ProgressBar]:
    """Show the progress of a stage.

    Args:
        total: number of items.
        done: items that were finished in earlier runs.
        estimated: ``total`` is an estimate; the items of the block are all there are.
        quiet: hide progress.
    """
    bar = ProgressBar(name, total, unit, done, io.StringIO() if quiet else sys.stderr)
    with ExitStack() as ticking:
        if not bar.log:
            ended = threading.Event()
            ticker = threading.Thread(target=_tick, args=(bar, ended), daemon=True)
            ticker.start()
            ticking.callback(ticker.join)
            ticking.callback(ended.set)
        try:
            yield bar
            if estimated:
                bar.desc, bar.total = name, bar.n
        finally:
            ticking.close()
            bar.end()


def _tick(bar: ProgressBar, ended: threading.Event) -> None:
    """Draw a bar each second, so that its time goes on where an item takes long."""
    while not ended.wait(_TICK_S):
        bar.refresh()


# Time spans. Recording is off outside `recording`; a span then costs two readings of the wall clock.


@dataclass(frozen=True)
class Mark:
    """A point in time: wall clock and, while recording, CPU time of the process (all threads), in seconds."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Mark:
        """The current time."""
        # the CPU time is a sum over all threads, which takes long if there are many
        return Mark(time.perf_counter(), time.process_time() if is_recording() else 0.0)


@dataclass(frozen=True)
class Span:
    """A time span.

    Attributes:
        stage: group in the summary, such as ``embed``.
        name: name, such as ``decode``.
        began, ended: start and end.
        items: number of processed items; 0 if not counted.
        thread: native id of the thread.
    """

    stage: str
    name: str
    began: Mark
    ended: Mark
    items: int
    thread: int


@dataclass
class Total:
    """Sums over all spans of one stage and name: wall and CPU seconds, items, calls."""

    wall: float = 0.0
    cpu: float = 0.0
    items: int = 0
    calls: int = 0

    @property
    def busy(self) -> float:
        """Average number of busy cores."""
        return self.cpu / self.wall if self.wall else 0.0

    @property
    def rate(self) -> str:
        """Items per second of wall time as text, or below one per second the seconds of each; empty without items."""
        if not self.items or not self.wall:
            return ""
        per_s = self.items / self.wall
        return f"{per_s:,.1f}" if per_s >= 1 else f"{1 / per_s:,.1f} s each"


@dataclass
class Trace:
    """The spans of a run, ordered by end."""

    began: Mark = field(default_factory=Mark.now)
    spans: list[Span] = field(default_factory=list)

    def add(self, stage: str, name: str, began: Mark, ended: Mark, items: int = 0) -> None:
        """Add a span."""
        self.spans.append(Span(stage, name, began, ended, items, threading.get_native_id()))

    def totals(self) -> dict[tuple[str, str], Total]:
        """Sums by (stage, name), ordered by first start."""
        found: dict[tuple[str, str], Total] = {}
        for span in sorted(self.spans, key=lambda s: s.began.wall):
            total = found.setdefault((span.stage, span.name), Total())
            total.wall += span.ended.wall - span.began.wall
            total.cpu += span.ended.cpu - span.began.cpu
            total.items += span.items
            total.calls += 1
        return found

    def events(self) -> dict[str, Any]:
        """The trace in the Trace Event Format of chrome://tracing and Perfetto; times in microseconds."""
        events: list[dict[str, Any]] = [
            {
                "name": span.name,
                "cat": span.stage,
                "ph": "X",  # a complete event: start and duration
                "ts": (span.began.wall - self.began.wall) * 1e6,
                "dur": (span.ended.wall - span.began.wall) * 1e6,
                "pid": os.getpid(),
                "tid": span.thread,
                "args": {"items": span.items, "cpu_ms": round((span.ended.cpu - span.began.cpu) * 1e3, 3)},
            }
            for span in self.spans
        ]
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def to_json(self) -> bytes:
        """`events` as JSON."""
        return json.dumps(self.events()).encode()


_active: Trace | None = None


@contextmanager
def recording() -> Iterator[Trace]:
    """Record spans of the whole process during the block."""
    global _active  # noqa: PLW0603 - one recorder per process, instead of an argument of every function
    before, trace = _active, Trace()
    _active = trace
    try:
        yield trace
    finally:
        _active = before


def is_recording() -> bool:
    """Whether spans are recorded."""
    return _active is not None


def extend(spans: Sequence[Span]) -> None:
    """Add spans of another process of this machine, if recording."""
    if _active is not None:
        _active.spans.extend(spans)


def add(stage: str, name: str, began: Mark, items: int = 0) -> None:
    """Add a span from ``began`` until now, if recording."""
    if _active is not None:
        _active.add(stage, name, began, Mark.now(), items)


@contextmanager
def span(stage: str, name: str, items: int = 0) -> Iterator[None]:
    """Add the block as a span, if recording; an exception in a stage of a run gets a note of it."""
    began = Mark.now()
    try:
        yield
    except Exception as error:
        if stage == "run":
            error.add_note(f"stage {name}")
        raise
    finally:
        add(stage, name, began, items)


def fastest(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the seconds of the fastest of four alternating runs of each call; fewer runs if they take long."""
    best = [math.inf] * len(calls)
    until = time.perf_counter() + 2
    for _ in range(4):
        for i, call in enumerate(calls):
            began = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - began)
        if time.perf_counter() > until:
            break
    return best
