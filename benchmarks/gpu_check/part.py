"""One part of the check in a process of its own, so that what kills it leaves the others alone.

``python3 -m benchmarks.gpu_check.part PART SECONDS [--fake-device]`` writes JSON lines to the standard output: the
environment, then each piece as it begins and each row as it is made.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_check.bench import TINY, Bench, OutOfTime, Sizes
from benchmarks.gpu_check.rows import FAILED, Job, Row, skipped
from substyle.engine import cache
from substyle.kernels.dispatch import as_device

# what a part as a whole cannot do without; pieces of the others say themselves what they lack
NEEDS = {
    "pixels": ("PIL",), "probes": ("scipy", "pyarrow", "pydantic"),
    "end_to_end": (
        *("PIL", "nvidia.dali", "timm", "pyarrow", "pydantic", "zarr", "numcodecs", "google_crc32c", "xxhash"),
        "matplotlib",  # ships photographs by which transformations are known
    ),
}  # fmt: skip
PACKAGES = ("torch", "triton", "timm", "onnxruntime", "numpy", "nvidia-dali-cuda130", "tensorrt", "faiss-gpu")


def jobs(name: str, bench: Bench) -> Iterator[Job]:
    """The pieces of a part; if it dies while it is imported or between two of them, a last piece dies of the same."""
    try:
        if lacks := [needed for needed in NEEDS.get(name, ()) if not _there(needed)]:
            raise ModuleNotFoundError(name=", ".join(lacks))
        yield from importlib.import_module(f"benchmarks.gpu_check.{name}").run(bench)
    except Exception as error:  # noqa: BLE001 - the next piece tells it, see `guarded`
        yield name, partial(_die, error)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would lie in
        return False


def _die(error: Exception) -> Iterable[Row]:
    raise error


def guarded(part: str, title: str, work: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of some work, and one more where it ends otherwise: skipped or failed."""
    try:
        yield from work()
    except OutOfTime as late:
        yield skipped(part, title, f"out of time: {late}")
    except ModuleNotFoundError as missing:
        lacks = "nvidia.dali" if missing.name == "nvidia" else missing.name or missing  # other libraries lie there too
        yield skipped(part, title, f"not installed: {lacks}")
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


def bench_of(fake: bool) -> Bench | None:
    """What is checked, with the product's own settings; None without a GPU."""
    if fake:
        return Bench(torch.device("cpu"), TINY, name="NVIDIA H100, rehearsed on a CPU")
    return Bench(as_device("cuda:0"), Sizes()) if torch.cuda.is_available() else None


def messages(name: str, bench: Bench) -> Iterator[dict[str, Any]]:
    """Each piece of a part as it begins, and each row as it is made."""
    for title, work in jobs(name, bench):
        yield {"piece": title}
        for row in guarded(name, title, work):
            yield {"row": asdict(row)}
        if bench.device.type == "cuda":
            torch.cuda.synchronize()  # after an illegal access nothing here is true: the process ends
            torch.cuda.empty_cache()  # the next piece may want nearly all of the memory


def main(arguments: Sequence[str]) -> None:
    """Tell the environment and the rows of a part, or why there is nothing to check."""
    name, seconds, *fake = arguments
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what libraries print is none of it

        def tell(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=out, flush=True)

        bench = bench_of(bool(fake))
        if bench is None:
            tell({"nothing": "no CUDA device, or a torch built without CUDA"})
            return
        tell({"environment": environment(bench)})
        bench.deadline = time.monotonic() + float(seconds)
        for message in messages(name, bench):
            tell(message)


if __name__ == "__main__":
    main(sys.argv[1:])
