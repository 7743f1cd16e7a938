"""Generate the table of docs/performance.md from benchmarks/results/.

``python -m benchmarks.performance_table`` prints it; ``--write`` updates the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import BENCHMARKS, OURS, RESULTS, ROOT, SCHEMA, markdown, rate, replaced

_SECONDS = ("calls", "starts")  # units reported as seconds each
PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- performance table: benchmarks/performance_table.py -->", "<!-- end of performance table -->"


def documents(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Load the saved results in the order of the benchmarks. Raises ValueError if one has another schema."""
    found = [json.loads(path.read_text()) for name in BENCHMARKS if (path := folder / f"{name}.json").is_file()]
    for data in found:
        if data["schema"] != SCHEMA or any(OURS not in row["timings"] for row in data["rows"]):
            raise ValueError(f"{data['benchmark']}: not a document of schema {SCHEMA}")
    return found


def table() -> str:
    """Format the headline rows as Markdown, followed by cores and dates."""
    lines, shown = [], []
    for data in documents():
        for row in (row for row in data["rows"] if row["headline"]):
            bounded = row["of_ceiling"] is not None and row["unit"] not in _SECONDS
            ceiling = f"{row['of_ceiling']:.2f}" if bounded else ""
            peers = ", ".join(f"{times:.1f} × {peer}" for peer, times in row["times_faster"].items())
            once = " (one run)" if row["timings"][OURS]["repeats"] == 1 else ""
            name = f"{data['benchmark']}: {row['name']}"
            lines.append((name, f"{_rate(row)}{once}", ceiling, peers, _cpu(data["environment"])))
            shown.append(data)
    days = sorted({data["created"][:10] for data in shown})
    cores = " or ".join(sorted({str(data["environment"]["cores"]) for data in shown}))
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    made = markdown(("what", "rate", "of the ceiling", "against", "CPU"), lines)
    return f"{made}\n\nMedians of interleaved repeats on {cores} cores, {when}.\n\n{_faults()}"


def _faults() -> str:
    """Format what faults do to engines, in photographs."""
    faults = json.loads((RESULTS / "engines.json").read_text())["rows"][0]["facts"]["faults"]
    headings = ("photographs", *next(iter(faults.values())))
    return markdown(headings, ((engine, *map(str, counts.values())) for engine, counts in faults.items()))


def _cpu(environment: dict[str, Any]) -> str:
    name = environment["cpu"].replace("(R)", "").removesuffix(" Processor").removeprefix("Intel ").removeprefix("AMD ")
    return f"{name}, AMX" if any(each.startswith("amx") for each in environment.get("features", ())) else name


def _rate(row: dict[str, Any]) -> str:
    per_s, unit = row["per_s"]["ours"], row["unit"]
    if unit == "bytes":
        return f"{per_s / 1e9:.2f} GB/s"
    if unit in _SECONDS:
        return f"{1 / per_s:.2f} s"
    return f"{per_s:,.0f} {unit}/s" if per_s >= 10 else rate(per_s, unit, 3 if per_s < 1 else 2)


def page() -> str:
    return replaced(PAGE.read_text(), START, END, table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="update the table in docs/performance.md")
    print(table())
    if parser.parse_args().write:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
