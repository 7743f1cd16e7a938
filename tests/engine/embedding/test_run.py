from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.at_once import AtOnce
from tests.conftest import jpeg, photograph, shards_of

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.gate import ANCHORS, GATE_EACH, SPOT_PICTURES
from substyle.engine.backbones.spec import BackboneSpec
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.embedding import loop, prepare, run
from substyle.engine.embedding.blobs import Blob
from substyle.engine.embedding.loop import EmbedTask
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline, shard_rows
from substyle.engine.embedding.run import embed
from substyle.engine.store import identity, lock
from substyle.engine.store.layout import DifferentError, LockedError, StoreError, rows_of_shards
from substyle.engine.store.records import UNREAD
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, store_facts
from substyle.errors import ConfigError, MissingError
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


def test_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(plan(two_classes, tmp_path / "whole.zarr"), [PIXELS], quiet=True)
    store = tmp_path / "cut.zarr"
    write = EmbeddingStore.write_shard
    calls = []

    def stop(self: EmbeddingStore, *arguments: object, **more: object) -> int:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return write(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingStore, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        embed(plan(two_classes, store), [PIXELS], quiet=True)
    monkeypatch.undo()
    assert len(EmbeddingStore.open(store).finished()) == 2
    assert len(load_table(EmbeddingStore.open(store), "control:pixels").keys) == 16
    summary = embed(plan(two_classes, store), [PIXELS], quiet=True)
    assert summary.new_shards == 3
    assert shards_of(store) == shards_of(tmp_path / "whole.zarr")


def test_second_run_has_nothing_to_do(tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store), [PIXELS], quiet=True)
    before = shards_of(store)

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("prepared a backbone for nothing")

    monkeypatch.setattr("substyle.engine.embedding.run.prepare_backbones", refuse)
    summary = embed(plan(two_classes, store), [PIXELS], quiet=True)
    assert (summary.images, summary.new_shards) == (40, 0)
    assert shards_of(store) == before


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
def test_unchanged_photographs_alone_pass_the_gate(tmp_path: Path, two_classes: Path) -> None:
    """Cosines are relative to the mean of the transformations that fail first, which are compared with every suite."""
    request = plan(two_classes, tmp_path / "s.zarr", "identity")
    embed(request, [BackboneChoice("control:random:test_vit", precision="fp32")], quiet=True)
    (entry,) = EmbeddingStore.open(tmp_path / "s.zarr").backbones()
    assert entry.facts["gate"]["rows"] == GATE_EACH * len(ANCHORS)


