"""Progress bars, and time spans for profiling and traces."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Protocol, TextIO

_LINE_EVERY_S = 15.0
_WINDOWS, _WINDOW_S = 6, 10.0  # the last minute
_REFRESH_S = 0.1  # of a bar whose stage notes what it does between items


class ProgressBar(Protocol):
    """Progress of a stage."""

    def advance(self, count: int = 1) -> None:
        """Add finished items."""
        ...

    def note(self, text: str) -> None:
        """Show a short text next to the bar."""
        ...


class _Rate:
    """Median over the last six windows of ten seconds of items per second: one slow batch does not change it.

    Until the first window is over, and while nothing arrives in most of them, the mean of all.
    """

    def __init__(self, done: int) -> None:
        self.first = done
        self.start = time.monotonic()
        self.seen = deque([(self.start, done)])  # (time, items done), at most one per second

    def update(self, done: int, now: float) -> None:
        """Note the number of finished items."""
        if len(self.seen) > 1 and now - self.seen[-2][0] < 1.0:
            self.seen.pop()
        self.seen.append((now, done))
        while self.seen[1][0] < now - _WINDOWS * _WINDOW_S:  # one point before the first window is kept
            self.seen.popleft()

    def per_s(self, now: float) -> float:
        """Items per second."""
        done = self.seen[-1][1]
        mean = (done - self.first) / max(now - self.start, 1e-9)
        count = min(_WINDOWS, int((now - self.start) / _WINDOW_S))
        if not count:
            return mean
        edges = [self._at(now - i * _WINDOW_S) for i in range(count + 1)]
        return median((later - earlier) / _WINDOW_S for later, earlier in pairwise(edges)) or mean

    def _at(self, when: float) -> float:
        """Items done at a time, on a line between the times at which some arrived."""
        times = [time for time, _ in self.seen]
        after = bisect_left(times, when)
        if after in (0, len(times)):
            return self.seen[min(after, len(times) - 1)][1]
        (t0, n0), (t1, n1) = self.seen[after - 1], self.seen[after]
        return n0 + (n1 - n0) * (when - t0) / (t1 - t0)


class _Lines:
    def __init__(self, name: str, total: int, unit: str, done: int, out: TextIO) -> None:
        self.name, self.total, self.unit, self.out = name, total, unit, out
        self.done, self.last = done, time.monotonic()
        self.rate = _Rate(done)
        self.remark = ""

    def advance(self, count: int = 1) -> None:
        self.done += count
        if count:
            self.rate.update(self.done, time.monotonic())
        if time.monotonic() - self.last >= _LINE_EVERY_S:
            self.write()

    def note(self, text: str) -> None:
        self.remark = text
        self.advance(0)

    def write(self) -> None:
        self.last = time.monotonic()
        rate = self.rate.per_s(self.last)
        eta = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        tail = f" ({self.remark})" if self.remark else ""
        of = f"/{self.total}" if self.done <= self.total else ""  # an estimate may be exceeded
        print(f"{self.name}: {self.done}{of} {self.unit}, {rate:.1f}/s{eta}{tail}", file=self.out, flush=True)


class _Tqdm:
    def __init__(self, name: str, total: int, unit: str, done: int, out: TextIO) -> None:
        from tqdm import tqdm

        rate = self.rate = _Rate(done)

        class _Bar(tqdm):  # type: ignore[misc]
            @property
            def format_dict(self) -> dict[str, Any]:
                return {**super().format_dict, "rate": rate.per_s(time.monotonic()) or None}

        self.bar = _Bar(total=total, initial=done, desc=name, unit=f" {unit}", file=out, dynamic_ncols=True)
        self.shown = 0.0

    def advance(self, count: int = 1) -> None:
        if count:
            self.rate.update(self.bar.n + count, time.monotonic())
        self.bar.update(count)

    def note(self, text: str) -> None:
        now = time.monotonic()
        due = now - self.shown > _REFRESH_S
        self.bar.set_postfix_str(text, refresh=due)
        self.shown = now if due else self.shown


Listener = Callable[[str, int, int, float], object]  # stage, items done, total, items per second
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Report the progress of all stages in the block to a function: every ten seconds, and when they end."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class _Reporting:
    """A progress bar that reports to listeners."""

    def __init__(self, bar: ProgressBar, name: str, total: int, done: int) -> None:
        self.bar, self.name, self.total, self.done = bar, name, total, done
        self.rate, self.last, self.note = _Rate(done), time.monotonic(), bar.note

    def advance(self, count: int = 1) -> None:
        self.bar.advance(count)
        self.done += count
        now = time.monotonic()
        self.rate.update(self.done, now)
        if now - self.last >= _WINDOW_S:
            self.report(now)

    def report(self, now: float) -> None:
        self.last = now
        for listener in _listeners:
            listener(self.name, self.done, self.total, self.rate.per_s(now))


@contextmanager
def stage(name: str, total: int, unit: str, *, done: int = 0, quiet: bool = False) -> Iterator[ProgressBar]:
    """Show the progress of a stage of ``total`` items, ``done`` of them finished in earlier runs."""
    with _shown(name, total, unit, done, quiet) as bar:
        if not _listeners:
            yield bar
            return
        reporting = _Reporting(bar, name, total, done)
        try:
            yield reporting
        finally:
            reporting.report(time.monotonic())


@contextmanager
def _shown(name: str, total: int, unit: str, done: int, quiet: bool) -> Iterator[ProgressBar]:
    out = sys.stderr
    if quiet:
        yield _Silent()
    elif out.isatty():
        bar = _Tqdm(name, total, unit, done, out)
        try:
            yield bar
        finally:
            bar.bar.close()
    else:
        lines = _Lines(name, total, unit, done, out)
        try:
            yield lines
        finally:
            lines.write()


class _Silent:
    def advance(self, count: int = 1) -> None:
        del count

    def note(self, text: str) -> None:
        del text


# Time spans. Recording is off outside `recording`; a span costs two clock readings.


@dataclass(frozen=True)
class Mark:
    """A point in time: wall clock and CPU time of the process (all threads), in seconds."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Mark:
        """The current time."""
        return Mark(time.perf_counter(), time.process_time())


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
    def items_per_s(self) -> float:
        """Items per second of wall time."""
        return self.items / self.wall if self.wall else 0.0


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
