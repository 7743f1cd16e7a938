"""Real variants beside made ones: files that are missing, damaged, changed and found again."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.conftest import jpeg, photograph, setting
from tests.scenarios.scene import Scene, numbers, other_bytes, read, rows, same_file, write

from substyle.engine.cli import main
from substyle.engine.embedding.variants import iter_variants
from substyle.engine.store import journal
from substyle.engine.store.catalog import Definition
from substyle.engine.store.layout import TRAIN
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, open_table
from substyle.pipelines.decode import Decoder
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.storage import place
from substyle.pipelines.transforms import base
from substyle.pipelines.variants import variants_of

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


def test_files_show_what_a_store_says_of_them(pairs: Scene) -> None:
    gone, damaged = pairs.key(pairs.one(at=0)), pairs.key(pairs.one(at=1))
    answer = pairs.ok(*embedding(pairs))
    assert set(answer["left_out"]) == {"minephone"}
    assert answer["left_out"]["minephone"][gone] == "no file"
    assert set(answer["left_out"]["minephone"]) == {gone, damaged}
    assert answer["quarantined"] == {}
    store = EmbeddingStore.open(pairs.root / "s.zarr")
    table = load_table(store, PIXELS)
    t = {name: i for i, name in enumerate(table.transformations)}
    n = {key: i for i, key in enumerate(table.keys)}
    pairs.embed(same_file(pairs.root / "real" / "minescan", pairs.root / "scans"), store="scans.zarr")
    scans = {
        key.removesuffix(".webp"): row
        for (key, name), row in rows(pairs.root / "scans.zarr").items()
        if name == "identity"
    }
    mine = {
        key.removesuffix(".jpg"): row for (key, name), row in rows(pairs.root / "s.zarr").items() if name == "minescan"
    }
    assert mine == scans
    for key in (gone, damaged):  # left out of this transformation alone
        assert not table.distinct_TN[t["minephone"], n[key]]
        assert table.distinct_TN[[t["minescan"], t["jpeg"]], n[key]].all()
        row = int(store.manifest().row_N[list(store.manifest().keys).index(key)])
        entry = store.backbone(PIXELS)
        assert np.isnan(store.read(entry, "minephone", row, row + 1)).all()
        assert np.isfinite(store.read(entry, "minescan", row, row + 1)).all()
        assert np.array_equal(table.take(t["minephone"], np.array([n[key]])), table.take(0, np.array([n[key]])))
        # what is read as it is needed is the same
        assert np.array_equal(open_table(store, PIXELS).in_memory().x_TND, table.x_TND)
    assert table.distinct_TN[t["minephone"]].sum() == len(n) - 2
    assert {name: table.kind[i] for name, i in t.items() if "mine" in name} == {
        "minephone": "sensor",
        "minescan": "other",
    }
    assert pairs.ok(*embedding(pairs))["left_out"]["minephone"].keys() == {gone, damaged}  # nothing was to do
    assert pairs.ok("verify", pairs.root / "s.zarr")["ok"]


def webp_of(scene: Scene, key: str) -> bytes:
    return scan(scene, scene.photos / key).read_bytes()


def test_a_variant_of_the_same_pixels_is_not_distinct(pairs: Scene) -> None:
    """However little a real pair differs it counts, but not if it does not."""
    same, little = pairs.one(at=2), pairs.one(at=3)
    shutil.copy(same, phone(pairs, same))
    with Image.open(little) as picture:
        levels = np.asarray(picture.convert("RGB")).copy()
    levels[40:44, 40:44] ^= 8
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    phone(pairs, little).unlink()
    write(phone(pairs, little).with_suffix(".png"), file.getvalue())
    answer = pairs.ok(*embedding(pairs))
    assert pairs.key(same) not in answer["left_out"]["minephone"]
    table = load_table(EmbeddingStore.open(pairs.root / "s.zarr"), PIXELS)
    t = table.transformations.index("minephone")
    distinct = dict(zip(table.keys, table.distinct_TN[t].tolist(), strict=True))
    assert (distinct[pairs.key(same)], distinct[pairs.key(little)]) == (False, True)


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
    report = pairs.ok("report", pairs.root / "out" / "store.zarr", "--study", pairs.study_file())
    assert numbers(read(pairs.root / report["results"])) == numbers(first)


def _other(path: Path) -> None:
    before = path.stat()
    if path.suffix == ".webp":
        path.write_bytes(webp(photograph(905)))
    else:
        path.write_bytes(other_bytes(path))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [_other, _delete], ids=["other", "delete"])
@pytest.mark.parametrize("of", [phone, scan], ids=["phone", "scan"])
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


def test_a_made_transformation_does_not_extend_a_real_one(pairs: Scene) -> None:
    pairs.ok(*embedding(pairs))
    pairs.new_process()
    write(pairs.root / "pairs.toml", ROWS.replace('of = "photographs", kind', 'of = "jpeg", kind').encode())
    message = pairs.refused(*embedding(pairs), "--backbone", "control:statistics", kind="DifferentError")
    assert "minephone (another definition)" in message


@pytest.mark.parametrize(
    "rows_of", ['"gray", { name = "gray", of = "photographs" }', '{ name = "jpeg", of = "photographs" }']
)
def test_a_made_name_is_not_taken_for_a_real_one(pairs: Scene, rows_of: str) -> None:
    write(pairs.root / "pairs.toml", f"transformations = [{rows_of}]".encode())
    pairs.refused(*embedding(pairs), kind="ConfigError", field="transformation")


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


def test_corruptions_may_be_real(pairs: Scene) -> None:
    """The loss of class accuracy on real variants of the study's own test photographs."""
    phone(pairs, pairs.one("test/*/*.jpg")).unlink()
    pairs.study |= {"suite": "identity,grayscale,jpeg", "corruptions": "pairs.toml"}
    found = pairs.run(images=pairs.root / "real")
    shift = found["backbones"][PIXELS]["shift"]["pairs.toml"]
    assert shift["images"] == 6
    assert 0 <= shift["accuracy"]["value"] <= 1


