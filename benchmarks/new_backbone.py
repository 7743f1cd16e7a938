"""A backbone that is new to a store: from the command to the first stored shard, and how fast it goes on then."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import OURS, Row, Timing
from benchmarks.networks import LITE0, SHOWN
from substyle.engine.store.layout import slug
from substyle.engine.store.store import EmbeddingStore

FIRST = "control:pixels"  # what the store has already
_LOOK = 0.02  # seconds between two looks at the store


def row(folder: Path, photographs: Path, *, repeats: int) -> Row:
    """Time of `substyle embed --store STORE --backbone NAME` to its first shard, by everything cached and by nothing.

    ``share of backbone-only`` is the rate of the whole run after its preparation over the rate that the backbone alone
    reached when it was compiled.

    Args:
        folder: for stores and a cache of its own.
        photographs: the store's source.
        repeats: runs of which the median is taken.
    """
    filled = folder / "filled.zarr"
    _embed(dict(os.environ), str(photographs), "--store", str(filled), "--backbone", FIRST)
    empty = {**os.environ, "SUBSTYLE_CACHE": str(folder / "cache")}
    nothing_kept, _ = _first_shard(filled, folder / "cold.zarr", empty)
    found = [_first_shard(filled, folder / f"warm-{i}.zarr", dict(os.environ)) for i in range(repeats + 1)]
    timing = Timing.of([seconds for seconds, _ in found[1:]])  # the first may have had to compile
    facts = {
        "seconds": timing.median,
        "seconds, nothing in the cache": nothing_kept,
        "share of backbone-only": statistics.median(share for _, share in found[1:]),
    }
    return Row(f"{SHOWN[LITE0]}, new to a store: to its first stored shard", "starts", 1, {OURS: timing}, facts=facts)


def _first_shard(filled: Path, store: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds to the first shard in a copy of the store, and the share of the backbone-only rate."""
    shutil.copytree(filled, store)
    began = time.perf_counter()
    process = _start(environment, "--store", str(store), "--backbone", LITE0)
    opened, own = EmbeddingStore.open(store), slug(LITE0)
    while not len(opened.finished().of([own])) and process.poll() is None:
        time.sleep(_LOOK)
    first = time.perf_counter() - began
    answer = _answer(process)
    seconds = answer["seconds"]
    entry = EmbeddingStore.open(store).backbone(LITE0)
    return first, answer["variants"] / (seconds["total"] - seconds["prepare"]) / float(entry.facts["rate"])


def _embed(environment: dict[str, str], *arguments: str) -> None:
    _answer(_start(environment, *arguments))


def _start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "substyle.engine.cli", "embed", *arguments, "--quiet", "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)


def _answer(process: subprocess.Popen[str]) -> dict[str, dict[str, float]]:
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, process.args))} ended with {process.returncode}")  # type: ignore[arg-type]
    return json.loads(said)  # type: ignore[no-any-return]
