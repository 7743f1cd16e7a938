"""A worker without Ray: what it does with the shards that it is given."""

from __future__ import annotations

import os
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
from substyle.engine.store.layout import DifferentError, LockedError, StoreError
from substyle.engine.store.manifest import SourceEntry
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import place
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
