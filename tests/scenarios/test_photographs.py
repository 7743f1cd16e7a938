"""Photographs and lists of them that change between two commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import jpeg, photograph, slow_after
from tests.scenarios.scene import SUITE, Scene, edit, numbers, rows, write

from substyle.engine.store import compaction
from substyle.engine.store.store import EmbeddingStore

# --- in place ---------------------------------------------------------------------------------------------------------


def _change(scene: Scene, what: str) -> None:
    path = scene.one("train/even/*.jpg")
    match what:
        case "edit":
            edit(scene)
        case "delete":
            path.unlink()
        case "rename":
            path.rename(path.with_name("renamed.jpg"))
        case "relabel":
            path.rename(scene.photos / "train" / "odd" / path.name)
        case "resplit":
            path.rename(scene.photos / "test" / "even" / path.name)
        case "swap":
            other = scene.one(at=-1)
            path.rename(scene.root / "between")
            other.rename(path)
            (scene.root / "between").rename(other)


@pytest.mark.parametrize("what", slow_after(3, ["edit", "delete", "rename", "relabel", "resplit", "swap"]))
def test_changed_photographs_are_refused_until_asked_for(scene: Scene, what: str) -> None:
    scene.run()
    scene.embed(scene.photos)
    _change(scene, what)
    scene.run_refused()
    for images in (scene.photos, None):
        for backbone in ("control:pixels", "control:statistics"):
            words = scene.embedding(images, backbone=backbone)
            scene.refused(*words, kind="PhotographsError", field="images")
    scene.embed(scene.photos, "--replace")
    assert rows(scene.root / "s.zarr") == rows(scene.fresh_store())


GONE = {
    "some, and a shard at the end": ("train/even/06.jpg", "train/odd/03.jpg", "val/odd/*"),
    "a class": ("*/even/*",),
    "a shard in the middle": ("train/even/0[46].jpg", "train/odd/*", "val/even/*"),
}


@pytest.mark.parametrize("gone", slow_after(1, list(GONE)))
@pytest.mark.parametrize("dies", [False, True])
def test_missing_photographs_are_removed(scene: Scene, gone: str, dies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all backbones, without embedding anything again, and also if it was interrupted."""
    store = scene.root / "s.zarr"
    scene.embed(scene.photos)
    scene.embed(scene.photos, backbone="control:statistics")
    before, paths = rows(store), [path for pattern in GONE[gone] for path in sorted(scene.photos.glob(pattern))]
    removed = {scene.key(path): path.read_bytes() for path in paths}
    left = {row: value for row, value in before.items() if row[0] not in removed}
    for path in paths:
        path.unlink()
    scene.refused(*scene.embedding(scene.photos), kind="PhotographsError", field="images")
    if dies:
        with monkeypatch.context() as patch:
            patch.setattr(compaction, "exchange", interrupted)
            assert scene.command(*scene.embedding(scene.photos, "--remove-missing"))[0] == 130
        assert rows(store) == left
    assert scene.embed(scene.photos, "--remove-missing")["new_shards"] == 0
    assert rows(store) == left
    verdict = scene.ok("verify", store)
    assert (verdict["ok"], verdict["complete"], verdict["findings"]) == (True, True, [])
    assert not removed.keys() & set(EmbeddingStore.open(store).calibration)
    kept = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert not any(value in kept for (key, _), (*_, value) in before.items() if key in removed)
    assert not any(key in str(tables_of(store)) for key in removed)
    scene.embed(scene.photos, "--suite", f"{SUITE},gaussian_noise")  # in shards of which photographs are left
    for key, data in removed.items():
        write(scene.photos / key, data)
    scene.embed(scene.photos)
    again, fresh = rows(store), rows(scene.fresh_store())
    assert {row: value for row, value in again.items() if row in fresh} == fresh
    assert len(again) == len(fresh) // 3 * 4
    assert scene.ok("verify", store)["ok"]


def test_photographs_that_could_not_be_listed_are_not_removed(scene: Scene) -> None:
    scene.embed(scene.photos)
    path = scene.one()
    path.unlink()
    path.symlink_to(scene.root / "nothing")
    message = scene.refused(*scene.embedding(scene.photos, "--remove-missing"), kind="PhotographsError", field="images")
    assert "1 files are left out" in message


