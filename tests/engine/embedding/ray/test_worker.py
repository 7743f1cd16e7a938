"""A worker without Ray: what it does with the shards that it is given."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kinds import write_tar
from tests.conftest import jpeg, photograph, shards_of
from tests.engine.embedding.ray.shards import ROWS, WHITE, photographs
from tests.object_server import Server

from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.loop import Loop
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.ray_worker import Worker, WorkerSpec
from substyle.engine.embedding.run import embed
from substyle.engine.embedding.scheduler import ShardInProgress
from substyle.engine.store import lock
from substyle.engine.store.layout import BackboneEntry, DifferentError, LockedError, StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import ConfigError
from substyle.pipelines.sources import FolderSource, open_source
from substyle.pipelines.storage import ObjectPlace, place
from substyle.pipelines.transforms import base

PIXELS = BackboneChoice("control:pixels")
SETTINGS = Settings(0, 32, ("identity", "grayscale"))
CONFIG = EmbedConfig(batch=2, threads=1, device="cpu", runtime="openvino", shard_rows=ROWS)
ALL = [list(SETTINGS.transformations)]


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, Path]:
    """Photographs, one of them broken, and a finished store of them."""
    images, store = photographs(tmp_path / "images", 14), tmp_path / "s.zarr"
    (images / "006.jpg").write_bytes(b"no picture")
    embed(planned(images, store), [PIXELS], quiet=True)
    return images, store


@pytest.fixture
def order(whole: tuple[Path, Path]) -> Iterator[WorkerSpec]:
    """An order of a run that owns the store."""
    images, store = whole
    plan = planned(images, store)
    with lock.hold(store, "run"):
        yield spec_of(plan, store)


def spec_of(plan: EmbedPlan, store: Path) -> WorkerSpec:
    return WorkerSpec(
        folder=os.getcwd(),
        cache=os.environ["SUBSTYLE_CACHE"],
        plugins=(),
        store=place(store),
        part=lock.WHOLE,
        run="run",
        backbones=(PIXELS,),
        settings=SETTINGS,
        config=CONFIG,
        photographs=pickle.dumps((plan.by_key(EmbeddingStore.open(store).calibration), plan.visible())),
        remedies=plan.remedies,
        readers=plan.readers,
    )


def planned(images: Path, store: Path) -> EmbedPlan:
    return EmbedPlan(FolderSource(images), place(store), PixelPipeline(SETTINGS, CONFIG))


@pytest.fixture
def shard(whole: tuple[Path, Path]) -> Callable[[int], bytes]:
    """Work on a shard, as another process gets it."""
    images, store = whole
    shards = planned(images, store).shards(EmbeddingStore.open(store))
    return lambda number: pickle.dumps(shards(number, ALL))


def test_it_refuses_a_transformation_that_is_defined_otherwise(
    order: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a suite file is that was edited, or whose picture was replaced, after the run began."""
    known = base.get("grayscale")
    monkeypatch.setitem(base.REGISTRY, "grayscale", replace(known, version=known.version + 1))
    with pytest.raises(DifferentError, match=r"grayscale \(another definition\)"):
        Worker(order).prepare()


