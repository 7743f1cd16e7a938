from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.at_once import AtOnce
from tests.conftest import jpeg, photograph, shards_of

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import ANCHORS, GATE_EACH, SPOT_PICTURES
from substyle.engine.backbones.spec import BackboneSpec
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding import loop
from substyle.engine.embedding.blobs import Blob
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline, shard_rows
from substyle.engine.embedding.run import embed
from substyle.engine.store import lock
from substyle.engine.store.layout import DifferentError, StoreError, rows_of_shards
from substyle.engine.store.records import UNREAD
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, store_facts
from substyle.errors import ConfigError
from substyle.pipelines.sources import FolderSource, ImageRecord
from substyle.pipelines.storage import LocalPlace, place
from substyle.pipelines.transforms.registry import suite

PIXELS = BackboneChoice("control:pixels")
CONFIG = EmbedConfig(batch=4, threads=1, precision="fp32", shard_rows=8)


def plan(images: Path, store: Path, names: str = "mini5", limit: int = 0, **config: int | str) -> EmbedPlan:
    settings = Settings(0, 64, suite(names))
    changed = EmbedConfig(**{**vars(CONFIG), **config})  # type: ignore[arg-type]
    return EmbedPlan(FolderSource(images), place(store), PixelPipeline(settings, changed), limit)


def folder(root: Path, count: int, start: int = 0) -> Path:
    root.mkdir(exist_ok=True)
    for i in range(start, start + count):
        (root / f"{i:03d}.jpg").write_bytes(jpeg(photograph(i)))
    return root


def test_every_variant_of_every_photograph(tmp_path: Path, two_classes: Path) -> None:
    store = tmp_path / "s.zarr"
    summary = embed(plan(two_classes, store), [PIXELS], quiet=True)
    assert (summary.images, summary.variants, summary.shards, summary.new_shards) == (40, 200, 5, 5)
    table = load_table(EmbeddingStore.open(store), "control:pixels")
    assert table.x_TND.shape == (5, 40, 768)
    assert table.transformations == suite("mini5")
    assert table.class_names == ("even", "odd")
    assert np.isfinite(table.x_TND).all()
    assert table.x_TND.std() > 0.05
    assert set(table.split_N.tolist()) == {0, 1, 2}
    assert not (store / lock.NAME).exists()


def test_batch_size_changes_no_byte(tmp_path: Path, two_classes: Path) -> None:
    embed(plan(two_classes, tmp_path / "a.zarr"), [PIXELS], quiet=True)
    embed(plan(two_classes, tmp_path / "b.zarr", batch=7), [PIXELS], quiet=True)
    assert shards_of(tmp_path / "a.zarr") == shards_of(tmp_path / "b.zarr") != {}


def test_new_backbone_and_new_transformation_touch_nothing(tmp_path: Path, two_classes: Path) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store, "identity,grayscale"), [PIXELS], quiet=True)
    before = shards_of(store)
    random = BackboneChoice("control:random:test_efficientnet")
    embed(plan(two_classes, store), [PIXELS, random], quiet=True)
    after = shards_of(store)
    assert before.items() <= after.items()
    assert len(after) == (2 + 1) * 5  # two arrays of the first backbone
    opened = EmbeddingStore.open(store)
    assert load_table(opened, random.name).x_TND.shape[:2] == (5, 40)
    facts = opened.backbone(random.name).facts
    assert facts["gate"]["cosine_min"] >= 0.9999
    assert facts["runtime"]["precision"] == "fp32"


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["full", "auto"])
def test_a_full_gate_compares_every_picture(tmp_path: Path, two_classes: Path, gate: str) -> None:
    request = plan(two_classes, tmp_path / "s.zarr", gate=gate)
    embed(request, [BackboneChoice("control:random:test_vit", precision="bf16")], quiet=True)
    (entry,) = EmbeddingStore.open(tmp_path / "s.zarr").backbones()
    found = entry.facts["gate"]
    variants = len({*request.pipeline.settings.transformations, *ANCHORS})
    if gate == "full":
        assert found["rows"] == 32 * variants
        assert "spot" not in found
    else:
        assert found["rows"] == GATE_EACH * variants
        assert found["spot"]["rows"] == SPOT_PICTURES


@pytest.mark.slow
def test_a_store_states_its_gate_and_is_refused_where_more_is_required(tmp_path: Path, two_classes: Path) -> None:
    network, store = BackboneChoice("control:random:test_efficientnet"), tmp_path / "s.zarr"

    def given(gate_cosine: float) -> EmbedPlan:
        return plan(two_classes, store, "identity,grayscale", precision="bf16", gate_cosine=gate_cosine)

    embed(given(0.5), [network], quiet=True)
    found = EmbeddingStore.open(store).backbone(network.name).facts["gate"]
    assert (found["configured"], found["threshold"]) == (True, 0.5)
    lowest = min(found["cosine_min"], found["spot"]["cosine_min"])
    assert embed(given(lowest), [network], quiet=True).new_shards == 0
    above = (1 + lowest) / 2
    with pytest.raises(DifferentError, match=rf"cosine of 0\.\d+ with float32, and {above} is required"):
        embed(given(above), [network], quiet=True)


