"""The README's performance table, generated from the JSON files of benchmarks/results/.

``python -m benchmarks.performance_table`` prints it, ``--write`` puts it into README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import BENCHMARKS, OURS, RESULTS, ROOT, check

_SECONDS = ("calls", "starts")  # few enough that seconds for one say more than how many a second
START, END = "<!-- performance table: benchmarks/performance_table.py -->", "<!-- end of performance table -->"


def documents(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The kept results in the order of the benchmarks. Raises ValueError for one that is not as the schema says."""
    found = []
    for name in BENCHMARKS:
        path = folder / f"{name}.json"
        if path.is_file():
            data = json.loads(path.read_text())
            check(data)
            found.append(data)
    return found


def table(kept: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each headline row; below it the machines and days of the runs."""
    lines = ["| what | rate | of the ceiling | against |", "|---|---|---|---|"]
    for data in kept:
        for row in data["rows"]:
            if not row["headline"]:
                continue
            bounded = row["of_ceiling"] is not None and row["unit"] not in _SECONDS
            ceiling = f"{row['of_ceiling']:.2f}" if bounded else ""
            peers = ", ".join(f"{times:.1f} × {peer}" for peer, times in row["times_faster"].items())
            once = " (one run)" if row["timings"][OURS]["repeats"] == 1 else ""
            lines.append(f"| {data['benchmark']}: {row['name']} | {_rate(row)}{once} | {ceiling} | {peers} |")
    where = {(d["environment"]["cpu"], d["environment"]["cores"], d["created"][:10]) for d in kept}
    machines = "; ".join(f"{cores} cores ({cpu}), {day}" for cpu, cores, day in sorted(where))
    return "\n".join([*lines, "", f"Medians of interleaved repeats: {machines}."])


def _rate(row: dict[str, Any]) -> str:
    per_s, unit = row["per_s"]["ours"], row["unit"]
    if unit == "bytes":
        return f"{per_s / 1e9:.2f} GB/s"
    if unit in _SECONDS:
        return f"{1 / per_s:.2f} s"
    return f"{per_s:,.0f} {unit}/s" if per_s >= 10 else f"{per_s:.2g} {unit}/s"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    options = parser.parse_args()
    text = table(documents())
    print(text)
    if options.write:
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text().partition(START)
        _, _, after = rest.partition(END)
        readme.write_text(f"{before}{START}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
