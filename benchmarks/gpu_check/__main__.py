"""The command line: ``python3 -m benchmarks.gpu_check [--only PARTS] [--seconds S] [--out FILE] [--fake-device]``.

It runs the parts in turn, each in a process and with its share of the time, and keeps their rows as they come.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import goals
from benchmarks.gpu_check.rows import FAILED, SKIPPED, Row, document, save, skipped, table
from benchmarks.harness import RESULTS

SECONDS = 530.0
GRACE = 40.0  # seconds for a piece that has begun when its part's time ends; what hangs is killed then
# in order of value for the time they take, with the share of the time that each may have. FAISS, and TensorRT within
# its parts, come last
PARTS = {
    "ceilings": 0.04, "kernels": 0.15, "pixels": 0.16, "probes": 0.14, "runtimes": 0.31, "end_to_end": 0.15,
    "neighbours": 0.05,
}  # fmt: skip


class Record:
    """What is known so far, in a file from the first row on: whoever ends the run may do so at any moment."""

    def __init__(self, out: Path | None, *, fake: bool) -> None:
        self.out, self.rows = out, list[Row]()
        self.environment: dict[str, Any] = {"fake": fake}
        self.spent: dict[str, float] = {}

    def judged(self) -> list[Row]:
        """All rows, and what they say of the goals."""
        card = self.environment.get("card") or "another card"
        return self.rows + goals.gates(self.rows, fake=self.environment["fake"], card=card)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.part}: {row.name}: {row.status}{row.text and f' · {row.text}'}", file=sys.stderr)
        self.save()

    def save(self) -> None:
        self.out = self.out or new_file(self.environment)
        save(document(self.environment, self.judged(), self.spent), self.out)


def command(part: str, seconds: float, *, fake: bool) -> list[str]:
    more = ["--fake-device"] if fake else []
    return [sys.executable, "-m", "benchmarks.gpu_check.part", part, f"{seconds}", *more]


def messages_of(process: Sequence[str], limit: float) -> Iterator[dict[str, Any]]:
    """Run a command and yield the JSON lines that it prints, then ``died`` if it fails or exceeds ``limit`` seconds."""
    killed = threading.Event()
    # a group of its own: compilers that it has started may hold the pipe open
    with subprocess.Popen(process, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:

        def kill() -> None:
            killed.set()
            os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(limit, kill)
        timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.endswith("\n"):  # else it died while it wrote
                    yield json.loads(line)
            child.wait()
        except BaseException:
            kill()
            raise
        finally:
            timer.cancel()
    code = child.returncode
    if killed.is_set():
        yield {"died": f"killed after {limit:.0f} s"}
    elif code:
        yield {"died": f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"}


def run(record: Record, names: Sequence[str], *, seconds: float, fake: bool) -> str:
    """Run parts, and skip what a part has no time for. Returns why there is nothing to check, "" if there is."""
    end = time.monotonic() + seconds
    for i, name in enumerate(names):
        began = time.monotonic()
        share = PARTS[name] / sum(PARTS[later] for later in names[i:])  # what earlier parts left over goes to the later
        mine = max(end - began, 0.0) * share
        at = "its start"
        for message in messages_of(command(name, mine, fake=fake), mine + GRACE):
            match message:
                case {"nothing": reason} if not record.rows:
                    return str(reason)
                case {"nothing": reason}:
                    record.add(Row(name, name, FAILED, f"the GPU has gone: {reason}"))
                case {"environment": about}:
                    record.environment = {**about, **record.environment}
                case {"piece": piece}:
                    at = piece
                case {"row": row}:
                    record.add(Row(**row))
                case {"died": how}:
                    record.add(Row(name, f"{at}, and what comes after it", FAILED, f"the process ended: {how}"))
        record.spent[name] = time.monotonic() - began
        record.save()
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, return the exit code: 1 where a row failed or there is no GPU, 2 for bad usage, else 0.

    Without a GPU nothing is checked, which is an error.
    """
    parser = argparse.ArgumentParser(prog="gpu_check", description="Check and measure everything that runs on a GPU.")
    parser.add_argument("--only", action="extend", type=_names, metavar="PARTS", default=None,
                        help=f"these parts alone, separated by commas: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts (default %(default)s)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="the JSON file that keeps the rows "
                        "(default: a new one in benchmarks/results, in runs of a rehearsal)")  # fmt: skip
    parser.add_argument("--fake-device", action="store_true", help="rehearse on the CPU at tiny sizes as if it were an "
                        "H100; the file is marked")  # fmt: skip
    options = parser.parse_args(arguments)
    names = [name for name in PARTS if options.only is None or name in options.only]
    record = Record(options.out, fake=options.fake_device)
    if importlib.util.find_spec("torch") is None:
        reason = "torch is not installed"
    else:
        reason = run(record, names, seconds=options.seconds, fake=options.fake_device)
    if reason:
        print(table([skipped(name, name, reason) for name in names]))
        print(f"gpu_check: NOTHING WAS CHECKED: {reason}; nothing was written", file=sys.stderr)
        return 1
    rows = record.judged()
    unknown = sum(row.part == "goals" and row.status == SKIPPED for row in rows)
    print(f"{table(rows)}\n\nkept in {record.out}; goals that were not measured: {unknown}")
    return 1 if any(row.status == FAILED for row in rows) else 0


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"got {', '.join(map(repr, unknown))}; allowed: {', '.join(PARTS)}")
    return names


def new_file(environment: dict[str, Any]) -> Path:
    """A file that no other call has: its name has the device and the time."""
    device = str(environment.get("device", "unknown"))
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    folder, kind = (Path("runs"), "rehearsal") if environment["fake"] else (RESULTS, "gpu")
    start = f"{kind}-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (folder / f"{start}{end}.json" for end in chain([""], (f"-{number}" for number in count(2))))
    return next(name for name in names if not name.exists())


if __name__ == "__main__":
    sys.exit(main())