def test_a_damaged_shard_is_not_written_again_as_if_it_were_sound(scene: Scene) -> None:
    scene.embed(scene.photos)
    (shard,) = (scene.root / "s.zarr").glob("embeddings/*/*/c.0.1.0")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    scene.one("train/odd/*.jpg").unlink()
    message = scene.refused(*scene.embedding(scene.photos, "--remove-missing"), kind="StoreError")
    assert "checksum mismatch" in message


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def tables_of(store: Path) -> list[object]:
    """What Parquet files of a store say, with values of dictionaries that no row uses."""
    found = []
    for path in store.rglob("*.parquet"):
        for column in pq.read_table(path, read_dictionary=["key"]).columns:
            found += [chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk for chunk in column.chunks]
    return [chunk.to_pylist() for chunk in found]


def test_photographs_are_added(scene: Scene) -> None:
    scene.run()
    scene.add(40, "train")
    scene.add(41, "test")
    results = scene.run()
    fresh = scene.fresh_store()
    assert results["images"] == 20
    assert rows(scene.store) == rows(fresh)
    shown = numbers(scene.run("other", None, "--store", scene.store))
    assert shown["backbones"] == numbers(results)["backbones"]


def test_a_class_folder_is_renamed(scene: Scene) -> None:
    scene.run()
    for split in ("train", "val", "test"):
        (scene.photos / split / "odd").rename(scene.photos / split / "uneven")
    scene.run_refused()


# --- elsewhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", slow_after(1, [shutil.move, shutil.copytree]))
def test_photographs_are_moved_or_copied(scene: Scene, move: Callable[[Path, Path], object]) -> None:
    before = numbers(scene.run())
    scene.embed(scene.photos)
    there = scene.root / "elsewhere"
    move(scene.photos, there)
    if move is shutil.move:  # without photographs a store can be read, and not filled
        scene.refused(*scene.embedding(None), kind="ConfigError", field="IMAGES")
        assert scene.ok("stage", "analysis,similarity", scene.root / "s.zarr")["backbones"]
    after = scene.run(images=there)
    assert numbers(after) == before
    assert scene.embed(there)["new_shards"] == 0
    assert scene.embed(there, backbone="control:statistics")["new_shards"] > 0
    assert rows(scene.root / "s.zarr") == rows(scene.store)


