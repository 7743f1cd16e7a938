"""Progress of a long stage, on stderr: a bar with rate and ETA on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

_LINE_EVERY_S = 15.0


class Bar(Protocol):
    """What a stage calls as it goes."""

    def advance(self, count: int = 1) -> None:
        """Count more items as done."""
        ...

    def note(self, text: str) -> None:
        """Show a short remark beside the bar."""
        ...


class _Lines:
    def __init__(self, name: str, total: int, unit: str, done: int, out: TextIO) -> None:
        self.name, self.total, self.unit, self.out = name, total, unit, out
        self.first = self.done = done
        self.start = self.last = time.monotonic()
        self.remark = ""

    def advance(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self.last >= _LINE_EVERY_S:
            self.write()

    def note(self, text: str) -> None:
        self.remark = text

    def write(self) -> None:
        self.last = time.monotonic()
        rate = (self.done - self.first) / max(self.last - self.start, 1e-9)
        eta = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        tail = f" ({self.remark})" if self.remark else ""
        print(f"{self.name}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s{eta}{tail}", file=self.out, flush=True)


class _Tqdm:
    def __init__(self, name: str, total: int, unit: str, done: int, out: TextIO) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", file=out, dynamic_ncols=True)

    def advance(self, count: int = 1) -> None:
        self.bar.update(count)

    def note(self, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)


@contextmanager
def stage(name: str, total: int, unit: str, *, done: int = 0, quiet: bool = False) -> Iterator[Bar]:
    """Show a stage of ``total`` items, ``done`` of them finished earlier; quiet stages print nothing."""
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