def test_variants_are_written_without_those_that_are_left_out(pairs: Scene) -> None:
    out = pairs.root / "pictures"
    words = [
        "variants",
        pairs.root / "real",
        "--out",
        out,
        "--suite",
        pairs.root / "pairs.toml",
        "--set",
        "canvas=64",
        *KINDS,
    ]
    answer = pairs.ok(*words)
    assert answer["variants"] == 5 * 18 - 2
    assert f"minephone of {pairs.key(pairs.one(at=0))}" in answer["quarantined"]
    key = pairs.key(pairs.one(at=4))
    there = Decoder(64, 1, 1)([webp_of(pairs, key)]).canvas_BSSC[0].numpy()
    with Image.open(out / "minescan" / f"{key}.png") as picture:
        assert np.array_equal(np.asarray(picture), there)
    assert not (out / "minephone" / f"{pairs.key(pairs.one(at=0))}.png").exists()


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


def test_their_files_are_planned(pairs: Scene) -> None:
    pairs.study["backbones"] = ["control:pixels"]
    real = pairs.ok("plan", pairs.study_file(), "--images", pairs.root / "real", "--gpu", "h100")
    pairs.study["suite"] = "identity,grayscale,jpeg"
    made = pairs.ok("plan", pairs.study_file(), "--images", pairs.root / "real", "--gpu", "h100")
    decoded = [each["parts"][0]["busy"]["JPEG decoder"] for each in (real, made)]
    assert decoded[0] == pytest.approx(3 * decoded[1])


def test_a_store_without_files_says_nothing_of_them(scene: Scene) -> None:
    """Records of stores without real variants are those of earlier versions."""
    scene.embed(scene.photos)
    assert all("files" not in record.to_json() for record in journal.read(place(scene.root / "s.zarr")))


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


def test_real_variants_that_a_suite_does_not_name_are_told(pairs: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    words = pairs.embedding(pairs.root / "real", "--suite", "identity,jpeg", "--set", "canvas=64", *KINDS)
    assert main([*map(str, words), "--quiet"]) == 0
    assert "the suite has no minephone, minescan, which" in capsys.readouterr().err
    assert main([*map(str, embedding(pairs, store="all.zarr")), "--quiet"]) == 0
    out, said = capsys.readouterr()
    assert "the suite has no" not in said
    assert f"left out 2 of minephone: {pairs.key(pairs.one(at=0))} (no file), " in out


def test_files_of_a_bad_photograph_may_go(pairs: Scene) -> None:
    """It has no embeddings that a further backbone could take away."""
    bad = pairs.one(at=2)
    bad.write_bytes(b"no photograph")
    pairs.ok(*embedding(pairs))
    for path in (bad, scan(pairs, bad), phone(pairs, bad)):
        path.unlink()
    pairs.ok(*embedding(pairs, "--backbone", "control:statistics"))
    store = EmbeddingStore.open(pairs.root / "s.zarr")
    assert pairs.key(bad) not in load_table(store, "control:statistics").keys
    assert len(load_table(store, "control:statistics").keys) == 17


def test_results_of_other_files_are_of_other_data(pairs: Scene) -> None:
    """Of the same photographs: their digest is the same, that of what rows are compared by is not."""
    before = pairs.fresh(pairs.root / "real")["identity"]
    for path in sorted((pairs.root / "real" / "minescan").rglob("*.webp")):
        with Image.open(path) as picture:
            write(path, webp(picture.point(lambda level: level // 2)))
    after = pairs.fresh(pairs.root / "real")["identity"]
    assert after["photographs"] == before["photographs"]
    assert None not in (before["data"], after["data"])
    assert after["data"] != before["data"]
