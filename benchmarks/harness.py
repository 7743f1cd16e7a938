"""Time ``ours``, its peers and the ceiling side by side in one run, and save the results.

A benchmark module defines ``NAME``, ``QUESTION`` and ``run(quick: bool) -> list[Row]``. It runs alone
(``python -m benchmarks.store [--quick] [--out DIR]``) or with all others (``python -m benchmarks``), and writes one
JSON file to benchmarks/results/, whose schema `check` validates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from substyle.kernels import cpu

SCHEMA = 1
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICK = Path("runs") / "bench-quick"
OURS, CEILING = "ours", "ceiling"
_REST = 0.05  # seconds before each contender: threads of the previous one may still spin
BENCHMARKS = (
    *("decode", "transforms", "embed", "precision", "end_to_end", "store", "probes", "neighbours", "startup"),
    "scale",
)
PACKAGES = (
    *("torch", "torchvision", "timm", "nvidia-dali-cuda130", "openvino", "onnxruntime", "nncf", "zarr", "zarrs"),
    *("faiss-cpu", "scikit-learn", "numpy", "pillow"),
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
        """Speed-up of ``ours`` over each peer."""
        ours = self.timings[OURS].median
        return {name: t.median / ours for name, t in self.timings.items() if name not in (OURS, CEILING)}


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
    """Describe the machine and the versions of the measured packages."""
    from substyle.engine import cache

    return {
        "cpu": cpu.model(),
        "features": [f for f in ("avx512_bf16", "amx_bf16", "amx_int8") if cpu.has(f)],
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name, found in cache.versions(*PACKAGES).items() if found},
    }


def document(name: str, question: str, rows: list[Row], *, quick: bool) -> dict[str, Any]:
    """Build the JSON document of a benchmark, with rates and ratios beside the times."""
    return {
        "schema": SCHEMA,
        "benchmark": name,
        "question": question,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "quick": quick,
        "environment": environment(),
        "rows": [
            {
                "name": row.name,
                "unit": row.unit,
                "count": row.count,
                "timings": {contender: asdict(timing) for contender, timing in row.timings.items()},
                "per_s": {contender: row.rate(contender) for contender in row.timings},
                "ceiling_per_s": row.ceiling_per_s,
                "of_ceiling": row.of_ceiling(),
                "times_faster": row.times_faster(),
                "facts": row.facts,
                "headline": row.headline,
            }
            for row in rows
        ],
    }


def check(data: object) -> None:
    """Validate a result document. Raises ValueError naming the invalid field."""
    top = {"schema": int, "benchmark": str, "question": str, "created": str, "quick": bool, "environment": dict,
           "rows": list}  # fmt: skip
    mapping = _fields("document", data, top)
    if mapping["schema"] != SCHEMA:
        raise ValueError(f"schema: got {mapping['schema']}; allowed: {SCHEMA}")
    _fields("environment", mapping["environment"], {"cpu": str, "cores": int, "python": str, "packages": dict})
    if not mapping["rows"]:
        raise ValueError("rows: empty")
    for i, row in enumerate(mapping["rows"]):
        number = (int, float)
        maybe = (int, float, type(None))
        kinds = {"name": str, "unit": str, "count": number, "timings": dict, "per_s": dict, "times_faster": dict,
                 "facts": dict, "ceiling_per_s": maybe, "of_ceiling": maybe, "headline": bool}  # fmt: skip
        known = _fields(f"rows[{i}]", row, kinds)
        if OURS not in known["timings"]:
            raise ValueError(f"rows[{i}].timings: missing 'ours'")
        for contender, timing in known["timings"].items():
            where = f"rows[{i}].timings.{contender}"
            t = _fields(where, timing, {"median": float, "p20": float, "p80": float, "repeats": int})
            if not 0 < t["p20"] <= t["median"] <= t["p80"]:
                raise ValueError(f"{where}: got {t}; expected 0 < p20 <= median <= p80")


def _fields(where: str, data: object, kinds: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object")
    for key, kind in kinds.items():
        if key not in data or not isinstance(data[key], kind):
            raise ValueError(f"{where}.{key}: got {data.get(key)!r}; expected {kind}")
    return data


def shown(data: Mapping[str, Any]) -> str:
    """Format a result document, one line per row: rate, fraction of the ceiling, ratios to peers and facts."""
    lines = [f"{data['benchmark']}: {data['question']}"]
    for row in data["rows"]:
        parts = [f"{row['per_s']['ours']:,.4g} {row['unit']}/s"]
        if row["of_ceiling"] is not None:
            parts.append(f"{row['of_ceiling']:.2f} of the ceiling")
        parts += [f"{times:.2f} × {peer}" for peer, times in row["times_faster"].items()]
        parts += [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row["facts"].items()]
        lines.append(f"  {row['name']}: {', '.join(parts)}")
    return "\n".join(lines)


def save(module: ModuleType, *, quick: bool, out: Path | None) -> dict[str, Any]:
    """Run a benchmark, validate its document, write it to ``out/<name>.json`` and print it.

    By default rough numbers are written to `QUICK`, so that they do not replace kept ones.
    """
    out = out or (QUICK if quick else RESULTS)
    data = document(module.NAME, module.QUESTION, module.run(quick), quick=quick)
    check(data)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{module.NAME}.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    print(shown(data))
    return data


def main(module: ModuleType) -> None:
    """Run the command line of a benchmark module."""
    parser = argparse.ArgumentParser(description=module.QUESTION)
    parser.add_argument("--quick", action="store_true", help="short run with rough numbers")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"output folder (benchmarks/results or {QUICK})")
    options = parser.parse_args()
    save(module, quick=options.quick, out=options.out)
    sys.stdout.flush()
