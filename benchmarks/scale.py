"""Cost of every operation on a store by its number of photographs, with notes, thumbnails and classes.

Stores of growing size are written through the store's own interface; nothing is decoded. Each operation runs in a
process of its own, which reports its CPU time and peak memory beyond those of importing this module. The exponent of an
operation is the slope of log CPU time over log photographs between the two largest sizes.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import OURS, Row, Timing
from substyle.engine.embedding.plan import pending_shards
from substyle.engine.stages.tables import tables
from substyle.engine.store import compaction, lock, manifest
from substyle.engine.store.catalog import Definition
from substyle.engine.store.layout import StoreSettings
from substyle.engine.store.records import ImageNote, content_hash
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_table, store_facts
from substyle.engine.store.verify import verify
from substyle.engine.study.export import export
from substyle.pipelines.storage import place
from substyle.pipelines.transforms.registry import suite

NAME = "scale"
QUESTION = "does any operation on a store grow faster than its number of photographs?"
SIZES = {"quick": (10**3, 10**4), "full": (10**4, 10**5, 10**6)}
CLASSES, WIDTH, SHARD_ROWS, VARIANTS, WAVES = 1000, 64, 1024, 5, 16


def make(path: Path, photographs: int) -> None:
    """Write a store of photographs with labels, notes, thumbnails and one backbone."""
    names = suite("substance31")[:VARIANTS]
    store = EmbeddingStore.create(path, StoreSettings(0, 224, SHARD_ROWS, "float16"))
    rng = np.random.default_rng(0)
    keys = [f"n{n % CLASSES:08d}/n{n % CLASSES:08d}_{n:08d}.JPEG" for n in range(photographs)]
    split_N = rng.choice(3, photographs, p=(0.8, 0.1, 0.1)).astype(np.int8)
    with lock.hold(store.path, run := lock.new_run_id()):
        store.add_images(keys, np.arange(photographs) % CLASSES, [f"class {c}" for c in range(CLASSES)], split_N)
        facts = {"name": "scale", "dim": WIDTH, "spec": {"weights_hash": "0"}, "gate": None, "rate": None}
        runtime = {"name": "none", "precision": "fp32"}
        definitions = [Definition({"name": name, "kind": "style", "role": "train"}) for name in names]
        entry = store.ensure_backbone({**facts, "runtime": runtime}, definitions)
        upkeep = compaction.Upkeep(store.path, 0)
        for shard in range(store.shards()):
            rows = range(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, photographs))
            x = {name: rng.normal(size=(len(rows), WIDTH)).astype(np.float32) for name in names}
            # A few cosines and noise. Pairs whose hashes and brightness are alike enough to be compared are as many as
            # among photographs: 306 of 8,316 made ones, and 313 of as many of flowers, textures, scenes and objects.
            # Without the noise they are 12,780, and 2 if pixels are independent.
            waves_BX = rng.normal(0, 40, (len(rows), WAVES)) @ _waves()
            small_BX = np.clip(120 + waves_BX + rng.normal(0, 6, waves_BX.shape), 0, 255)
            notes = [
                ImageNote(row, 375, 500, "", small.tobytes().hex(), (), content_hash(row.to_bytes(8)), row + 1)
                for row, small in zip(rows, small_BX.astype(np.uint8), strict=True)
            ]
            upkeep.written(1, store.write_shard(entry, shard, x, notes, seconds=1.0, run=run))
        compaction.compact(store.path)


def _waves() -> NDArray[np.float64]:
    """Products of the slowest cosines of both axes of a thumbnail, slower ones stronger. Shape: (WAVES, 72)."""
    side = math.isqrt(WAVES)
    axes = [
        np.cos(np.pi * np.outer(np.arange(side), np.arange(n) + 0.5) / n) for n in (manifest.ROWS, manifest.COLUMNS)
    ]
    weight = 1 / (1 + np.add.outer(np.arange(side), np.arange(side)))
    return np.einsum("ij,ir,jc->ijrc", weight, *axes).reshape(WAVES, -1)


def _duplicates(path: Path) -> object:
    store = EmbeddingStore.open(path)
    return store.notes(store.manifest()).first_N


def _planned(path: Path) -> None:
    store = EmbeddingStore.open(path)
    pending_shards(store, store.backbones(), suite("substance31")[:VARIANTS], lock.WHOLE)


def _exported(path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="substyle-scale-", dir=path.parent) as folder:
        export(EmbeddingStore.open(path), Path(folder) / "out", to="parquet", quiet=True)


WRITE = "write embeddings and notes"
OPERATIONS: dict[str, Callable[[Path], object]] = {
    "read the manifest": lambda path: EmbeddingStore.open(path).manifest(),
    "plan a run with nothing to do": _planned,
    "read notes and find near-duplicates": _duplicates,  # which later operations read from the cache
    "facts of the store, as info and the report show them": lambda path: store_facts(EmbeddingStore.open(path)),
    "open tables for probes": lambda path: tables(EmbeddingStore.open(path)),
    "read one transformation": lambda path: open_table(EmbeddingStore.open(path), "scale", ["identity"]).in_memory(),
    "verify": lambda path: verify(place(path), quiet=True),
    "export to Parquet": _exported,
}


@dataclass(frozen=True)
class _Cost:
    """CPU and wall time of a call in seconds, and how far it raised the peak memory of its process, in bytes."""

    cpu: float
    wall: float
    peak: int


def _measured(operation: str, path: Path, photographs: int) -> _Cost:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    if operation == WRITE:
        make(path, photographs)
    else:
        OPERATIONS[operation](path)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return _Cost(*spent, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def run(quick: bool) -> list[Row]:
    """Time operations on stores of growing size, to find what grows faster than the number of photographs."""
    sizes = SIZES["quick" if quick else "full"]
    costs: dict[str, list[_Cost]] = {operation: [] for operation in (WRITE, *OPERATIONS)}
    files: list[int] = []
    for photographs in sizes:
        with tempfile.TemporaryDirectory(prefix="substyle-scale-") as folder:
            path = Path(folder) / "store.zarr"
            os.environ["SUBSTYLE_CACHE"] = str(Path(folder) / "cache")
            for operation, measured in costs.items():
                # peak memory is that of a process
                with multiprocessing.get_context("spawn").Pool(1) as alone:
                    measured.append(alone.apply(_measured, (operation, path, photographs)))
            files.append(sum(1 for _ in path.rglob("*")))
    return [_row(operation, sizes, measured, files) for operation, measured in costs.items()]


def _row(operation: str, sizes: Sequence[int], measured: Sequence[_Cost], files: Sequence[int]) -> Row:
    facts: dict[str, Any] = {
        "exponent": round(math.log(measured[-1].cpu / measured[-2].cpu) / math.log(sizes[-1] / sizes[-2]), 2),
        "photographs": list(sizes),
        "cpu_seconds": [round(cost.cpu, 3) for cost in measured],
        "peak_bytes": [cost.peak for cost in measured],
        "bytes_a_photograph": round(measured[-1].peak / sizes[-1]),
    }
    if operation == WRITE:
        facts["files_and_folders"] = list(files)
    return Row(operation, "photographs", sizes[-1], {OURS: Timing.of([measured[-1].wall])}, facts=facts)
