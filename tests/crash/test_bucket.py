"""Stores in a bucket: killed, cut off, held by others; what is resumed is what a run on a disk makes, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import differences, embed, until
from tests.crash.processes import Warm
from tests.object_server import KEY, SECRET, Fault, Server

from substyle.engine.store import journal
from substyle.engine.store.verify import verify
from substyle.pipelines.storage import ObjectPlace


def fetched(store: ObjectPlace, folder: Path) -> Path:
    local = folder / "fetched" / "s.zarr"
    for found, _ in store.walk():
        path = local / found.relative_to(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found.read_bytes())
    return local


def puts(server: Server, store: ObjectPlace) -> int:
    return sum(method == "PUT" and f"/{store.key}/" in path for method, path in server.requests)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 8, 20])
def test_a_killed_run_is_resumed_to_the_same_bytes(
    warm: Warm, finished: Whole, bucket: ObjectPlace, server: Server, tmp_path: Path, moment: int
) -> None:
    store = bucket / "s.zarr"
    arguments = embed(finished.images, store)
    run = warm(arguments)
    until(lambda: puts(server, store) >= moment, run)
    run.kill().require(-9)
    assert len(journal.read(store)) < finished.shards
    warm(arguments).wait().require(0)
    assert differences(fetched(store, tmp_path), finished.store) == []
    assert verify(store, quiet=True).ok


# what is busy or broken is asked again for a quarter of a minute
@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 503])
def test_a_bucket_that_refuses_ends_the_run_and_keeps_what_is_finished(
    warm: Warm, finished: Whole, bucket: ObjectPlace, server: Server, tmp_path: Path, status: int
) -> None:
    store = bucket / "s.zarr"
    arguments = embed(finished.images, store)
    with server.failing(Fault("PUT", r"/c\.0\.\d+\.0$", status=status, after=2)):
        ended = warm(arguments).wait().require(1, "/c.0.", str(status), "kept")
    assert KEY not in ended.err + ended.out
    assert SECRET not in ended.err + ended.out
    kept = journal.read(store)
    assert 0 < len(kept) < finished.shards
    warm(arguments).wait().require(0)
    again = {record.shard: record.run for record in journal.read(store)}
    assert all(again[record.shard] == record.run for record in kept)
    assert differences(fetched(store, tmp_path), finished.store) == []


def test_no_secret_reaches_a_store(warm: Warm, finished: Whole, bucket: ObjectPlace) -> None:
    store = bucket / "s.zarr"
    ended = warm(embed(finished.images, store, "--set", "limit=8")).wait().require(0)
    for text in (ended.out, ended.err, *(p.read_bytes().decode("latin-1") for p, _ in store.walk())):
        assert KEY not in text
        assert SECRET not in text
