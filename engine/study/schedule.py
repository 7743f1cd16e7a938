"""Time left of a whole run, from what its parts took in the last run on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tqdm import tqdm

from substyle.engine import cache, observability
from substyle.files import UnsafeFileError

EMBED, REPORT = "embed", "report"
_ALIKE = 4.0  # largest ratio of the sizes of two runs whose parts take about as long per embedding


class Schedule:
    """Parts of a run, one after another, and the seconds that each is expected to take.

    A part takes as long per embedding of each backbone as in the last run of about this size, if possible one of the
    same backbones and settings.

    Args:
        backbones: their names.
        stages: names of the stages that are on.
        size: number of variants of all photographs.
        settings: text that is the same for the same settings of a study.
    """

    def __init__(self, backbones: Sequence[str], stages: Sequence[str], size: int, settings: str = "") -> None:
        self.settings, self.backbones, self.size = settings, sorted(backbones), max(size, 1)
        self.expected = {part: self._recalled(part) for part in (EMBED, *stages, REPORT)}
        self.part, self.began = "", 0.0

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Show the time left beside all progress bars in the block."""
        self.part, self.began = part, time.monotonic()
        with observability.whole_run(self.left):
            yield

    def left(self, bar: str, seconds: float | None) -> str:
        """Text about the time left; empty if nothing is known.

        Args:
            bar: name of a progress bar, and seconds: its time left, if known.
        """
        own = seconds
        if bar != EMBED or self.part != EMBED:
            expected = self.expected.get(self.part)
            elapsed = time.monotonic() - self.began
            own = expected - elapsed if expected is not None and expected > elapsed else None
        parts = list(self.expected)
        later = [self.expected[part] for part in parts[parts.index(self.part) + 1 :]] if self.part in parts else []
        known = [each for each in (own, *later) if each is not None]
        more = "" if len(known) == 1 + len(later) else "more than "
        return f"whole run: {more}{tqdm.format_interval(round(sum(known)))} left" if known else ""

    def keep(self, *, others: bool = True) -> None:
        """Keep what the current part took, all of which was computed, for later runs.

        Args:
            others: also for runs of other backbones or settings.
        """
        if self.part not in self.expected:  # a stage that is off has taken no time
            return
        seconds = time.monotonic() - self.began
        with suppress(OSError, UnsafeFileError):
            for facts in self._facts(self.part)[: 1 + others]:
                cache.keep("pace", facts, [seconds / len(self.backbones), self.size])

    def _recalled(self, part: str) -> float | None:
        for facts in self._facts(part):
            with suppress(OSError, UnsafeFileError, ValueError, TypeError, ZeroDivisionError):
                each, size = cache.recall("pace", facts)
                if 0 <= each < math.inf and 1 / _ALIKE <= self.size / size <= _ALIKE:
                    return float(each * self.size / size * len(self.backbones))
        return None

    def _facts(self, part: str) -> list[dict[str, object]]:
        """What identifies a part of this study, and of any."""
        return [{"part": part, "backbones": self.backbones, "settings": self.settings}, {"part": part}]
