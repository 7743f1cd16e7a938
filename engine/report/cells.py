"""What a table is, and how a value is shown to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from substyle.engine.report.results import dig

Kind = Literal["text", "share", "points", "number", "count"]


@dataclass(frozen=True)
class Column:
    """One column: its machine name, its heading and what its values are.

    ``share`` is a share of 1, ``points`` a difference of shares. With ``interval`` a value is (value, low, high) or
    None, and files spread it over three columns.
    """

    name: str
    heading: str
    kind: Kind = "share"
    interval: bool = False


@dataclass(frozen=True)
class Table:
    """A table of plain values; None where there is no number."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]


def show(value: object, kind: Kind = "share") -> str:
    """A value as people read it: shares in per cent, an en dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind == "share":
            return minus(f"{100 * value:.1f}")
        if kind == "points":
            return minus(f"{100 * value:+.1f}")
        if kind == "count":
            return f"{value:,.0f}"
        if kind == "number":
            return minus(f"{value:.3f}")
    return str(value)


def show_interval(low_high: Sequence[float] | None, kind: Kind = "share") -> str:
    """A 95 % interval as people read it; empty where there is none."""
    if low_high is None:
        return ""
    low, high = (show(end, kind) for end in low_high)
    return f"{low} to {high}" if kind == "points" else f"{low}–{high}"


def minus(text: str) -> str:
    """A number's text with a true minus sign."""
    return text.replace("-", "−")


def scored(scores: object, name: str, interval: str = "") -> tuple[float, float | None, float | None] | None:
    """(value, low, high) of a score that has its interval under another key; None where there is no value."""
    value = dig(scores, name)
    low_high = dig(scores, interval or f"{name}_ci95") or (None, None)
    return None if value is None else (value, low_high[0], low_high[1])
