"""The plan of a run against a plain one, shard by shard and name by name."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import slow_after

from substyle.engine.embedding.plan import lacking
from substyle.engine.store import compaction, journal
from substyle.engine.store.lock import WHOLE, Part
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.records import Record
from substyle.pipelines.storage import place

NAMES = ("identity", "jpeg", "swirl")
SLUGS = ("a", "b")


def manifest(rng: random.Random, shard_rows: int) -> Manifest:
    """One to three segments of images; each begins at a shard."""
    row_N: list[int] = []
    for _ in range(rng.randint(1, 3)):
        first = -(-(row_N[-1] + 1 if row_N else 0) // shard_rows) * shard_rows
        row_N += range(first, first + rng.randint(1, 20))
    count = len(row_N)
    keys = tuple(f"{row}.jpg" for row in row_N)
    return Manifest(
        np.array(row_N), keys, np.zeros(count, np.int64), ("x",), np.zeros(count, np.int8), np.full(count, -1, np.int8)
    )


@pytest.mark.parametrize("seed", slow_after(6, range(30)))
def test_a_plan_is_what_lacks(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    shard_rows = rng.choice([1, 2, 4, 8])
    images = manifest(rng, shard_rows)
    shards = -(-images.rows // shard_rows)
    done: dict[tuple[int, str], set[str]] = {}
    for shard in range(shards):
        for slug in (*SLUGS, "other"):
            some = rng.sample(NAMES, rng.choice([0, 1, 3, 3, 3]))
            if some:
                checksums = dict.fromkeys(some, "0")
                journal.write(
                    place(tmp_path), Record(shard, shard * shard_rows, images.rows, slug, checksums, (), 0.0, "r")
                )
                done[shard, slug] = set(some)
    compaction.compact(place(tmp_path), at=rng.choice([1, 5, 100]))
    part = rng.choice([WHOLE, Part(1, 2), Part(2, 2), Part(3, 5)])
    found = lacking(images.shard_sizes(shard_rows), journal.read_index(place(tmp_path)), SLUGS, NAMES, part)

    expected, sizes = {}, {}
    total = missing = 0
    for shard in (shard for shard in range(shards) if shard % part.count == part.index - 1):
        inside = [i for i, row in enumerate(images.row_N.tolist()) if row // shard_rows == shard]
        lacks = [[name for name in NAMES if name not in done.get((shard, slug), set())] for slug in SLUGS]
        total += len(inside) * len(NAMES) * len(SLUGS)
        missing += len(inside) * sum(map(len, lacks))
        if any(lacks):
            expected[shard], sizes[shard] = lacks, len(inside)
        own = images.between(shard * shard_rows, (shard + 1) * shard_rows)
        assert list(range(own.start, own.stop)) == inside
    assert list(found.lacking.items()) == list(expected.items())
    assert list(found.sizes.items()) == list(sizes.items())
    assert set(range(-1, shards + 1)) - set(found.lacking) == {s for s in range(-1, shards + 1) if s not in expected}
    assert (found.images, found.shards) == (len(images.keys), shards)
    assert (found.total, found.done) == (total, total - missing)
