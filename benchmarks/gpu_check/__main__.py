"""The command line: ``python3 -m benchmarks.gpu_check [--only PARTS] [--seconds S] [--out FILE] [--fake-device]``.

It runs the parts in turn, with their share of the time, and keeps their rows as they come.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import goals
from benchmarks.gpu_check.bench import TINY, Bench, OutOfTime, Sizes
from benchmarks.gpu_check.rows import FAILED, Job, Row, document, save, skipped, table
from benchmarks.harness import RESULTS
from substyle.engine import cache

SECONDS = 480.0
# in order of value for the time they take, with the share of the time that each may have
PARTS = {
    "ceilings": 0.04, "kernels": 0.16, "pixels": 0.14, "probes": 0.14, "neighbours": 0.05, "runtimes": 0.3,
    "end_to_end": 0.17,
}  # fmt: skip
# what a part as a whole cannot do without; pieces of the others say themselves what they lack
NEEDS = {"pixels": ("PIL",), "end_to_end": ("PIL", "nvidia.dali", "timm", "zarr")}
PACKAGES = ("torch", "triton", "timm", "onnxruntime", "numpy", "nvidia-dali-cuda130", "tensorrt", "faiss-gpu")


def run(bench: Bench, names: Sequence[str], *, seconds: float, out: Path) -> list[Row]:
    """Run parts and keep their rows in ``out`` as they come: whoever ends the run may do so at any moment.

    A part that has no time left of ``seconds`` skips what it has not done.
    """
    rows: list[Row] = []
    spent: dict[str, float] = {}
    end = time.monotonic() + seconds
    about = environment(bench)
    for i, name in enumerate(names):
        began = time.monotonic()
        share = PARTS[name] / sum(PARTS[later] for later in names[i:])  # what earlier parts left over goes to the later
        bench.deadline = began + max(end - began, 0.0) * share
        for row in _rows(name, bench):
            rows.append(row)
            text = f" · {row.text}" if row.text else ""
            print(f"{row.part}: {row.name}: {row.status}{text}", file=sys.stderr)
            save(document(about, rows, spent), out)
        spent[name] = time.monotonic() - began
        save(document(about, rows, spent), out)
    return rows


def _rows(name: str, bench: Bench) -> Iterator[Row]:
    for title, work in _jobs(name, bench):
        yield from guarded(name, title, work)
        if bench.device.type == "cuda":
            # the next piece may want nearly all of the memory; errors that the device still holds come up here
            yield from guarded(name, f"{title}, memory", _give_back)


def _jobs(name: str, bench: Bench) -> Iterator[Job]:
    """The pieces of a part; if it dies while it is imported or between two of them, a last piece dies of the same."""
    try:
        part = importlib.import_module(f"benchmarks.gpu_check.{name}")
        yield from part.run(bench)
    except ImportError as error:  # of the first library that is missing, which may be one that another brings along
        lacks = ", ".join(f"No module named {needed!r}" for needed in NEEDS.get(name, ()) if not _there(needed))
        yield name, partial(_die, ImportError(lacks) if lacks else error)
    except Exception as error:  # noqa: BLE001 - the next piece tells it, see `guarded`
        yield name, partial(_die, error)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would lie in
        return False


def _give_back() -> Iterable[Row]:
    torch.cuda.empty_cache()
    return ()


def _die(error: Exception) -> Iterable[Row]:
    raise error


def guarded(part: str, title: str, work: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of some work, and one more where it ends otherwise: skipped or failed."""
    try:
        yield from work()
    except OutOfTime as late:
        yield skipped(part, title, f"out of time: {late}")
    except ImportError as missing:
        yield skipped(part, title, f"not installed: {missing}")
    except Exception as error:  # noqa: BLE001 - whatever one piece dies of, the evidence of the others must be kept
        words = str(error).strip().splitlines() or ["no reason given"]
        yield Row(part, title, FAILED, f"crashed: {type(error).__name__}: {words[0]}")


def environment(bench: Bench) -> dict[str, Any]:
    packages = {name: found for name, found in cache.versions(*PACKAGES).items() if found}
    facts: dict[str, Any] = {
        "device": bench.name, "card": bench.card, "fake": bench.device.type != "cuda", "cuda": torch.version.cuda,
        "python": platform.python_version(), "packages": packages,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        facts |= {"memory": card.total_memory, "multiprocessors": card.multi_processor_count}
        facts["capability"] = f"{card.major}.{card.minor}"
    return facts


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
    rows = run(bench, names, seconds=options.seconds, out=out)
    print(table(rows))
    print(f"\n{goals.table(rows, fake=options.fake_device, card=bench.card or bench.name)}\n\nkept in {out}")
    return 1 if any(row.status == FAILED for row in rows) else 0


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"got {', '.join(map(repr, unknown))}; allowed: {', '.join(PARTS)}")
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
