"""What only a bucket can do to a store: not answer, answer twice, and take two writers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.engine.store.test_store import SETTINGS
from tests.engine.store.test_verify import finished
from tests.object_server import Fault, Server

from substyle.engine.store.files import write_once
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.verify import verify
from substyle.pipelines.storage import ObjectPlace


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


def test_in_a_bucket_that_may_only_be_read_nothing_is_marked(bucket: ObjectPlace, server: Server) -> None:
    store = finished(bucket / "s.zarr")
    store.shard_path(store.backbone("timm:x").slug, "jpeg", 0).remove()
    with server.failing(Fault("PUT|POST|DELETE", ".", status=403)):
        verdict = verify(store.path, quiet=True)
    assert [finding.kind for finding in verdict.findings] == ["shard"]
    assert not verdict.noted
    assert "403" in verdict.not_noted_because
    assert len(store.finished()) == 4
