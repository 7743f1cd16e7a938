"""The command line: ``python3 -m benchmarks.gpu_check [--only PART] [--seconds S] [--out FILE]``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_check import parts
from benchmarks.gpu_check.bench import Bench, Sizes
from benchmarks.gpu_check.rows import FAILED, table

RESULTS = Path(__file__).parents[1] / "results"
SECONDS = 480.0


def main(
    arguments: Sequence[str] | None = None, *, device: torch.device | None = None, sizes: Sizes | None = None
) -> int:
    """Run, print the table, return the exit code: 1 where a row failed or there is no GPU, 2 for bad usage, else 0.

    Without a GPU nothing is checked, and who asked for the check has not got it: that must not look like success.

    Args:
        arguments: of the command line.
        device: what is checked; the first CUDA device when left out.
        sizes: how much is done; that of a GPU when left out.
    """
    parser = argparse.ArgumentParser(prog="gpu_check", description="Hold every claim about GPUs against a GPU.")
    parser.add_argument("--only", action="append", choices=list(parts.PARTS), metavar="PART", default=None,
                        help=f"a part; may be given again. Parts: {', '.join(parts.PARTS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts (default %(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="the JSON file that keeps the rows")
    options = parser.parse_args(arguments)
    names = [name for name in parts.PARTS if options.only is None or name in options.only]
    if device is None and not torch.cuda.is_available():
        reason = "no CUDA device is there, or this torch is built without CUDA"
        print(table(parts.nothing(names, reason)))
        print(f"gpu_check: NOTHING WAS CHECKED: {reason}; nothing was written", file=sys.stderr)
        return 1
    bench = Bench(device or torch.device("cuda", 0), sizes or Sizes())
    out = options.out or RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', bench.name.lower()).strip('-')}.json"
    rows = parts.run(bench, names, seconds=options.seconds, out=out, say=lambda line: print(line, file=sys.stderr))
    print(table(rows))
    print(f"\nkept in {out}")
    return 1 if any(row.status == FAILED for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
