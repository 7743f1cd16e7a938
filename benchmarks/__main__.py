"""Run benchmarks: python -m benchmarks [NAME ...] [--quick] [--out DIR]; all of them by default."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import harness

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(harness.BENCHMARKS)} (all)")
parser.add_argument("--quick", action="store_true", help="short runs with rough numbers")
parser.add_argument("--out", type=Path, metavar="DIR", help=f"output folder (benchmarks/results or {harness.QUICK})")
options = parser.parse_args()
if unknown := {*options.names} - {*harness.BENCHMARKS}:
    parser.error(f"argument NAME: got {min(unknown)!r}; allowed: {', '.join(harness.BENCHMARKS)}")
for name in options.names or harness.BENCHMARKS:
    harness.save(importlib.import_module(f"benchmarks.{name}"), quick=options.quick, out=options.out)