def test_two_folders_with_the_same_keys(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(scene.photos)
    before = rows(scene.root / "s.zarr")
    for backbone in ("control:pixels", "control:statistics"):
        words = scene.embedding(other, backbone=backbone)
        scene.refused(*words, kind="PhotographsError", field="images")
    scene.run_refused(images=other, more=("--store", scene.root / "s.zarr"))
    assert [row["name"] for row in scene.ok("info", scene.root / "s.zarr")["backbones"]] == ["control:pixels"]
    assert rows(scene.root / "s.zarr") == before
    mine = scene.run()
    scene.run_refused(images=other)
    assert numbers(scene.run()) == numbers(mine)
    theirs = scene.run("out", other, "--fresh")
    assert numbers(theirs) == numbers(scene.fresh(other))
    assert numbers(theirs) != numbers(mine)


def test_a_store_or_results_among_the_photographs_are_no_photographs(scene: Scene) -> None:
    for _ in range(2):
        results = scene.run(scene.photos / "results")
        assert results["images"] == 18
        assert scene.embed(scene.photos, store="photos/s.zarr")["images"] == 18
    assert list((scene.photos / "results").rglob("*.png"))


# --- number and splits ------------------------------------------------------------------------------------------------


def test_limit(scene: Scene) -> None:
    scene.study["limit"] = 12
    first = scene.run()
    assert first["images"] == 12
    scene.study["limit"] = 10
    scene.run_refused(field="limit")
    scene.study["limit"] = 15
    assert scene.run()["images"] == 15
    assert rows(scene.store) == rows(scene.fresh_store())
    scene.run_refused(field="limit", more=("--set", "limit=12"))
    scene.embed(scene.photos, store="out/store.zarr")
    scene.run_refused(field="limit")


def _flat(scene: Scene) -> Path:
    for path in sorted(scene.photos.rglob("*.jpg")):
        write(scene.root / "flat" / path.parent.name / path.name, path.read_bytes())
    return scene.root / "flat"


def test_shares_of_splits(scene: Scene) -> None:
    flat = _flat(scene)
    scene.study["splits"] = {"train": 0.5, "val": 0.2, "test": 0.3}
    scene.run(images=flat)
    before = rows(scene.store)
    scene.study["splits"] = {"train": 0.4, "val": 0.2, "test": 0.4}
    scene.run_refused(field="splits", images=flat)
    write(flat / "even" / "40.jpg", jpeg(photograph(40)))
    scene.embed(flat, store="out/store.zarr")
    assert rows(scene.store).items() > before.items()


def test_a_folder_beside_train_asks(scene: Scene) -> None:
    shutil.move(scene.photos / "val", scene.photos / "other")
    scene.refused(*scene.embedding(scene.photos), kind="ConfigError", field="source.splits")
    assert not (scene.root / "s.zarr").exists()
    assert scene.embed(scene.photos, "--set", "source.splits=folders")["images"] == 14
    assert scene.embed(scene.photos)["images"] == 14  # the store knows
    scene.refused(*scene.asked(), kind="ConfigError", field="source.splits")


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_class_names_from_a_file(scene: Scene) -> None:
    """Readable names are class names: changing them changes labels."""
    for split in ("train", "val", "test"):
        for number, name in enumerate(("even", "odd")):
            (scene.photos / split / name).rename(scene.photos / split / str(number))
    names = scene.root / "names.txt"
    names.write_text("two-ish\none-ish\n")
    words = ("--set", f"source.names={names}")
    assert scene.run("out", None, *words)["classes"] == ["two-ish", "one-ish"]
    names.write_text("one-ish\ntwo-ish\n")
    scene.run_refused(more=words)
    assert numbers(scene.run("out", None, *words, "--fresh")) == numbers(scene.fresh(None, *words))


def test_a_photograph_that_cannot_be_decoded_is_mended(scene: Scene) -> None:
    good = scene.one().read_bytes()
    scene.one().write_bytes(b"no photograph")
    broken = scene.run()
    assert [row["key"] for row in broken["quarantined"]] == [scene.one().relative_to(scene.photos).as_posix()]
    scene.one().write_bytes(good)
    scene.run_refused()
    scene.embed(scene.photos, "--replace", store="out/store.zarr")
    assert numbers(scene.run()) == numbers(scene.fresh())


# --- lists and several sources ----------------------------------------------------------------------------------------


# --- lists ------------------------------------------------------------------------------------------------------------


class List:
    def __init__(self, scene: Scene) -> None:
        self.path = scene.root / "photos.csv"
        self.rows = {
            path.relative_to(scene.root).as_posix(): [path.parent.name, path.parent.parent.name]
            for path in sorted(scene.photos.rglob("*.jpg"))
        }
        self.save()

    def save(self) -> None:
        lines = [f"{path},{label},{split}\n" for path, (label, split) in self.rows.items()]
        self.path.write_text("path,label,split\n" + "".join(lines))

    @property
    def first(self) -> str:
        return next(path for path in self.rows if "/train/" in path)


@pytest.mark.parametrize("row", slow_after(2, [["odd", "train"], ["even", "test"], ["", "train"], None]))
def test_a_list_is_edited(scene: Scene, row: list[str] | None) -> None:
    table = List(scene)
    scene.run(images=table.path)
    scene.embed(table.path)
    first = table.first
    assert table.rows[first] == ["even", "train"]
    if row:
        table.rows[first] = row
    else:
        del table.rows[first]
    table.save()
    scene.run_refused(images=table.path)
    scene.refused(*scene.embedding(None), kind="PhotographsError", field="images")


def test_a_file_that_could_not_be_read_at_first(scene: Scene) -> None:
    table = List(scene)
    data = (scene.root / table.first).read_bytes()
    (scene.root / table.first).unlink()
    before = scene.run(images=table.path)
    assert [row["key"] for row in before["quarantined"]] == [table.first]
    write(scene.root / table.first, data)
    code, answer = scene.command(*scene.asked(images=table.path))
    if code:
        assert answer["error"]["type"] == "PhotographsError"
        scene.embed(table.path, "--replace", store="out/store.zarr")
        scene.run(images=table.path)
    shown = numbers(scene.run(images=table.path))
    assert shown == numbers(scene.fresh(table.path))


# --- several sources --------------------------------------------------------------------------------------------------


def test_a_source_is_added(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(scene.photos)
    own = rows(scene.root / "s.zarr")
    added = scene.embed(other, "--add")
    assert added["new_shards"] > 0
    assert scene.embed(other, "--add")["new_shards"] == 0
    assert scene.embed(None, backbone="control:statistics")["images"] == 36
    info = scene.ok("info", scene.root / "s.zarr")
    assert (info["images"], info["complete"]) == (36, True)
    assert (info["classes"]["number"], [source["images"] for source in info["sources"]]) == (2, [18, 18])
    both = rows(scene.root / "s.zarr")
    assert {key: both[key] for key in own} == own
    alone = rows(scene.fresh_store(other))
    there = {(key.removeprefix("other/"), name): row for (key, name), row in both.items() if (key, name) not in own}
    assert there.keys() == alone.keys()
    for (key, name), row in alone.items():
        if name != "jpeg":  # its quality is drawn by key
            assert there[key, name] == row
    scene.run_refused(more=("--store", scene.root / "s.zarr"))
