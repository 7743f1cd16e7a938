"""A worker without Ray: what it does with the shards that it is given."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import shards_of
from tests.engine.embedding.ray.shards import ROWS, WHITE, photographs

from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.ray_worker import Worker, WorkerSpec
from substyle.engine.embedding.run import embed
from substyle.engine.store import lock
from substyle.engine.store.compaction import withdraw
from substyle.engine.store.layout import DifferentError, LockedError, StoreError
from substyle.engine.store.manifest import SourceEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.sources.variants import VariantsSource
from substyle.pipelines.storage import place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_suite

PIXELS = BackboneChoice("control:pixels")
SETTINGS = Settings(0, 32, ("identity", "grayscale"))
CONFIG = EmbedConfig(batch=2, threads=1, device="cpu", runtime="openvino", shard_rows=ROWS)
ALL = [list(SETTINGS.transformations)]


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, Path]:
    """Photographs, one of them broken, and a finished store of them."""
    images, store = photographs(tmp_path / "images", 14), tmp_path / "s.zarr"
    (images / "006.jpg").write_bytes(b"no picture")
    embed(EmbedPlan(FolderSource(images), place(store), PixelPipeline(SETTINGS, CONFIG)), [PIXELS], quiet=True)
    return images, store


@pytest.fixture
def order(whole: tuple[Path, Path]) -> Iterator[WorkerSpec]:
    """An order of a run that owns the store."""
    images, store = whole
    cache = os.environ["SUBSTYLE_CACHE"]
    with lock.hold(store, "run"):
        yield WorkerSpec(
            os.getcwd(),
            cache,
            (),
            (SourceEntry("", "folder", str(images)),),
            store,
            lock.WHOLE,
            "run",
            (PIXELS,),
            SETTINGS,
            CONFIG,
        )


def test_it_reads_real_variants(order: WorkerSpec, tmp_path: Path) -> None:
    """It opens the same kind of source, and says what it left out."""
    identity = shutil.copytree(order.sources[0].root, tmp_path / "real" / "identity")
    phone = shutil.copytree(identity, tmp_path / "real" / "phone")
    (phone / "003.jpg").unlink()
    suite = tmp_path / "suite.toml"
    suite.write_text('transformations = [{ name = "workerphone", of = "photographs" }]')
    (tmp_path / "real" / "phone").rename(tmp_path / "real" / "workerphone")
    settings = replace(SETTINGS, transformations=load_suite(suite))
    settings = replace(settings, transformations=("identity", *settings.transformations))
    source, path = VariantsSource(tmp_path / "real"), tmp_path / "real.zarr"
    plan = EmbedPlan(source, place(path), PixelPipeline(settings, CONFIG))
    try:
        summary = embed(plan, [PIXELS], quiet=True)
        before, slug = shards_of(path), EmbeddingStore.open(path).backbone(PIXELS.name).slug
        withdraw(place(path), {(shard, slug): set(settings.transformations) for shard in range(4)})
        for file in path.rglob("c.*"):
            file.unlink()
        entry = SourceEntry("", "variants", str(tmp_path / "real"))
        with lock.hold(path, "run"):
            spec = replace(order, sources=(entry,), store=path, settings=settings, plugins=(suite,))
            worker = Worker(pickle.loads(pickle.dumps(spec)))
            worker.prepare()
            left_out: dict[str, str] = {}
            for shard in range(4):
                done = worker.fill(shard, [list(settings.transformations)])
                assert done is not None
                left_out |= done.left_out.get("workerphone", {})
        assert shards_of(path) == before != {}
        assert left_out == summary.left_out["workerphone"] == {"003.jpg": "no file"}
    finally:
        base.REGISTRY.pop("workerphone", None)


def test_it_fills_the_shards_it_is_given(order: WorkerSpec) -> None:
    opened = EmbeddingStore.open(order.store)
    slug = opened.backbone(PIXELS.name).slug
    before = shards_of(order.store)
    withdraw(place(order.store), {(shard, slug): set(SETTINGS.transformations) for shard in range(3)})
    for shard in range(3):
        opened.shard_path(slug, "identity", shard).unlink()
    worker = Worker(pickle.loads(pickle.dumps(order)))
    assert worker.where().startswith(f"pid {os.getpid()} on ")
    worker.prepare()
    quarantined: dict[str, str] = {}
    for shard in (2, 0, 1):
        summary = worker.fill(shard, ALL)
        assert summary is not None
        assert summary.new_shards == 1
        assert summary.seconds["decode"] > 0
        assert worker.progress() == 2 * ROWS
        quarantined |= summary.quarantined
    assert set(quarantined) == {"006.jpg"}
    assert shards_of(order.store) == before


def test_it_refuses_a_transformation_that_is_defined_otherwise(
    order: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a suite file is that was edited, or whose picture was replaced, after the run began."""
    known = base.get("grayscale")
    monkeypatch.setitem(base.REGISTRY, "grayscale", replace(known, version=known.version + 1))
    with pytest.raises(DifferentError, match=r"grayscale \(another definition\)"):
        Worker(order).prepare()


def test_it_stops_when_asked_and_leaves_the_shard(order: WorkerSpec) -> None:
    before = shards_of(order.store)
    worker = Worker(order)
    worker.prepare()
    worker.stop()
    assert worker.fill(WHITE, ALL) is None
    assert worker.progress() == 0
    assert shards_of(order.store) == before


def test_it_writes_no_more_once_another_run_has_the_store(order: WorkerSpec) -> None:
    before = shards_of(order.store)
    path = order.store / lock.NAME
    mine = path.read_bytes()
    try:
        for other in (mine.replace(b': "run"', b': "other"'), b"torn", None):
            worker = Worker(order)
            worker.prepare()
            path.unlink() if other is None else path.write_bytes(other)
            with pytest.raises(LockedError):
                worker.fill(0, ALL)
    finally:
        path.write_bytes(mine)
    assert shards_of(order.store) == before


def test_a_machine_that_has_not_got_the_store_says_so(order: WorkerSpec, tmp_path: Path) -> None:
    elsewhere = WorkerSpec(**{**vars(order), "store": tmp_path / "elsewhere.zarr"})
    with pytest.raises(StoreError, match=r"elsewhere\.zarr"):
        Worker(elsewhere).prepare()


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
