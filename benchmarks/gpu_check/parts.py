"""The parts in turn: their time, what is missing, what crashes, and the file that keeps what there is so far."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.bench import Bench, OutOfTime
from benchmarks.gpu_check.rows import FAILED, Job, Row, document, save, skipped
from benchmarks.gpu_check.stand_ins import stand_ins
from substyle.engine import cache

# in order of value for the time they take, with the share of the time that each may have
PARTS = {
    "ceilings": 0.04, "kernels": 0.16, "pixels": 0.14, "probes": 0.14, "neighbours": 0.05, "runtimes": 0.3,
    "end_to_end": 0.17,
}  # fmt: skip
# what a part as a whole cannot do without; pieces of the others say themselves what they lack
NEEDS = {"pixels": ("PIL",), "end_to_end": ("PIL", "nvidia.dali", "timm", "zarr")}
PACKAGES = ("torch", "triton", "timm", "onnxruntime", "numpy", "nvidia-dali-cuda130", "tensorrt", "faiss-gpu")


def run(
    bench: Bench, names: Sequence[str], *, seconds: float, out: Path, say: Callable[[str], object] = print
) -> list[Row]:
    """Run parts and keep their rows in ``out`` as they come: whoever ends the run may do so at any moment.

    Args:
        bench: the device.
        names: parts, of `PARTS`.
        seconds: for all of them; a part that has no time left skips what it has not done.
        out: the JSON file.
        say: gets a line for each row as it is made.
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
            say(f"{row.part}: {row.name}: {row.status}{' · ' + row.text if row.text else ''}")
            save(document(about, rows, spent), out)
        spent[name] = time.monotonic() - began
        save(document(about, rows, spent), out)
    return rows


def _rows(name: str, bench: Bench) -> Iterator[Row]:
    for title, work in _jobs(name, bench):
        yield from guarded(name, title, work)
        if bench.device.type == "cuda":  # the next piece may want nearly all of the memory
            yield from guarded(name, f"{title}, memory", _give_back)


def _jobs(name: str, bench: Bench) -> Iterator[Job]:
    """The pieces of a part; if it dies while it is imported or between two of them, a last piece dies of the same."""
    try:
        with stand_ins() if name == "probes" else nullcontext():
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
    torch.cuda.empty_cache()  # an error that the device still holds from the piece before comes up here
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
    """Card and versions."""
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