@pytest.mark.slow
def test_a_driver_of_workers_keeps_nothing_on_its_device(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = plan(two_classes, tmp_path / "s.zarr")
    network = BackboneChoice("control:random:test_vit", precision="fp32")

    def work(task: EmbedTask) -> None:
        assert "decoder" not in vars(request.pipeline)
        assert request.pipeline._maker.cache_info().currsize == 0
        assert request.pipeline._network.cache_info().currsize == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_workers", lambda plan, backbones: nullcontext(work))
    with pytest.raises(KeyboardInterrupt):
        embed(request, [network], quiet=True)
    monkeypatch.undo()
    assert embed(request, [network], quiet=True).new_shards == 5  # created again when needed


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


@pytest.mark.slow
def test_a_layer_of_a_pass_is_not_continued_alone(tmp_path: Path, two_classes: Path) -> None:
    network, store = "control:random:test_vit", tmp_path / "s.zarr"
    embed(plan(two_classes, store), [BackboneChoice(f"{network}@layer=0..1")], quiet=True)
    for other in (f"{network}@layer=1", f"{network}@layer=1:2"):
        with pytest.raises(DifferentError) as caught:
            embed(plan(two_classes, store), [BackboneChoice(other)], quiet=True)
        assert f"computed_with {network}@layer=0..1 in the store, {other} now" in str(caught.value)


def test_new_images_take_new_shards(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", 11)
    store = tmp_path / "s.zarr"
    embed(plan(images, store), [PIXELS], quiet=True)
    before = shards_of(store)
    folder(images, 3, start=50)
    summary = embed(plan(images, store), [PIXELS], quiet=True)
    assert (summary.images, summary.new_shards) == (14, 1)
    assert before.items() <= shards_of(store).items()
    table = load_table(EmbeddingStore.open(store), "control:pixels")
    assert table.keys[-3:] == ("050.jpg", "051.jpg", "052.jpg")
    # what an image gives does not depend on when it came
    alone = folder(tmp_path / "alone", 1, start=51)
    embed(plan(alone, tmp_path / "alone.zarr"), [PIXELS], quiet=True)
    lone = load_table(EmbeddingStore.open(tmp_path / "alone.zarr"), "control:pixels")
    np.testing.assert_array_equal(lone.x_TND[:, 0], table.x_TND[:, table.keys.index("051.jpg")])


def test_bad_images_are_quarantined_and_the_run_goes_on(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", 9)
    (images / "003.jpg").write_bytes(jpeg(photograph(3))[:400])
    (images / "text.jpg").write_text("not an image")
    (images / "empty.png").write_bytes(b"")
    store = tmp_path / "s.zarr"
    summary = embed(plan(images, store), [PIXELS], quiet=True)
    assert set(summary.quarantined) == {"003.jpg", "text.jpg", "empty.png"}
    opened = EmbeddingStore.open(store)
    table = load_table(opened, "control:pixels")
    assert len(table.keys) == 8
    assert not set(table.keys) & set(summary.quarantined)
    assert store_facts(opened).quarantined == summary.quarantined
    row = opened.manifest().keys.index("003.jpg")
    assert np.isnan(opened.read(opened.backbone("control:pixels"), "jpeg")[row]).all()


def test_equal_photographs_of_different_classes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/copy.jpg", "b/3.jpg"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(jpeg(photograph(1 if name in ("a/1.jpg", "a/2.jpg", "b/copy.jpg") else 3)))
    embed(plan(tmp_path / "p", tmp_path / "s.zarr"), [BackboneChoice("control:pixels")])
    assert "s.zarr: equal photographs in different classes: a/1.jpg and b/copy.jpg\n" in capsys.readouterr().err
    assert store_facts(EmbeddingStore.open(tmp_path / "s.zarr")).conflicting == (("a/1.jpg", "b/copy.jpg"),)


def test_an_image_that_vanishes_is_quarantined(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", 4)
    made = plan(images, tmp_path / "s.zarr")
    (images / "002.jpg").unlink()
    assert "cannot be read" in embed(made, [PIXELS], quiet=True).quarantined["002.jpg"]


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


@pytest.mark.parametrize("again", [False, True])
def test_a_photograph_that_cannot_be_read_has_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Neither is it embedded again, which would leave it out."""
    images, store = folder(tmp_path / "images", 12), tmp_path / "s.zarr"
    embed(plan(images, store, "identity,grayscale"), [PIXELS], quiet=True)
    os.utime(images / "009.jpg", (1, 1))
    content = identity._content
    monkeypatch.setattr(identity, "_content", lambda each: "" if each.key == "009.jpg" else content(each))
    request = replace(plan(images, store, "identity,grayscale"), replace=again)
    with pytest.raises(StoreError, match=r"1 photograph \(009\.jpg\): cannot be read"):
        embed(request, [PIXELS, BackboneChoice("control:statistics")], quiet=True)
    monkeypatch.undo()
    assert embed(request, [PIXELS], quiet=True).new_shards == 0


def test_a_photograph_that_one_pass_of_two_has_read_is_embedded_again(tmp_path: Path) -> None:
    """It becomes readable between the start of the second pass and its batch."""
    images, store = folder(tmp_path / "images", 12), tmp_path / "s.zarr"
    statistics = BackboneChoice("control:statistics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "read", unreadable({"009.jpg"}))
        embed(plan(images, store, "identity,grayscale"), [PIXELS], quiet=True)
        patch.undo()
        content = identity._content
        patch.setattr(identity, "_content", lambda each: "" if each.key == "009.jpg" else content(each))
        embed(plan(images, store, "identity,grayscale"), [statistics], quiet=True)
    assert set(store_facts(EmbeddingStore.open(store)).quarantined) == {"009.jpg"}
    embed(plan(images, store, "identity,grayscale"), [PIXELS, statistics], quiet=True)
    for name in (PIXELS.name, statistics.name):
        assert len(load_table(EmbeddingStore.open(store), name).keys) == 12


@pytest.mark.parametrize("index", [1, 2])
def test_a_part_embeds_photographs_again_that_are_its_own(tmp_path: Path, index: int) -> None:
    """One of each shard becomes readable: the other part may be embedding its own."""
    images, store = folder(tmp_path / "images", 16), tmp_path / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "read", unreadable(unread := {"003.jpg", "012.jpg"}))
        found = embed(plan(images, store, "identity,grayscale"), [PIXELS], quiet=True)
    assert set(found.quarantined) == unread
    again = replace(plan(images, store, "identity,grayscale"), part=lock.Part(index, 2))
    embed(again, [PIXELS], quiet=True)
    opened = EmbeddingStore.open(store)
    row_of = dict(zip(opened.manifest().keys, opened.manifest().row_N.tolist(), strict=True))
    left = {key for key in unread if row_of[key] // 8 % 2 != index - 1}
    assert set(store_facts(opened).quarantined) == left
    assert opened.finished().finished(opened.backbone(PIXELS.name).slug, ["identity", "grayscale"], 2).all()


def test_indistinct_variants_are_noted(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        (images / f"{i}.png").write_bytes(jpeg(photograph(i).convert("L")))
    embed(plan(images, tmp_path / "s.zarr"), [PIXELS], quiet=True)
    opened = EmbeddingStore.open(tmp_path / "s.zarr")
    assert store_facts(opened).indistinct["grayscale"] == 4
    table = load_table(opened, "control:pixels")
    assert not table.distinct_TN[table.transformations.index("grayscale")].any()
    assert table.distinct_TN[0].all()


def test_another_seed_canvas_or_type_is_refused(tmp_path: Path, two_classes: Path) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store, limit=4), [PIXELS], quiet=True)
    for settings, config, field, named in (
        (Settings(1, 64, suite("mini5")), CONFIG, "seed", "seed 0 .*1 now"),
        (Settings(0, 96, suite("mini5")), CONFIG, "canvas", "canvas 64 .*96 now"),
        (Settings(0, 64, suite("mini5")), EmbedConfig(dtype="float32"), "dtype", "dtype float16 .*float32 now"),
        (
            Settings(0, 64, suite("mini5"), style_precision="fp32"),
            CONFIG,
            "style_precision",
            "style_precision bf16 .*fp32 now",
        ),
    ):
        other = EmbedPlan(FolderSource(two_classes), place(store), PixelPipeline(settings, config), 4)
        with pytest.raises(StoreError, match=named) as caught:
            embed(other, [PIXELS], quiet=True)
        assert caught.value.field == field


def test_limit_takes_the_same_images_each_time(tmp_path: Path, two_classes: Path) -> None:
    small = {record.key for record in plan(two_classes, tmp_path / "a", limit=6).records()}
    large = {record.key for record in plan(two_classes, tmp_path / "a", limit=12).records()}
    assert len(small) == 6
    assert small < large
    assert {key.split("/")[0] for key in large} == {"even", "odd"}


@pytest.mark.parametrize("limit", [12, 20, 33, 48])
def test_a_limit_leaves_no_class_to_be_tested_and_not_learned(tmp_path: Path, limit: int) -> None:
    counts = {"train": 8, "val": 2, "test": 4}
    for split, count in counts.items():
        for kind in "abcd":
            (tmp_path / "images" / split / kind).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "images" / split / kind / f"{i}.jpg").write_bytes(b"never opened")
    records = plan(tmp_path / "images", tmp_path / "s.zarr", limit=limit).records()
    kinds = {split: {record.label for record in records if record.split == split} for split in counts}
    assert len(records) == limit
    assert kinds["test"] <= kinds["train"]
    for split, count in counts.items():
        assert abs(sum(record.split == split for record in records) - limit * count / 14) <= 1


def test_classes_that_a_limit_leaves_out_get_no_label(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for i in range(12):
        (root / f"class{i:02d}").mkdir(parents=True)
        (root / f"class{i:02d}" / "a.jpg").write_bytes(jpeg(photograph(i)))
    for limit in (3, 7):  # the second time the store grows by images of new classes
        embed(plan(root, tmp_path / "s.zarr", limit=limit), [PIXELS], quiet=True)
        table = load_table(EmbeddingStore.open(tmp_path / "s.zarr"), "control:pixels")
        assert len(table.class_names) == limit
        named = [table.class_names[label] for label in table.label_N.tolist()]
        assert named == [key.split("/")[0] for key in table.keys]


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_decoded(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    choice = BackboneChoice("timm:resnet10t", checkpoint=tmp_path / "x.pt")
    monkeypatch.setattr(prepare, "compile_source", lambda *_, **__: pytest.fail("photographs are decoded"))
    with pytest.raises(WeightsError, match=r"x\.pt does not fit"):
        embed(plan(two_classes, tmp_path / "s.zarr"), [choice], quiet=True)


def test_bad_requests(tmp_path: Path, two_classes: Path) -> None:
    made = plan(two_classes, tmp_path / "s.zarr")
    with pytest.raises(MissingError) as missing:
        embed(made, [])
    assert missing.value.field == "backbones"
    with pytest.raises(ConfigError) as caught:
        embed(made, [PIXELS, PIXELS], quiet=True)
    assert (caught.value.field, caught.value.given) == ("backbone", PIXELS.name)
    assert not (tmp_path / "s.zarr").exists()


def test_a_held_store_is_refused(tmp_path: Path, two_classes: Path) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store, limit=4), [PIXELS], quiet=True)
    with lock.hold(store, "other"), pytest.raises(LockedError, match="run other"):
        embed(plan(two_classes, store, limit=8), [PIXELS], quiet=True)


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
