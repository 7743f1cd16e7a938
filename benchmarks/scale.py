"""Scaling of planner, lock and journal to 10^9 photographs × 31 variants on 512 workers.

`fleet` simulates the run without pixels, in computed time. Real and timed are the planning, the lock, the writing and
compaction of records, and the reading of a journal. Records omit their per-image notes, whose cost is measured
separately on one full record.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet import Fleet, Model, Outcome
from benchmarks.harness import OURS, RESULTS, Row, Timing, main
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.estimate.plan import plan
from substyle.engine.estimate.roofline import DEVICES
from substyle.engine.store import compaction, journal, records
from substyle.engine.store.layout import MAX_ROWS
from substyle.engine.store.records import ImageNote, Record
from substyle.pipelines.storage import LocalPlace
from substyle.pipelines.transforms.registry import suite

NAME = "scale"
QUESTION = "do planner, lock and journal carry a thousand million photographs in 31 variants on 512 workers?"
WORKERS = 512
BACKBONE = "timm:vit_base_patch16_224"
SIZES = {"quick": (10**6, 10**7), "full": (10**7, 10**8, 10**9)}


def run(quick: bool) -> list[Row]:
    """Simulate runs of growing size, to find what grows faster than the number of photographs."""
    names = suite("substance31")
    made = plan(Study(NAME, (BackboneChoice(BACKBONE),)), 10**9, DEVICES["h100"])
    photograph = 3600 * made.hours / made.photographs
    model = Model(WORKERS, MAX_ROWS * photograph, _spread())
    sizes = SIZES["quick" if quick else "full"]
    rows = [row for images in sizes for row in _rows(model, images, names, headline=images == sizes[-1])]
    return [*rows, _notes(names)]


def _spread() -> float:
    """Standard deviation of the logarithm of a batch's time, from the saved result of ViT-B/16 on two cores."""
    kept = json.loads((RESULTS / "embed.json").read_text())
    timing = next(row["timings"][OURS] for row in kept["rows"] if row["name"] == "ViT-B/16")
    return max(math.log(timing["p80"] / timing["p20"]) / 1.683, 0.01)  # p80 - p20 of a standard normal


def _rows(model: Model, images: int, names: tuple[str, ...], *, headline: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="substyle-scale-") as place:
        fleet = Fleet(Path(place), model, images, MAX_ROWS, names)
        outcome = fleet.run()
        index, unfinished = _reading(fleet)
        facts = _facts(fleet, outcome)
        what = f"10^{round(math.log10(images))} photographs"
        commit = Timing.of([outcome.journal])
        return [
            Row(f"plan a run over {what}, nothing done", "shards", fleet.shards, {OURS: Timing.of(outcome.plans[:1])},
                headline=headline),
            Row(f"commit and compact a shard's record, {what}; without fsync", "records", fleet.shards,
                {OURS: commit}, facts=facts, headline=headline),
            Row(f"load a finished journal of {fleet.shards:,} records", "calls", 1, {OURS: index}, headline=headline),
            Row(f"say which of {fleet.shards * len(names):,} embeddings of shards lack", "calls", 1, {OURS: unfinished},
                headline=headline),
        ]  # fmt: skip


def _reading(fleet: Fleet) -> tuple[Timing, Timing]:
    """Time loading a journal and querying it for finished shards, in seconds."""
    loading, asking = [], []
    for _ in range(3):
        began = time.perf_counter()
        index = journal.read_index(fleet.store)
        loaded = time.perf_counter()
        if not index.finished(fleet.backbone, fleet.names, fleet.shards).all():
            raise SystemExit("shards are still pending after the last driver")
        loading.append(loaded - began)
        asking.append(time.perf_counter() - loaded)
    return Timing.of(loading), Timing.of(asking)


def _facts(fleet: Fleet, outcome: Outcome) -> dict[str, Any]:
    files = [path for path in (fleet.store / journal.FOLDER).rglob("*") if path.is_file()]
    return {
        "workers": fleet.model.workers,
        "shard_rows": fleet.rows,
        "shard_seconds": round(fleet.model.shard_seconds, 3),
        "service_times": "H100 roofline of `substyle plan`; spread of the measured ViT-B/16",
        "simulated_hours": round(outcome.seconds / 3600, 4),
        "all_busy_share": round(outcome.busy / outcome.seconds, 4),
        "wasted_share": round(outcome.wasted / (outcome.useful + outcome.wasted), 5),
        "deaths": outcome.deaths,
        "driver_restarts": len(outcome.plans) - 2,
        "plan_seconds": [round(seconds, 3) for seconds in outcome.plans],
        "journal_files": len(files),
        "journal_bytes": sum(path.stat().st_size for path in files),
        **{f"{kind}_per_record": round(count / fleet.shards, 3) for kind, count in sorted(outcome.calls.items())},
    }


def _notes(names: tuple[str, ...]) -> Row:
    """Measure the notes of a full record: bytes per image, loose and compacted, and time to write and compact."""
    rng = np.random.default_rng(0)
    count = MAX_ROWS
    images = tuple(
        ImageNote(i, 375, 500, "", rng.bytes(72).hex(), ("grayscale",) if i % 50 == 0 else ()) for i in range(count)
    )
    record = Record(0, 0, count, "vit_base-00000000", {name: rng.bytes(16).hex() for name in names}, images, 1.0, "r")
    place = LocalPlace(tempfile.mkdtemp(prefix="substyle-scale-"))
    seconds = []
    try:
        for _ in range(5):
            began = time.perf_counter()
            loose = journal.write(place, record)
            compaction.compact(place)
            seconds.append(time.perf_counter() - began)
    finally:
        shutil.rmtree(place)
    facts = {"loose_bytes": loose / count, "compacted_bytes": len(records.encode([(0, record)])) / count}
    return Row("note what decoding learned of an image", "images", count, {OURS: Timing.of(seconds)}, facts=facts)


if __name__ == "__main__":
    main(sys.modules[__name__])
