"""Photographs that change between two commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import jpeg, photograph
from tests.scenarios.scene import Scene, numbers, other_bytes, rows, same_file, write

# --- in place ---------------------------------------------------------------------------------------------------------


def _edit(scene: Scene) -> None:
    path = scene.one()
    before = path.stat()
    data = other_bytes(path)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def _replace(scene: Scene) -> None:
    other = write(scene.root / "other.jpg", jpeg(photograph(901)))
    os.replace(other, scene.one())


def _delete(scene: Scene) -> None:
    scene.one().unlink()


def _rename(scene: Scene) -> None:
    path = scene.one()
    path.rename(path.with_name("renamed.jpg"))


def _relabel(scene: Scene) -> None:
    path = scene.one("train/even/*.jpg")
    path.rename(scene.photos / "train" / "odd" / path.name)


def _resplit(scene: Scene) -> None:
    path = scene.one("train/even/*.jpg")
    path.rename(scene.photos / "test" / "even" / path.name)


def _swap(scene: Scene) -> None:
    first, second = scene.one(), scene.one(at=-1)
    first.rename(scene.root / "between")
    second.rename(first)
    (scene.root / "between").rename(second)


def _break(scene: Scene) -> None:
    scene.one().write_bytes(b"no photograph")


CHANGES = pytest.mark.parametrize(
    "change", [_edit, _replace, _delete, _rename, _relabel, _resplit, _swap, _break], ids=lambda f: f.__name__[1:]
)


@CHANGES
def test_changed_photographs_are_refused_until_asked_for(scene: Scene, change: Callable[[Scene], None]) -> None:
    """`run` fails, --fresh starts over; `embed` fails, --replace re-embeds what changed."""
    scene.run()
    scene.embed(scene.photos)
    change(scene)
    scene.run_refused()
    for images in (scene.photos, None):
        for backbone in ("control:pixels", "control:statistics"):
            words = scene.embedding(images, backbone=backbone)
            scene.refused(*words, kind="PhotographsError", field="images")
    fresh = scene.run("fresh")
    scene.embed(scene.photos, "--replace")
    assert rows(scene.root / "s.zarr") == rows(scene.root / "fresh" / "store.zarr")
    assert numbers(scene.run("out", None, "--fresh")) == numbers(fresh)


@pytest.mark.parametrize("change", [_edit, _replace, _swap], ids=lambda f: f.__name__[1:])
@pytest.mark.usefixtures("settled")
def test_changed_photographs_are_found_by_their_marks(scene: Scene, change: Callable[[Scene], None]) -> None:
    scene.embed(scene.photos)
    scene.embed(scene.photos)
    change(scene)
    scene.refused(*scene.embedding(scene.photos), kind="PhotographsError", field="images")


def test_photographs_are_added(scene: Scene) -> None:
    scene.run()
    scene.add(40, "train")
    scene.add(41, "test")
    results = scene.run()
    fresh = scene.fresh_store()
    assert results["images"] == 20
    assert rows(scene.root / "out" / "store.zarr") == rows(fresh)
    shown = numbers(scene.run("other", None, "--store", scene.root / "out" / "store.zarr"))
    assert shown["backbones"] == numbers(results)["backbones"]


def test_photographs_of_another_folder_are_copied_in(scene: Scene) -> None:
    """Existing embeddings are kept, new photographs are embedded."""
    scene.run()
    for number in range(60, 64):
        scene.add(number, "train", scene.root / "more")
    shutil.copytree(scene.root / "more", scene.photos, dirs_exist_ok=True)
    assert scene.run()["images"] == 22
    assert rows(scene.root / "out" / "store.zarr") == rows(scene.fresh_store())


def test_a_class_is_added(scene: Scene) -> None:
    scene.run()
    for split in ("train", "train", "val", "test"):
        write(scene.photos / split / "aaa" / f"{len(list(scene.photos.rglob('*.jpg')))}.jpg", jpeg(photograph(70)))
    results = scene.run()
    assert sorted(results["classes"]) == ["aaa", "even", "odd"]
    assert rows(scene.root / "out" / "store.zarr") == rows(scene.fresh_store())


def test_a_class_folder_is_renamed(scene: Scene) -> None:
    scene.run()
    for split in ("train", "val", "test"):
        (scene.photos / split / "odd").rename(scene.photos / split / "uneven")
    scene.run_refused()


def test_a_photograph_that_cannot_be_decoded_is_mended(scene: Scene) -> None:
    good = scene.one().read_bytes()
    scene.one().write_bytes(b"no photograph")
    broken = scene.run()
    assert [row["key"] for row in broken["quarantined"]] == [scene.one().relative_to(scene.photos).as_posix()]
    scene.one().write_bytes(good)
    scene.run_refused()
    scene.embed(scene.photos, "--replace", store="out/store.zarr")
    assert numbers(scene.run()) == numbers(scene.fresh())


def test_a_photograph_that_cannot_be_decoded_is_deleted(scene: Scene) -> None:
    write(scene.photos / "train" / "even" / "broken.jpg", b"no photograph")
    scene.run()
    (scene.photos / "train" / "even" / "broken.jpg").unlink()
    again, fresh = numbers(scene.run()), numbers(scene.fresh())
    again.pop("quarantined"), fresh.pop("quarantined")  # it says what the store has left out
    assert again == fresh


# --- elsewhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_photographs_are_moved_or_copied(scene: Scene, move: Callable[[Path, Path], object]) -> None:
    before = numbers(scene.run())
    scene.embed(scene.photos)
    there = scene.root / "elsewhere"
    move(scene.photos, there)
    after = scene.run(images=there)
    assert numbers(after) == before
    assert scene.embed(there)["new_shards"] == 0
    assert scene.embed(there, backbone="control:statistics")["new_shards"] > 0
    assert rows(scene.root / "s.zarr") == rows(scene.root / "out" / "store.zarr")


def test_photographs_that_are_gone(scene: Scene) -> None:
    """Without photographs a store can be read but not filled."""
    scene.embed(scene.photos)
    shutil.rmtree(scene.photos)
    scene.refused(*scene.embedding(None), kind="ConfigError", field="IMAGES")
    assert scene.ok("analyze", scene.root / "s.zarr")["backbones"]


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


def test_run_on_other_photographs(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    mine = scene.run()
    scene.run_refused(images=other)
    assert numbers(scene.run()) == numbers(mine)
    theirs = scene.run("out", other, "--fresh")
    assert numbers(theirs) == numbers(scene.fresh(other))
    assert numbers(theirs) != numbers(mine)


def test_run_on_a_part_of_the_photographs(scene: Scene) -> None:
    """A folder with fewer photographs is not the same input."""
    part = same_file(scene.photos, scene.root / "part")
    scene.run()
    scene.one(folder=part).unlink()
    scene.run_refused(images=part)


def test_the_default_folder_is_that_of_the_photographs(scene: Scene) -> None:
    """Folders of the same name elsewhere, and of another name here."""
    words = ["--backbone", "control:pixels", "--suite", "identity,grayscale", "--canvas", "64"]
    other = scene.add_all(scene.root / "else" / "photos", seed=100)
    third = scene.add_all(scene.root / "third", seed=200)
    scene.embed(scene.photos, store="runs/photos/store.zarr")
    scene.embed(third, store="runs/third/store.zarr")
    for images in (scene.photos, third):
        path = scene.root / "runs" / images.name
        scene.ok("analyze", path / "store.zarr", "--out", path)
    scene.refused("run", other, *words, kind="PhotographsError", field="images")


def test_a_store_or_results_among_the_photographs_are_no_photographs(scene: Scene) -> None:
    for _ in range(2):
        results = scene.run(scene.photos / "results")
        assert results["images"] == 18
        assert scene.embed(scene.photos, store="photos/s.zarr")["images"] == 18
    assert list((scene.photos / "results").rglob("*.png"))


# --- lists ------------------------------------------------------------------------------------------------------------


class List:
    """photos.csv beside the photographs of a scene."""

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


def _label(table: List) -> None:
    table.rows[table.first][0] = "odd"


def _split(table: List) -> None:
    table.rows[table.first][1] = "test"


def _unlabel(table: List) -> None:
    table.rows[table.first][0] = ""


def _remove(table: List) -> None:
    del table.rows[table.first]


@pytest.mark.parametrize("change", [_label, _split, _unlabel, _remove], ids=lambda f: f.__name__[1:])
def test_a_list_is_edited(scene: Scene, change: Callable[[List], None]) -> None:
    table = List(scene)
    scene.run(images=table.path)
    scene.embed(table.path)
    change(table)
    table.save()
    scene.run_refused(images=table.path)
    scene.refused(*scene.embedding(None), kind="PhotographsError", field="images")
    assert numbers(scene.run("out", table.path, "--fresh")) == numbers(scene.fresh(table.path))


def test_a_list_grows_and_is_sorted_anew(scene: Scene) -> None:
    table = List(scene)
    first = table.first
    kept = table.rows.pop(first)
    table.save()
    scene.run(images=table.path)
    table.rows = {first: kept, **dict(reversed(table.rows.items()))}
    table.save()
    assert scene.run(images=table.path)["images"] == 18
    assert rows(scene.root / "out" / "store.zarr") == rows(scene.fresh_store(table.path))


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


def _parquet(scene: Scene, path: Path, seed: int = 0) -> Path:
    files = sorted(scene.photos.rglob("*.jpg"))
    numbers_ = [int(file.stem) + seed for file in files]
    columns = {
        "image": [jpeg(photograph(number)) for number in numbers_],
        "label": [file.parent.name for file in files],
        "split": [file.parent.parent.name for file in files],
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_a_parquet_file_is_rewritten(scene: Scene) -> None:
    """The format of the list does not matter; other photographs under the same keys do."""
    path = _parquet(scene, scene.root / "p.parquet")
    before = numbers(scene.run(images=path))
    pq.write_table(pq.read_table(path), path, compression="zstd")
    assert numbers(scene.run(images=path)) == before
    _parquet(scene, path, seed=100)
    scene.run_refused(images=path)


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


@pytest.mark.parametrize("change", [_edit, _delete, _relabel], ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("images", ["own", "nothing"])
def test_a_photograph_of_an_added_source_changes(scene: Scene, change: Callable[[Scene], None], images: str) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(other)
    scene.embed(scene.photos, "--add")
    change(scene)
    before = scene.ok("info", scene.root / "s.zarr")["backbones"]
    words = scene.embedding(other if images == "own" else None, backbone="control:statistics")
    scene.refused(*words, kind="PhotographsError", field="images")
    # what changed in between is found when it is read: nothing of it is shown either
    assert [each for each in scene.ok("info", scene.root / "s.zarr")["backbones"] if each["complete"]] == before


# --- number and splits ------------------------------------------------------------------------------------------------


def test_limit(scene: Scene) -> None:
    scene.study["limit"] = 12
    first = scene.run()
    assert first["images"] == 12
    scene.study["limit"] = 10
    scene.run_refused(field="limit")
    scene.study["limit"] = 15
    assert scene.run()["images"] == 15
    assert rows(scene.root / "out" / "store.zarr") == rows(scene.fresh_store())
    scene.run_refused(field="limit", more=("--limit", "12"))


def test_the_store_has_more_photographs_than_the_study_takes(scene: Scene) -> None:
    scene.study["limit"] = 12
    scene.run()
    scene.embed(scene.photos, store="out/store.zarr")
    scene.run_refused(field="limit")


def _flat(scene: Scene) -> Path:
    """Photographs without splits."""
    for path in sorted(scene.photos.rglob("*.jpg")):
        write(scene.root / "flat" / path.parent.name / path.name, path.read_bytes())
    return scene.root / "flat"


def test_shares_of_splits(scene: Scene) -> None:
    flat = _flat(scene)
    scene.study["splits"] = {"train": 0.5, "val": 0.2, "test": 0.3}
    scene.run(images=flat)
    scene.study["splits"] = {"train": 0.4, "val": 0.2, "test": 0.4}
    scene.run_refused(field="splits", images=flat)
    assert numbers(scene.run("out", flat, "--fresh")) == numbers(scene.fresh(flat))


def test_split_folders_in_any_case(scene: Scene) -> None:
    for old, new in (("train", "Train"), ("val", "Valid"), ("test", "TEST")):
        (scene.photos / old).rename(scene.photos / new)
    results = scene.run()
    assert results["splits"] == {"train": 8, "val": 4, "test": 6}
    assert results["classes"] == ["even", "odd"]


def test_a_folder_beside_train_asks(scene: Scene) -> None:
    shutil.move(scene.photos / "val", scene.photos / "other")
    scene.refused(*scene.embedding(scene.photos), kind="ConfigError", field="source.splits")
    assert not (scene.root / "s.zarr").exists()
    assert scene.embed(scene.photos, "--split-folders", "folders")["images"] == 14
    assert scene.embed(scene.photos)["images"] == 14  # the store knows
    scene.refused(*scene.asked(), kind="ConfigError", field="source.splits")


# --- links ------------------------------------------------------------------------------------------------------------


def test_links(scene: Scene) -> None:
    """A link inside the folder is a photograph, identified by its target."""
    target, other = scene.one(), scene.one(at=-1)
    link = scene.photos / "train" / "even" / "link.jpg"
    link.symlink_to(target)
    scene.run()
    link.unlink()
    link.symlink_to(other)
    scene.run_refused()


def test_a_link_to_the_folder_is_the_folder(scene: Scene) -> None:
    before = numbers(scene.run())
    link = scene.root / "link"
    link.symlink_to(scene.photos)
    assert numbers(scene.run(images=link)) == before
    link.unlink()
    link.symlink_to(scene.add_all(scene.root / "other", seed=100))
    scene.run_refused(images=link)


def test_hard_links_are_copies(scene: Scene) -> None:
    shutil.copytree(scene.photos, scene.root / "hard", copy_function=os.link)
    before = numbers(scene.run())
    assert numbers(scene.run(images=scene.root / "hard")) == before


def test_a_deleted_photograph_comes_back(scene: Scene) -> None:
    """Skipped by --replace, embedded once it is readable again."""
    path = scene.one()
    data = path.read_bytes()
    scene.embed(scene.photos)
    path.unlink()
    scene.embed(scene.photos, "--replace")
    without = len(rows(scene.root / "s.zarr"))
    write(path, data)
    assert without < len(rows(scene.fresh_store()))
    scene.embed(scene.photos)
    assert rows(scene.root / "s.zarr") == rows(scene.fresh_store())
    assert scene.ok("verify", scene.root / "s.zarr")["complete"]


def test_a_replaced_photograph_is_left_out_until_all_backbones_have_it(scene: Scene) -> None:
    for backbone in ("control:pixels", "control:statistics"):
        scene.embed(scene.photos, backbone=backbone)
    scene.one().write_bytes(other_bytes(scene.one()))
    scene.embed(scene.photos, "--replace")
    info = {each["name"]: each["complete"] for each in scene.ok("info", scene.root / "s.zarr")["backbones"]}
    assert info == {"control:pixels": True, "control:statistics": False}
    scene.embed(None, backbone="control:statistics")
    scene.study["backbones"] = ["control:pixels", "control:statistics"]
    results = scene.run("out", None, "--store", scene.root / "s.zarr")
    assert numbers(results) == numbers(scene.fresh())


def test_class_names_from_a_file(scene: Scene) -> None:
    """Readable names are class names: changing them changes labels."""
    for split in ("train", "val", "test"):
        for number, name in enumerate(("even", "odd")):
            (scene.photos / split / name).rename(scene.photos / split / str(number))
    names = scene.root / "names.txt"
    names.write_text("two-ish\none-ish\n")
    words = ("--class-names", names)
    assert scene.run("out", None, *words)["classes"] == ["two-ish", "one-ish"]
    names.write_text("one-ish\ntwo-ish\n")
    scene.run_refused(more=words)
    assert numbers(scene.run("out", None, *words, "--fresh")) == numbers(scene.fresh(None, *words))
