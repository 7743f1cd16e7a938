"""What only a bucket can do to a store: not answer, answer twice, and take two writers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from tests.conftest import slow_after
from tests.engine.store.test_journal import record
from tests.engine.store.test_store import FOUND, SETTINGS, facts, make, note, rows
from tests.engine.store.test_verify import finished, redo
from tests.object_server import KEY, Fault, Server

from substyle.engine.store import compaction, journal, manifest
from substyle.engine.store.files import write_once
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.store.verify import verify
from substyle.pipelines.storage import ObjectError, ObjectPlace


def at_once(*work: Callable[[], object]) -> list[BaseException | None]:
    """Do several things at the same moment; what each of them raised."""
    start, raised = threading.Barrier(len(work)), [None] * len(work)

    def one(i: int) -> None:
        start.wait()
        try:
            work[i]()
        except StoreError as error:
            raised[i] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(raised)


def test_two_writers_of_one_record_and_of_two(bucket: ObjectPlace) -> None:
    same = [lambda: journal.write(bucket, record(0))] * 6
    assert at_once(*same) == [None] * 6
    assert journal.read(bucket) == [record(0)]
    others = [lambda i=i: journal.write(bucket, record(1, "b", f"t{i}")) for i in range(6)]  # type: ignore[misc]
    assert at_once(*others) == [None] * 6
    assert {name for r in journal.read(bucket) for name in r.checksums} >= {f"t{i}" for i in range(6)}


def test_of_two_contents_under_one_name_one_is_there_and_the_other_is_told(bucket: ObjectPlace) -> None:
    there = bucket / "x"
    raised = at_once(*[lambda i=i: write_once(there, bytes([i])) for i in range(4)])  # type: ignore[misc]
    lost = [error for error in raised if error is not None]
    assert len(lost) == 3
    assert all(isinstance(error, StoreError) and str(there) in str(error) for error in lost)
    assert there.read_bytes() == bytes([raised.index(None)])


def test_of_several_that_make_a_store_one_does(bucket: ObjectPlace) -> None:
    store = bucket / "s.zarr"
    raised = at_once(*[lambda: EmbeddingStore.create(store, SETTINGS)] * 4)
    assert sum(error is None for error in raised) == 1
    assert all(isinstance(error, StoreError) and str(store) in str(error) for error in raised if error)
    assert EmbeddingStore.open(store).settings.seed == SETTINGS.seed


def test_a_folder_that_holds_something_else_is_left_as_it_is(bucket: ObjectPlace) -> None:
    (bucket / "s.zarr" / "notes.txt").write(b"somebody's")
    with pytest.raises(StoreError, match=r"s\.zarr: "):
        EmbeddingStore.create(bucket / "s.zarr", SETTINGS)
    assert [p.name for p, _ in bucket.walk()] == ["notes.txt"]


def test_a_server_that_overwrites_against_the_request_is_refused(bucket: ObjectPlace, server: Server) -> None:
    server.conditional = False
    with pytest.raises(StoreError, match="If-None-Match"):
        EmbeddingStore.create(bucket / "s.zarr", SETTINGS)
    assert list(bucket.walk()) == []


@pytest.mark.parametrize("path", slow_after(2, ["/c.0", "journal/", "images.parquet/", "catalog/"]))
def test_a_bucket_that_does_not_answer_is_no_damage(bucket: ObjectPlace, server: Server, path: str) -> None:
    store = finished(bucket / "s.zarr")
    before = {p: p.read_bytes() for p in store.path.sizes()}
    with server.failing(Fault("GET|HEAD", path)):
        for look in (lambda: verify(store.path, quiet=True), lambda: load_table(reopened(store), "timm:x")):
            with pytest.raises(ObjectError, match=r"^s3://.*: .*\b500\b") as caught:
                look()
            assert KEY not in str(caught.value)
    assert {p: p.read_bytes() for p, _ in store.path.walk()} == before  # type: ignore[union-attr]


def test_in_a_bucket_that_may_only_be_read_nothing_is_marked(bucket: ObjectPlace, server: Server) -> None:
    store = finished(bucket / "s.zarr")
    store.shard_path(store.backbone("timm:x").slug, "jpeg", 0).remove()
    with server.failing(Fault("PUT|POST|DELETE", ".", status=403)):
        verdict = verify(store.path, quiet=True)
    assert [finding.kind for finding in verdict.findings] == ["shard"]
    assert not verdict.noted
    assert "403" in verdict.not_noted_because
    assert len(store.finished()) == 4


def reopened(store: EmbeddingStore) -> EmbeddingStore:
    return EmbeddingStore.open(str(store.path))


@pytest.mark.parametrize("path", [r"/c\.0\.1\.0$", r"journal/00000001-[^/]*\.json$"])
def test_a_shard_that_cannot_be_written_is_not_there_and_the_others_are(
    bucket: ObjectPlace, server: Server, path: str
) -> None:
    store, entry = make(bucket / "s.zarr")
    store.write_shard(entry, 0, rows(0, 4), [note(i) for i in range(4)], seconds=1.0, run="r")
    with server.failing(Fault("PUT", path)), pytest.raises(StoreError, match=r"^s3://.*\b500\b.* kept\.$"):
        store.write_shard(entry, 1, rows(1, 2), [note(4), note(5)], seconds=1.0, run="r")
    assert [*store.finished().records()] == [(0, entry.slug, ("identity", "jpeg"))]
    assert load_table(store, "timm:x").keys == tuple(f"{i}.jpg" for i in range(4))
    store.write_shard(entry, 1, rows(1, 2), [note(4), note(5)], seconds=1.0, run="r")
    assert len(load_table(store, "timm:x").keys) == 6
    assert verify(store.path, quiet=True).ok


@pytest.mark.parametrize(
    "path", slow_after(2, [r"/c\.0\.0\.0", "journal/", "images.parquet/", "zarr.json", "s.zarr/zarr.json"])
)
def test_an_answer_that_is_lost_changes_nothing(bucket: ObjectPlace, server: Server, path: str) -> None:
    with server.failing(Fault("PUT", path, times=1, status=0)) as faults:
        store = EmbeddingStore.create(bucket / "s.zarr", SETTINGS)
        store.add_images(list("abcdef"), np.arange(6) % 2, ["cat", "dog"], np.zeros(6, np.int8))
        store.ensure_backbone(facts(), FOUND)
        assert len(redo(store, 0) + redo(store, 1)) == 4
        compaction.compact(store.path, at=1)
    assert faults[0].seen > 1
    assert len(manifest.segments(store.path)) == 1
    assert verify(store.path, quiet=True).ok