@pytest.mark.slow
def test_layers_in_one_pass_are_backbones_of_a_store(tmp_path: Path, two_classes: Path) -> None:
    network, store = "control:random:test_vit", tmp_path / "s.zarr"
    layers = [BackboneChoice(f"{network}@layer=0..1")]
    embed(plan(two_classes, store), layers, quiet=True)
    assert [entry.name for entry in EmbeddingStore.open(store).backbones()] == layers[0].names
    before = shards_of(store)
    assert len(before) == 2 * 5
    assert embed(plan(two_classes, store), layers, quiet=True).new_shards == 0
    # a run that has one of them left to do, as one that was interrupted
    for path in (store / "embeddings").glob("*layer_0*/*/c.0.1.0"):
        path.unlink()
    assert embed(plan(two_classes, store), layers, quiet=True).new_shards == 1
    assert shards_of(store) == before


def test_equal_photographs_of_different_classes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/copy.jpg", "b/3.jpg"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(jpeg(photograph(1 if name in ("a/1.jpg", "a/2.jpg", "b/copy.jpg") else 3)))
    embed(plan(tmp_path / "p", tmp_path / "s.zarr"), [BackboneChoice("control:pixels")])
    assert "s.zarr: equal photographs in different classes: a/1.jpg and b/copy.jpg\n" in capsys.readouterr().err
    assert store_facts(EmbeddingStore.open(tmp_path / "s.zarr")).conflicting == (("a/1.jpg", "b/copy.jpg"),)


def unreadable(keys: set[str]) -> Callable[[ImageRecord | None], Blob]:
    """As `loop.read`, but for photographs of a disk that fails."""
    real = loop.read

    def read(record: ImageRecord | None) -> Blob:
        failed = record is not None and record.key in keys
        return Blob(b"", reason=f"{UNREAD}: busy") if failed else real(record)

    return read


def test_a_photograph_that_cannot_be_read_any_more_takes_no_embeddings_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be left out of all tables for the error of one pass; one that was bad before may be gone."""
    images, store = folder(tmp_path / "images", 12), tmp_path / "s.zarr"
    (images / "001.jpg").write_bytes(b"no photograph")
    embed(plan(images, store, "identity,grayscale"), [PIXELS], quiet=True)
    (images / "001.jpg").unlink()
    made, statistics = plan(images, store, "identity,grayscale"), BackboneChoice("control:statistics")
    monkeypatch.setattr(loop, "read", unreadable({"009.jpg"}))
    with pytest.raises(StoreError, match=r"009\.jpg: cannot be read: busy, but embedded in .*s\.zarr") as caught:
        embed(made, [PIXELS, statistics], quiet=True)
    assert not isinstance(caught.value, DifferentError)  # on which callers rebuild a store
    monkeypatch.undo()
    assert len(load_table(EmbeddingStore.open(store), "control:pixels").keys) == 11
    embed(plan(images, store, "identity,grayscale"), [PIXELS, statistics], quiet=True)
    assert len(load_table(EmbeddingStore.open(store), statistics.name).keys) == 11


@pytest.mark.parametrize(
    ("rate", "images", "batch", "rows"),
    [
        (1000.0, 8, 32, 16),
        (1000.0, 1000, 32, 64),
        (1000.0, 10**5 - 1, 32, 256),
        (1e6, 10**6, 32, 1024),
        (10.0, 10**6, 32, 256),  # a quarter of an hour of a slow backbone
        (2.0, 10**6, 32, 64),  # a slower one: fewer rows would be too many files
        (0.1, 999, 1, 2),  # but of few photographs, however slow
        (0.1, 999, 4, 4),  # at least a compiled graph's batch, which is padded
    ],
)
def test_rows_of_a_shard(rate: float, images: int, batch: int, rows: int) -> None:
    spec = BackboneSpec("x", "x", 4, 224, (0, 0, 0), (1, 1, 1), "none", "none", "w")
    compiled = CompiledBackbone(spec, AtOnce(lambda x: np.zeros((len(x), 4), np.float32)), {}, None, rate)
    assert shard_rows([compiled], 31, images, EmbedConfig(batch=batch)) == rows
    assert shard_rows([compiled], 31, images, EmbedConfig(batch=batch, shard_rows=16)) == 16


def test_a_shard_of_wide_rows_has_fewer_of_them() -> None:
    assert [rows_of_shards(10**6, row_bytes, 0.1) for row_bytes in (1e5, 1e6, 1e7)] == [1024, 128, 64]


@pytest.mark.slow
def test_a_disk_without_room_is_refused(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The size is printed before anything is embedded; a disk without room is refused, and nothing is lost."""
    store = tmp_path / "s.zarr"
    network = BackboneChoice("control:random:test_resnet", precision="fp32")
    embed(plan(two_classes, store, "identity,grayscale"), [PIXELS], quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "free_bytes", lambda path: 1000)
        with pytest.raises(ConfigError, match=r"0\.0 MB are free"):
            embed(plan(two_classes, store, "identity,grayscale"), [PIXELS, network], quiet=True)
    opened = EmbeddingStore.open(store)
    assert opened.stored_bytes(opened.backbone(network.name), ["identity"]) == 0
    assert len(load_table(opened, PIXELS.name).keys) == 40
    capsys.readouterr()
    embed(plan(two_classes, store, "identity,grayscale"), [PIXELS, network])
    found = load_table(EmbeddingStore.open(store), network.name)
    images = len(found.keys)
    assert f"{2 * images:,} × 96 by {network.name}" in capsys.readouterr().err
    again = embed(plan(two_classes, store, "identity,grayscale"), [PIXELS, network], quiet=True)
    assert again.new_shards == 0