def test_it_refuses_photographs_that_its_machine_does_not_see(
    order: WorkerSpec, whole: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would quarantine them all."""
    whole[0].rename(whole[0].with_name("elsewhere"))
    with pytest.raises(ConfigError, match=r"IMAGES: got '000\.jpg'; allowed: photographs that all machines see"):
        Worker(order).prepare()


def test_it_holds_neither_photographs_nor_notes_of_other_shards(
    order: WorkerSpec, shard: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = shard(WHITE)
    assert list(pickle.loads(work).keys) == [f"{i:03d}.jpg" for i in range(WHITE * ROWS, WHITE * ROWS + ROWS)]
    for name in ("manifest", "notes"):
        monkeypatch.delattr(EmbeddingStore, name)
    worker = Worker(order)
    worker.prepare()
    summary = worker.fill(work)
    assert summary is not None
    assert summary.new_shards == 1


def test_it_reads_of_a_bucket_what_it_embeds(bucket: ObjectPlace, server: Server, tmp_path: Path) -> None:
    """Not all shards, as one that lists the photographs would."""
    images = {f"{i:03d}.jpg": jpeg(photograph(i)) for i in range(3 * ROWS)}
    for number in range(3):
        members = list(images.items())[number * ROWS : (number + 1) * ROWS]
        write_tar(tmp_path / f"{number}.tar", members)
        (bucket / f"{number}.tar").write((tmp_path / f"{number}.tar").read_bytes())
    source, store = open_source(str(bucket)), tmp_path / "s.zarr"
    plan = EmbedPlan(source, place(store), PixelPipeline(SETTINGS, CONFIG))
    embed(plan, [PIXELS], quiet=True)
    with lock.hold(store, "run"):
        worker = Worker(spec_of(plan, store))
        server.sent.clear()
        worker.prepare()
        first = images["000.jpg"]  # to see whether it can
        assert sum(server.sent.values()) == len(first)
        shards = plan.shards(EmbeddingStore.open(store))
        assert worker.fill(pickle.dumps(shards(WHITE, ALL))) is not None
    own = list(images.values())[WHITE * ROWS :]
    assert sum(server.sent.values()) == len(first) + sum(map(len, own))


def test_it_embeds_the_next_shard_while_one_is_written(
    order: WorkerSpec, shard: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, batch, write = threading.Event(), Loop._batch, EmbeddingStore.write_shard

    def begin(loop: Loop, shard: ShardInProgress, *rest: Any) -> None:  # noqa: ANN401
        batch(loop, shard, *rest)
        if shard.task.number:
            begun.set()

    def slow(store: EmbeddingStore, entry: BackboneEntry, number: int, *rest: Any, **more: Any) -> int:  # noqa: ANN401
        assert number or begun.wait(60)
        return write(store, entry, number, *rest, **more)

    monkeypatch.setattr(Loop, "_batch", begin)
    monkeypatch.setattr(EmbeddingStore, "write_shard", slow)
    worker = Worker(order)
    worker.prepare()
    with ThreadPoolExecutor(2) as calls:
        both = [calls.submit(worker.fill, shard(number)) for number in (0, 1)]
        found = [future.result() for future in both]
    assert [done.new_shards for done in found if done] == [1, 1]
    assert [set(done.quarantined) for done in found if done] == [set(), {"006.jpg"}], "each tells its own"
    assert worker.progress() == 2 * ROWS * len(SETTINGS.transformations)
    again = worker.fill(shard(WHITE))
    assert again is not None
    assert (again.new_shards, again.quarantined) == (1, {})
    assert min(again.seconds.values()) >= 0


def test_it_stops_when_asked_and_leaves_the_shard(order: WorkerSpec, shard: Callable[[int], bytes]) -> None:
    before = shards_of(order.store)
    worker = Worker(order)
    worker.prepare()
    worker.stop()
    assert worker.fill(shard(WHITE)) is None
    assert worker.progress() == 0
    assert shards_of(order.store) == before


def test_it_writes_no_more_once_another_run_has_the_store(order: WorkerSpec, shard: Callable[[int], bytes]) -> None:
    before = shards_of(order.store)
    path = order.store / lock.NAME
    mine = path.read_bytes()
    try:
        for other in (mine.replace(b': "run"', b': "other"'), b"torn", None):
            worker = Worker(order)
            worker.prepare()
            path.unlink() if other is None else path.write_bytes(other)
            with pytest.raises(LockedError):
                worker.fill(shard(0))
    finally:
        path.write_bytes(mine)
    assert shards_of(order.store) == before


def test_a_machine_that_would_make_other_embeddings_is_refused(
    order: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from substyle.engine.backbones.compile import CompiledBackbone

    describe = CompiledBackbone.describe
    monkeypatch.setattr(
        CompiledBackbone,
        "describe",
        lambda self: [{**facts, "runtime": {**self.runtime, "precision": "fp16"}} for facts in describe(self)],
    )
    with pytest.raises(StoreError, match="control:pixels"):
        Worker(order).prepare()
