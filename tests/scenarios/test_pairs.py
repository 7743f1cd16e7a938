"""Real variants beside made ones: files that are missing, damaged, changed and found again."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.conftest import jpeg, photograph, setting
from tests.scenarios.scene import Scene, numbers, other_bytes, read, rows, write

from substyle.engine.embedding.variants import iter_variants
from substyle.engine.store.catalog import Definition
from substyle.engine.store.layout import TRAIN
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.transforms import base
from substyle.pipelines.variants import variants_of


def webp_of(scene: Scene, key: str) -> bytes:
    return scan(scene, scene.photos / key).read_bytes()


PIXELS = "control:pixels"
ROWS = """transformations = [
    "identity", "grayscale", "jpeg",
    { name = "minephone", of = "photographs", kind = "sensor" },
    { name = "minescan", of = "photographs", role = "held_out" },
]
"""
KINDS = ("--set", "source.kind=variants")


def webp(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=20)
    return file.getvalue()


@pytest.fixture
def pairs(empty: Scene) -> Scene:
    """18 photographs, all scanned as WebP, all but one taken by a phone, which damaged another."""
    scene = empty
    scene.photos = scene.root / "real" / "identity"
    scene.add_all()
    for path in sorted(scene.photos.rglob("*.jpg")):
        with Image.open(path) as picture:
            write(scan(scene, path), webp(picture))
            write(phone(scene, path), jpeg(picture.point(lambda level: 255 - level)))
    phone(scene, scene.one(at=0)).unlink()
    phone(scene, scene.one(at=1)).write_bytes(b"no photograph")
    write(scene.root / "pairs.toml", ROWS.encode())
    scene.study |= {"suite": "pairs.toml", "images": str(scene.root / "real"), "source": {"kind": "variants"}}
    return scene


def phone(scene: Scene, path: Path) -> Path:
    return scene.root / "real" / "minephone" / path.relative_to(scene.photos)


def scan(scene: Scene, path: Path) -> Path:
    return (scene.root / "real" / "minescan" / path.relative_to(scene.photos)).with_suffix(".webp")


def embedding(scene: Scene, *more: object, store: str = "s.zarr") -> list[object]:
    images = scene.root / "real"
    return scene.embedding(images, "--suite", scene.root / "pairs.toml", *KINDS, *more, store=store) + (
        [] if (scene.root / store).exists() else [*setting("canvas=64", "embed.shard_rows=8")]
    )


@pytest.mark.usefixtures("pages")
def test_a_study_scores_them_beside_made_ones(pairs: Scene) -> None:
    first = pairs.run(images=pairs.root / "real")
    assert {row["name"]: row["made_by"] for row in first["transformations"]}["minephone"] == "photographs"
    assert first["left_out"] == {"minephone": 2}
    assert "minephone" not in first["indistinct"]
    scores = first["backbones"][PIXELS]["transformation"]["linear"]["by_transformation"]
    assert {"minephone", "minescan", "jpeg"} <= set(scores)
    page = (pairs.root / "out" / "report.html").read_text()
    assert "no file of a real transformation" in page
    drawn = {path.name for path in (pairs.root / "out" / "gallery").rglob("*.png")}
    assert {"minescan.png", "jpeg.png", "identity.png"} <= drawn
    assert numbers(pairs.run(images=pairs.root / "real")) == numbers(first)
    report = pairs.ok("report", pairs.store, "--study", pairs.study_file())
    assert numbers(read(pairs.root / report["results"])) == numbers(first)


def _other(path: Path) -> None:
    before = path.stat()
    path.write_bytes(other_bytes(path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(("change", "of"), [(_other, phone), (Path.unlink, scan)], ids=["other", "delete"])
@pytest.mark.usefixtures("settled")
def test_a_changed_file_is_refused_by_name_until_asked_for(pairs: Scene, change: object, of: object) -> None:
    pairs.ok(*embedding(pairs))
    pairs.ok(*embedding(pairs))
    path = pairs.one("test/*/*.jpg")
    change(of(pairs, path))  # type: ignore[operator]
    for backbone in (PIXELS, "control:statistics"):
        words = [*embedding(pairs), "--backbone", backbone] if backbone != PIXELS else embedding(pairs)
        message = pairs.refused(*words, kind="PhotographsError", field="images")
        assert f"{'minephone' if of is phone else 'minescan'} of {pairs.key(path)}" in message
    pairs.ok(*embedding(pairs), "--replace")
    pairs.ok(*embedding(pairs, store="fresh.zarr"))
    assert rows(pairs.root / "s.zarr") == rows(pairs.root / "fresh.zarr")


def test_a_file_that_appears_is_embedded(pairs: Scene) -> None:
    gone = pairs.one(at=0)
    pairs.ok(*embedding(pairs))
    write(phone(pairs, gone), jpeg(photograph(77)))
    assert pairs.key(gone) not in pairs.ok(*embedding(pairs))["left_out"]["minephone"]
    pairs.ok(*embedding(pairs, store="fresh.zarr"))
    assert rows(pairs.root / "s.zarr") == rows(pairs.root / "fresh.zarr")


def test_a_file_that_changes_between_two_backbones_is_refused(pairs: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found while it is read, even if it was not when the photographs were compared."""
    pairs.ok(*embedding(pairs))
    _other(phone(pairs, pairs.one("test/*/*.jpg")))
    monkeypatch.setattr("substyle.engine.store.identity._changed", lambda *_, **__: [])
    words = [*embedding(pairs), "--backbone", "control:statistics"]
    assert "minephone of test/" in pairs.refused(*words, kind="PhotographsError", field="images")


