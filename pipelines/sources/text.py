"""Text from untrusted names and labels: fit for a key, a class name and a log line."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter

log = logging.getLogger(__name__)

MAX_TEXT = 1000  # characters of a label or of a key: more is no name
_SHOWN = 20  # lines of a log about one source
_KEPT = 1000  # names that a source remembers of what it left out
_HALVES = re.compile("[\ud800-\udfff]")


def key_text(name: str) -> str:
    """A name as a key: a byte that is not UTF-8 (a surrogate in Python's names of files) becomes U+FFFD and its hex.

    A key is hashed and stored as UTF-8, which has no surrogates. All other names stay as they are.
    """
    if name.isascii():
        return name
    return _HALVES.sub(lambda half: f"\ufffd{ord(half[0]) & 0xFF:02x}", name)


def label_text(value: object) -> str | None:
    """A label from a file as a class name: text or a whole number; None for empty text.

    Raises:
        ValueError: another type, or text that is too long.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"a label of type {type(value).__name__}")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a label of more than 64 bits")
    text = _HALVES.sub("\ufffd", str(value)).strip()
    if len(text) > MAX_TEXT:
        raise ValueError(f"a label of {len(text)} characters")
    return sys.intern(text) if text else None  # many images have it


def shown(name: str) -> str:
    """A name as it may stand in a log line: no control characters, not endless."""
    name = key_text(name)
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= 200 else f"{name[:200]}…"


def words(error: Exception) -> str:
    """What an error says, on one line and not at length."""
    return " ".join(str(error).split())[:200]


class LeftOut:
    """Collects what a source does not take, and says so once: the first names in the log, the others as a number.

    Attributes:
        names: the first 1,000 names that were left out, of ``total``.
        count: number of reasons to be told, of which ``reasons`` holds the first ones.
        skipped: number of files of other kinds by their suffix. They are expected, and not in the log.
        substyle_folders: number of stores and results folders that were skipped.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: list[str] = []
        self.reasons: list[str] = []
        self.count = 0
        self.total = 0
        self.skipped: Counter[str] = Counter()
        self.substyle_folders = 0

    def add(self, name: str, why: str) -> None:
        """One name, and why it was left out, as the rest of a sentence."""
        if len(self.names) < _KEPT:
            self.names.append(name)
        self.total += 1
        self.note(name, why)

    def skip(self, name: str) -> None:
        """A file of a kind that the source does not take."""
        self.skipped[os.path.splitext(name)[1].lower()] += 1

    def note(self, name: str, why: str) -> None:
        """What is to be said of a name that is taken all the same."""
        self.count += 1
        if self.count <= _SHOWN:
            self.reasons.append(f"{shown(name)} {why}")

    def extend(self, other: LeftOut) -> None:
        """What was collected apart, as if it had been said here."""
        self.names += other.names[: max(_KEPT - len(self.names), 0)]
        self.reasons += other.reasons[: max(_SHOWN - self.count, 0)]
        self.count += other.count
        self.total += other.total
        self.skipped += other.skipped
        self.substyle_folders += other.substyle_folders

    def tell(self) -> tuple[str, ...]:
        """Write the log; returns the names (at most 1,000)."""
        for reason in self.reasons:
            log.warning("%s: %s", self.root, reason)
        if self.count > len(self.reasons):
            log.warning("%s: and %d more", self.root, self.count - len(self.reasons))
        return tuple(sorted(self.names))

    def first(self) -> str:
        """The first reason in brackets, for an error where nothing is left; empty when there is none."""
        return f" ({self.reasons[0]})" if self.reasons else ""
