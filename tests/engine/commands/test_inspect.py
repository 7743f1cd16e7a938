"""`substyle info` on stores that are finished, in progress, empty and imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import jpeg, photograph
from tests.engine.embedding.test_run import PIXELS, folder, plan

from substyle.engine.cli import main
from substyle.engine.config import BackboneChoice
from substyle.engine.embedding.run import embed
from substyle.engine.store.layout import StoreSettings
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.transforms.registry import suite

STATISTICS = BackboneChoice("control:statistics")


def info(store: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """JSON and text output."""
    capsys.readouterr()
    assert main(["info", str(store), "--json"]) == 0
    out, shown = capsys.readouterr()
    answer: dict[str, Any] = json.loads(out)
    assert main(["info", str(store)]) == 0
    plain = capsys.readouterr()
    assert (plain.out, plain.err) == (shown, "")
    return answer, shown.splitlines()


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Interrupt runs after the given number of shards."""
    write, left = EmbeddingStore.write_shard, [after]

    def stop(self: EmbeddingStore, *arguments: Any, **more: Any) -> int:  # noqa: ANN401
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(self, *arguments, **more)

    monkeypatch.setattr(EmbeddingStore, "write_shard", stop)


def test_a_finished_store(tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store), [PIXELS, STATISTICS], quiet=True)
    answer, lines = info(store, capsys)
    splits = answer.pop("splits")
    assert sum(splits.values()) == 40
    assert list(splits) == ["train", "val", "test"]
    pixels, statistics = answer.pop("backbones")
    assert len(answer.pop("photographs")) == 16
    (source,) = answer.pop("sources")
    assert (source["name"], source["kind"], source["root"], source["images"]) == ("", "folder", str(two_classes), 40)
    expected = {"store": str(store), "uuid": EmbeddingStore.open(store).uuid, "damaged": False, "complete": True}
    expected |= {"bytes": sum(path.stat().st_size for path in store.rglob("c.*")), "shard_rows": 8, "seed": 0}
    expected |= {"canvas": 64, "dtype": "float16", "codec": "none", "orientation": "ignore", "crop_pct": 0.875}
    expected |= {"style_precision": "bf16", "transformations": list(suite("mini5")), "images": 40}
    expected |= {"classes": {"number": 2, "first": ["even", "odd"]}, "duplicates": 0, "moved": 0, "quarantined": 0}
    assert answer == expected
    facts = EmbeddingStore.open(store).backbone("control:pixels").facts
    expected = {"name": "control:pixels", "dim": 768, "precision": "fp32", "executed": None, "rounded": []}
    expected |= {"runtime": facts["runtime"]["name"], "device": facts["runtime"].get("device"), "complete": True}
    expected |= {"weights": facts["spec"]["weights"], "transformations": list(suite("mini5"))}
    expected |= {"bytes": 5 * (5 * (8 * 768 * 2 + 4) + 5 * 16 + 4), "embeddings": {"done": 200, "total": 200}}
    assert pixels == expected | {"shards": {"finished": 5, "total": 5}}
    assert (statistics["name"], statistics["complete"]) == ("control:statistics", True)
    assert f"source           {two_classes} (folder, 40 images)" in lines
    assert "classes          2: even, odd" in lines
    assert "    200 of 200 embeddings (100.0 %), 5 of 5 shards, 307.7 kB" in lines


def test_a_store_that_is_being_filled(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    embed(plan(two_classes, store, "identity,grayscale"), [PIXELS], quiet=True)
    with monkeypatch.context() as patch:
        interrupted(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            embed(plan(two_classes, store, "identity,grayscale,jpeg"), [PIXELS], quiet=True)
    with monkeypatch.context() as patch:
        interrupted(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            embed(plan(two_classes, store, "identity"), [STATISTICS], quiet=True)
    answer, lines = info(store, capsys)
    pixels, statistics = answer["backbones"]
    assert pixels["embeddings"] == {"done": 2 * 40 + 2 * 8, "total": 3 * 40}  # of the new one two shards
    assert pixels["shards"] == {"finished": 2, "total": 5}
    assert statistics["embeddings"] == {"done": 8, "total": 40}
    assert statistics["shards"] == {"finished": 1, "total": 5}
    assert (pixels["complete"], statistics["complete"], answer["complete"]) == (False, False, False)
    assert answer["bytes"] == sum(path.stat().st_size for path in store.rglob("c.*"))
    assert answer["transformations"] == ["identity", "grayscale", "jpeg"]
    assert "    96 of 120 embeddings (80.0 %), 2 of 5 shards, 147.7 kB" in lines
    assert any("8 of 40 embeddings (20.0 %), 1 of 5 shards" in line for line in lines)
    assert any(line.endswith("; 1 of the 3 transformations") for line in lines)


def test_quarantined_and_near_duplicates_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder(tmp_path / "images", 12)
    for i in range(12, 24):  # copies: some stand in another split than their first
        (images / f"{i:03d}.jpg").write_bytes(jpeg(photograph(i - 12)))
    (images / "broken.jpg").write_text("no")
    embed(plan(images, tmp_path / "s.zarr", "identity"), [PIXELS], quiet=True)
    answer, lines = info(tmp_path / "s.zarr", capsys)
    assert (answer["images"], answer["quarantined"]) == (25, 1)
    assert answer["duplicates"] == 12
    assert answer["moved"] > 0
    assert answer["classes"] == {"number": 0, "first": []}
    assert "images           25, 1 of them quarantined" in lines
    shown = " ".join(" ".join(lines).split())
    assert f"(12 near-duplicates of others, {answer['moved']} of them moved to another split)" in shown


def test_a_store_that_is_only_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = EmbeddingStore.create(tmp_path / "s.zarr", StoreSettings(7, 64, 8, "float32"))
    answer, lines = info(tmp_path / "s.zarr", capsys)
    assert (answer["images"], answer["bytes"], answer["backbones"], answer["complete"]) == (0, 0, [], False)
    assert (answer["sources"], answer["seed"], answer["dtype"]) == ([], 7, "float32")
    assert "backbones        0" in lines
    spec, runtime = {"weights": "w", "weights_hash": "h"}, {"name": "r", "precision": "fp32"}
    store.ensure_backbone({"name": "x", "dim": 4, "spec": spec, "runtime": runtime})
    (backbone,) = info(tmp_path / "s.zarr", capsys)[0]["backbones"]
    assert (backbone["embeddings"], backbone["complete"]) == ({"done": 0, "total": 0}, False)