def test_photographs_that_do_not_show_them_are_refused(pairs: Scene) -> None:
    write(pairs.root / "pairs.toml", ROWS.replace("minescan", "mineother").encode())
    message = pairs.refused(*embedding(pairs), kind="ConfigError", field="suite")
    assert "mineother" in message
    assert "of real ones minephone, minescan, which" in message
    asked = pairs.embedding(pairs.photos, "--suite", pairs.root / "pairs.toml", "--set", "canvas=64")
    assert "is of kind folder, not variants" in pairs.refused(*asked, kind="ConfigError", field="suite")
    assert not (pairs.root / "s.zarr").exists()
    pairs.study["suite"] = "pairs.toml"
    pairs.new_process()
    write(pairs.root / "pairs.toml", ROWS.encode())
    pairs.study["domains"] = {"other": str(pairs.photos)}
    pairs.refused(*pairs.asked(images=pairs.root / "real"), kind="ConfigError", field="domains.other")


def test_exports_have_no_row_of_a_variant_that_is_left_out(pairs: Scene) -> None:
    """Tables read the unchanged photograph in its place, which an export must not pass on as the variant."""
    gone, damaged = pairs.key(pairs.one(at=0)), pairs.key(pairs.one(at=1))
    pairs.ok(*embedding(pairs))
    table = load_table(EmbeddingStore.open(pairs.root / "s.zarr"), PIXELS)
    t, absent = table.transformations.index("minephone"), [table.keys.index(gone), table.keys.index(damaged)]
    assert set(table.present(t, np.arange(18)).tolist()) == set(range(18)) - set(absent)
    array = table.to_xarray()
    assert np.isnan(array[t, absent]).all()
    assert np.isfinite(np.delete(array[t].values, absent, axis=0)).all()
    frame = table.to_pandas()
    assert frame.isna().any(axis=1).sum() == 2
    assert set(frame[frame.isna().any(axis=1)].index.get_level_values("image")) == {gone, damaged}
    for kind in ("parquet", "numpy"):
        pairs.ok("export", pairs.root / "s.zarr", "--to", kind, "--out", pairs.root / kind)
    rows_of = [row for file in (pairs.root / "parquet").rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(rows_of) == 5 * 18 - 2
    assert {row["key"] for row in rows_of if row["transformation"] == "minephone"} == set(table.keys) - {gone, damaged}
    (file,) = (pairs.root / "numpy").rglob("minephone.npy")
    assert set(np.flatnonzero(np.isnan(np.load(file)).any(axis=1)).tolist()) == set(absent)


def test_finetuning_takes_computed_ones_alone(pairs: Scene) -> None:
    from substyle.engine.extensions.finetune.stage import _trained_on

    pairs.ok(*embedding(pairs))
    table = load_table(EmbeddingStore.open(pairs.root / "s.zarr"), PIXELS)
    assert _trained_on(table) == ("identity", "grayscale", "jpeg")
    assert TRAIN in table.split_N
    assert base.get("minephone").role == "train"
    assert (
        Definition(dataclasses.replace(base.get("minephone"), kind="other").describe()).declared
        == Definition(base.get("minephone").describe()).declared
    )


@pytest.mark.parametrize(
    "rows_of", ['"gray", { name = "gray", of = "photographs" }', '{ name = "jpeg", of = "photographs" }']
)
def test_a_made_name_is_not_taken_for_a_real_one(pairs: Scene, rows_of: str) -> None:
    write(pairs.root / "pairs.toml", f"transformations = [{rows_of}]".encode())
    pairs.refused(*embedding(pairs), kind="ConfigError", field="transformation")


def test_a_batch_without_a_variant_is_not_yielded(pairs: Scene) -> None:
    gone, where = pairs.key(pairs.one(at=0)), pairs.root / "real"
    given = {"canvas": 64, "suite": str(pairs.root / "pairs.toml"), "source": SourceConfig("variants"), "device": "cpu"}
    with pytest.warns(UserWarning, match=f"minephone of {gone} is left out: no file"):
        found = [(tuple(keys), name, len(pixels)) for keys, name, pixels in iter_variants(where, batch=1, **given)]  # type: ignore[arg-type]
    assert ((gone,), "minescan", 1) in found
    assert len(found) == 5 * 18 - 2


def test_a_gallery_of_one_photograph_leaves_them_out(pairs: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gallery", pairs.root / "g.png", "--image", pairs.one(), "--canvas", "64"]
    pairs.ok("transforms", "--suite", pairs.root / "pairs.toml", *words)
    assert (pairs.root / "g.png").is_file()
    blob, file = pairs.one().read_bytes(), webp_of(pairs, pairs.key(pairs.one()))
    made = variants_of(blob, ("identity", "minescan", "minephone"), side=64, real={"minescan": file, "minephone": b""})
    assert set(made) == {"identity", "minescan"}
