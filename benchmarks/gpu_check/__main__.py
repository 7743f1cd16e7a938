"""The command line: ``python3 -m benchmarks.gpu_check [--only PARTS] [--seconds S] [--out FILE] [--fake-device]``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

import torch

from benchmarks.gpu_check import goals, parts
from benchmarks.gpu_check.bench import TINY, Bench, Sizes
from benchmarks.gpu_check.rows import FAILED, skipped, table

RESULTS = Path(__file__).parents[1] / "results"
SECONDS = 480.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, return the exit code: 1 where a row failed or there is no GPU, 2 for bad usage, else 0.

    Without a GPU nothing is checked, which is an error.
    """
    parser = argparse.ArgumentParser(prog="gpu_check", description="Check and measure everything that runs on a GPU.")
    parser.add_argument("--only", action="extend", type=_names, metavar="PARTS", default=None,
                        help=f"these parts alone, separated by commas: {', '.join(parts.PARTS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts (default %(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="the JSON file that keeps the rows "
                        "(default: a new one in benchmarks/results, in runs of a rehearsal)")  # fmt: skip
    parser.add_argument("--fake-device", action="store_true", help="rehearse on the CPU at tiny sizes as if it were an "
                        "H100; the file is marked")  # fmt: skip
    options = parser.parse_args(arguments)
    names = [name for name in parts.PARTS if options.only is None or name in options.only]
    if options.fake_device:
        bench = Bench(torch.device("cpu"), TINY, name="NVIDIA H100, rehearsed on a CPU")
    elif torch.cuda.is_available():
        bench = Bench(torch.device("cuda", 0), Sizes())
    else:
        reason = "no CUDA device, or a torch built without CUDA"
        print(table([skipped(name, name, reason) for name in names]))
        print(f"gpu_check: NOTHING WAS CHECKED: {reason}; nothing was written", file=sys.stderr)
        return 1
    out = options.out or new_file(bench)
    rows = parts.run(bench, names, seconds=options.seconds, out=out, say=lambda line: print(line, file=sys.stderr))
    print(table(rows))
    print(f"\n{goals.table(rows, fake=options.fake_device, card=bench.card or bench.name)}\n\nkept in {out}")
    return 1 if any(row.status == FAILED for row in rows) else 0


def _names(text: str) -> list[str]:
    """Names of parts, separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in parts.PARTS]:
        raise argparse.ArgumentTypeError(f"got {', '.join(map(repr, unknown))}; allowed: {', '.join(parts.PARTS)}")
    return names


def new_file(bench: Bench) -> Path:
    """A file that no other call has: its name has the device and the time."""
    name = re.sub(r"[^a-z0-9]+", "-", bench.name.lower()).strip("-")
    folder, kind = (RESULTS, "gpu") if bench.device.type == "cuda" else (Path("runs"), "rehearsal")
    start = f"{kind}-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (folder / f"{start}{end}.json" for end in chain([""], (f"-{number}" for number in count(2))))
    return next(name for name in names if not name.exists())


if __name__ == "__main__":
    sys.exit(main())
