"""Run benchmarks: python -m benchmarks [NAME ...] [--quick] [--out DIR]; by default all of docs/performance.md."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import harness

QUICK = Path("runs") / "bench-quick"  # rough numbers do not replace kept ones
NAMES = (*harness.BENCHMARKS, "libraries")

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (all but libraries)")
parser.add_argument("--quick", action="store_true", help="short runs with rough numbers")
parser.add_argument("--out", type=Path, metavar="DIR", help=f"output folder (benchmarks/results or {QUICK})")
options = parser.parse_args()
if unknown := {*options.names} - {*NAMES}:
    parser.error(f"argument NAME: got {min(unknown)!r}; allowed: {', '.join(NAMES)}")
for name in options.names or harness.BENCHMARKS:
    module = importlib.import_module(f"benchmarks.{name}")
    rows = [row.described() for row in module.run(options.quick)]
    data = harness.document(module.NAME, module.QUESTION, quick=options.quick, rows=rows)
    harness.write((options.out or (QUICK if options.quick else harness.RESULTS)) / f"{name}.json", data)
    print(harness.shown(data), flush=True)
