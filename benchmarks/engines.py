"""Engines that a skilled user would take instead: throughput by wall time and CPU seconds, and what faults do to them.

Rates are of additional photographs: a run of many less one of few, so that starting up does not count. CPU seconds are
those of all processes of a run. Faults: a JPEG file cut in half and a text file named .jpg among 40 photographs, and a
kill of all processes when three quarters should be done, followed by a second start. ``daft`` and ``ray`` are
optional: without one, its engine has no row.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import photographs
from benchmarks.harness import OURS, ROOT, Row, Timing
from benchmarks.networks import LITE0
from benchmarks.peers.engines import ENGINES, NEEDS, PRECISIONS, VARIANTS
from substyle.engine.store.store import EmbeddingStore

NAME = "engines"
QUESTION = "how fast do other engines embed the same variants by the same network, and what do faults cost?"
FAULTS = "faults"  # the fact that holds them, by engine
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK = 0.1  # seconds between two looks at a run's processes
_numbers = count()


class Run(NamedTuple):
    """Seconds, CPU seconds and exit status of a run."""

    seconds: float
    cpu: float
    status: int


def run(quick: bool) -> list[Row]:
    """Measure all engines on the same photographs."""
    for engine, package in NEEDS.items():
        if find_spec(package) is None:
            print(f"{NAME}: no row of {engine}: {package} is not installed", file=sys.stderr)
            del ENGINES[engine]
    few, many = (32, 64) if quick else (64, 256)
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        folder = Path(place)
        small, large = (photographs.write(folder / f"{size}", size) for size in (few, many))
        for engine in ENGINES:  # fills caches
            _finished(engine, small, folder)
        runs: dict[str, list[tuple[Run, Run]]] = {engine: [] for engine in ENGINES}
        for _ in range(1 if quick else 3):
            for engine, pairs in runs.items():
                pairs.append((_finished(engine, small, folder), _finished(engine, large, folder)))
        faults = {engine: _faults(engine, folder, pairs, large) for engine, pairs in runs.items()}
    rows = []
    for own in PRECISIONS:
        contenders = {OURS: runs[own]} | {engine: runs[engine] for engine in ENGINES if engine not in PRECISIONS}
        for field, measure in (("seconds", ""), ("cpu", ", a CPU second")):
            timings = {
                name: Timing.of([getattr(large, field) - getattr(small, field) for small, large in pairs])
                for name, pairs in contenders.items()
            }
            title = f"26 variants, EfficientNet-Lite0, {own}; others bf16{measure}"
            rows.append(Row(title, "embeddings", (many - few) * len(VARIANTS), timings))
    rows[0].facts[FAULTS] = faults
    return rows


def _out(folder: Path) -> Path:
    made = folder / f"out-{next(_numbers)}"
    made.mkdir()
    return made


def _finished(engine: str, images: Path, folder: Path) -> Run:
    done = _run(engine, images, _out(folder))
    if done.status:
        raise RuntimeError(f"{engine} failed:\n{(folder / 'log').read_text()[-3000:]}")
    return done


def _run(engine: str, images: Path, out: Path, kill_after: float = float("inf")) -> Run:
    """Run an engine in a process, and kill it and all processes that it has started after some seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.engines", engine, str(images), str(out)]
    with (out.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    cpu = {process.pid: 0.0}
    while process.poll() is None and time.perf_counter() - began < kill_after:
        _look(cpu)
        time.sleep(_LOOK)
    seconds = time.perf_counter() - began
    for pid in _look(cpu):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Run(seconds, sum(cpu.values()), process.wait())


def _look(cpu: dict[int, float]) -> list[int]:
    """Update the CPU seconds of known processes and of those that they have started. Returns those still there."""
    alive = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            alive[int(path.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS
    for pid, (parent, seconds) in sorted(alive.items()):
        if pid in cpu or parent in cpu:
            cpu[pid] = seconds
    return sorted(cpu.keys() & alive.keys())


def _faults(engine: str, folder: Path, runs: Sequence[tuple[Run, Run]], large: Path) -> dict[str, int]:
    mixed = photographs.write(folder / f"mixed-{next(_numbers)}", 40)
    names = sorted(path.name for path in mixed.iterdir())
    broken, text = mixed / names[11], mixed / names[27]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    text.write_text("not a photograph")
    _run(engine, mixed, out := _out(folder))
    kept = _embedded(out)
    late = float(np.median([0.25 * few.seconds + 0.75 * many.seconds for few, many in runs]))
    _run(engine, large, out := _out(folder), kill_after=late)
    stored = len(_embedded(out))
    _run(engine, large, out)
    rows = _embedded(out)
    return {
        "lost": len({*names} - {broken.name, text.name, *kept}),
        "wrong": len({broken.name, text.name} & {*kept}),
        "stored at the kill": stored,
        "lost after it": sum(1 for _ in large.iterdir()) - len({*rows}),
        "doubled after it": len(rows) - len({*rows}),
    }


def _embedded(out: Path) -> list[str]:
    """Names of the photographs of all rows that can be read."""
    if (path := out / "store.zarr").exists():
        store = EmbeddingStore.open(path)
        manifest, entry = store.manifest(), store.backbone(LITE0)
        there_N = np.all([np.isfinite(store.read(entry, name)).all(axis=1) for name in VARIANTS], axis=0)
        return [key for key, there in zip(manifest.keys, there_N[manifest.row_N], strict=True) if there]
    names = []
    for path in out.rglob("*.parquet"):
        with suppress(pa.ArrowInvalid):  # the run was killed while it wrote this file
            names += [Path(name).name for name in pq.read_table(path, columns=["path"])["path"].to_pylist()]
    return names


if __name__ == "__main__":
    name, *folders = sys.argv[1:]
    ENGINES[name](*map(Path, folders))
