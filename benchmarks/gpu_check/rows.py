"""Rows of evidence, the document they are kept in, and their table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import markdown, rate

SCHEMA = 1
PASSED, FAILED, SKIPPED, MEASURED = "passed", "failed", "skipped", "measured"
STATUSES = (PASSED, FAILED, SKIPPED, MEASURED)


@dataclass
class Row:
    """One claim held against the device.

    Attributes:
        part: the part it belongs to.
        name: what was checked or measured.
        status: passed or failed for correctness and for whatever crashed, measured for rates, skipped.
        text: the reason of a skipped or failed row, a remark otherwise.
        unit: what a rate counts; "" where none was measured.
        per_s: units a second at the median.
        seconds: median, 20th and 80th percentile of one repeat, and how many there were.
        ceiling_per_s: the most units a second there could be; ceiling: where that number is from.
        peers: units a second of others' ways to the same.
        facts: further numbers and words.
    """

    part: str
    name: str
    status: str
    text: str = ""
    unit: str = ""
    per_s: float | None = None
    seconds: dict[str, float] | None = None
    ceiling_per_s: float | None = None
    ceiling: str = ""
    peers: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def of_ceiling(self) -> float | None:
        return self.per_s / self.ceiling_per_s if self.per_s and self.ceiling_per_s else None

    @property
    def times_faster(self) -> dict[str, float]:
        return {name: self.per_s / rate for name, rate in self.peers.items()} if self.per_s else {}


Job = tuple[str, Callable[[], Iterable[Row]]]  # a piece of a part by name; if it crashes, the others are made still


def skipped(part: str, name: str, reason: str) -> Row:
    return Row(part, name, SKIPPED, reason)


def measured(
    part: str,
    name: str,
    unit: str,
    count: float,
    seconds: dict[str, float],
    **more: Any,  # noqa: ANN401
) -> Row:
    """A row with the rate of ``count`` units in the median of some seconds."""
    return Row(part, name, MEASURED, unit=unit, per_s=count / seconds["median"], seconds=seconds, **more)


def correctness(part: str, name: str, good: bool, text: str = "", **facts: Any) -> Row:  # noqa: ANN401
    return Row(part, name, PASSED if good else FAILED, text, facts=facts)


def document(environment: Mapping[str, Any], rows: Sequence[Row], parts: Mapping[str, float]) -> dict[str, Any]:
    """What is kept: the device, seconds of each part that has ended, all rows."""
    made = [{**asdict(row), "of_ceiling": row.of_ceiling, "times_faster": row.times_faster} for row in rows]
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    about = {"schema": SCHEMA, "benchmark": "gpu_check", "environment": dict(environment)}
    return {**about, "parts": dict(parts), "counts": counts, "rows": _finite(made)}


def save(data: Mapping[str, Any], path: Path) -> None:
    """Write the document whole or not at all: a run may be cut at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    beside.replace(path)


def table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        per_s = rate(row.per_s, row.unit) if row.per_s else ""
        share = f"{row.of_ceiling:.2f} of {row.ceiling}" if row.of_ceiling else ""
        against = ", ".join(f"{times:.2f} × {name}" for name, times in row.times_faster.items())
        told = [row.text, *(f"{name} {_short(value)}" for name, value in row.facts.items())]
        cells = (row.part, row.name, row.status, per_s, share, against, "; ".join(filter(None, told)))
        lines.append([cell.replace("|", "/").replace("\n", " ") for cell in cells])
    return markdown(("part", "what", "", "rate", "of the ceiling", "against", ""), lines)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """The same with NaN and infinities, which a wrong kernel may give, as words: JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
