"""Time ``ours``, its peers and the ceiling side by side in one run, and save the results.

A benchmark module defines ``NAME``, ``QUESTION`` and ``run(quick: bool) -> list[Row]``. ``python -m benchmarks [NAME]``
runs it and writes one JSON file to benchmarks/results/. Other scripts have a command line and a document of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from substyle.kernels import cpu

SCHEMA = 1
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS, CEILING = "ours", "ceiling"
_REST = 0.05  # seconds before each contender: threads of the previous one may still spin
BENCHMARKS = (
    *("decode", "transforms", "embed", "precision", "end_to_end", "store", "probes", "neighbours", "startup"),
    *("scale", "engines"),
)
PACKAGES = (
    *("torch", "torchvision", "timm", "nvidia-dali-cuda130", "openvino", "onnxruntime", "nncf", "zarr", "zarrs"),
    *("faiss-cpu", "scikit-learn", "numpy", "pillow", "ray", "daft"),
)


@dataclass(frozen=True)
class Timing:
    """Seconds per repeat of one contender: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float
    repeats: int

    @staticmethod
    def of(seconds: list[float]) -> Timing:
        """Summarise the seconds of at least one repeat."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return Timing(statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)], len(ordered))


@dataclass
class Row:
    """One comparison.

    Attributes:
        name: what is measured, such as "one variant of all images".
        unit: what is counted, such as "images" or "bytes".
        count: units per repeat.
        timings: by contender: ``ours``, ``ceiling`` if timed, and peers.
        ceiling_per_s: ceiling in units per second, if computed instead of timed.
        facts: further numbers and text, such as accuracies.
        headline: whether the row appears in the table of docs/performance.md.
    """

    name: str
    unit: str
    count: float
    timings: dict[str, Timing]
    ceiling_per_s: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    headline: bool = True

    def rate(self, contender: str = OURS) -> float:
        """Units per second at the median."""
        return self.count / self.timings[contender].median

    def of_ceiling(self) -> float | None:
        """Rate of ``ours`` as a fraction of the ceiling; None without a ceiling."""
        if CEILING in self.timings:
            return self.timings[CEILING].median / self.timings[OURS].median
        return self.rate() / self.ceiling_per_s if self.ceiling_per_s else None

    def times_faster(self) -> dict[str, float]:
        ours = self.timings[OURS].median
        return {name: t.median / ours for name, t in self.timings.items() if name not in (OURS, CEILING)}

    def described(self) -> dict[str, Any]:
        """Return the row as it is kept, with rates and ratios beside the times."""
        return {
            **asdict(self),
            "per_s": {contender: self.rate(contender) for contender in self.timings},
            "of_ceiling": self.of_ceiling(),
            "times_faster": self.times_faster(),
        }


def interleave(contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Time contenders alternately, so that other load on the machine affects all of them alike.

    A contender that returns a float reports its own seconds; otherwise the whole call is timed.
    """
    for contender in contenders.values():
        for _ in range(warmup):
            contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            time.sleep(_REST)
            began = time.perf_counter()
            said = contender()
            spent = time.perf_counter() - began
            seconds[name].append(said if isinstance(said, float) else spent)
    return {name: Timing.of(times) for name, times in seconds.items()}


def environment() -> dict[str, Any]:
    from substyle.engine import cache

    return {
        "cpu": cpu.model(),
        "features": [f for f in ("avx512_bf16", "amx_bf16", "amx_int8") if cpu.has(f)],
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name, found in cache.versions(*PACKAGES).items() if found},
    }


def document(name: str, question: str, **parts: object) -> dict[str, Any]:
    """Build the JSON document of a benchmark, with the machine and the time."""
    return {
        "schema": SCHEMA,
        "benchmark": name,
        "question": question,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "environment": environment(),
        **parts,
    }


def write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", metavar="FILE")
    return made


def markdown(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    first = list(headings)
    return "\n".join([f"| {' | '.join(first)} |", "|---" * len(first) + "|", *(f"| {' | '.join(r)} |" for r in rows)])


def rate(per_s: float, unit: str, digits: int = 4) -> str:
    """Format items per second, or below one per second the seconds of each."""
    return f"{per_s:,.{digits}g} {unit}/s" if per_s >= 1 else f"{1 / per_s:,.{digits}g} s each"


def replaced(page: str, start: str, end: str, text: str) -> str:
    """Replace the text between two markers of a page."""
    before, rest = page.split(start)
    return f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"


def shown(data: Mapping[str, Any]) -> str:
    """Format a result document, one line per row: rate, fraction of the ceiling, ratios to peers and facts."""
    lines = [f"{data['benchmark']}: {data['question']}"]
    for row in data["rows"]:
        parts = [rate(row["per_s"]["ours"], row["unit"])]
        if row["of_ceiling"] is not None:
            parts.append(f"{row['of_ceiling']:.2f} of the ceiling")
        parts += [f"{times:.2f} × {peer}" for peer, times in row["times_faster"].items()]
        parts += [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row["facts"].items()]
        lines.append(f"  {row['name']}: {', '.join(parts)}")
    return "\n".join(lines)
