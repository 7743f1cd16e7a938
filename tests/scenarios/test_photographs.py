"""Photographs that change between two commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import jpeg, photograph, slow_after
from tests.scenarios.scene import Scene, delete, edit, numbers, other_bytes, relabel, rows, same_file, write

# --- in place ---------------------------------------------------------------------------------------------------------


def _replace(scene: Scene) -> None:
    other = write(scene.root / "other.jpg", jpeg(photograph(901)))
    os.replace(other, scene.one())


def _rename(scene: Scene) -> None:
    path = scene.one()
    path.rename(path.with_name("renamed.jpg"))


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
    "change",
    slow_after(3, [edit, delete, _rename, _replace, relabel, _resplit, _swap, _break]),
    ids=lambda f: f.__name__.strip("_"),
)


@CHANGES
def test_changed_photographs_are_refused_until_asked_for(scene: Scene, change: Callable[[Scene], None]) -> None:
    """`run` fails; `embed` fails, --replace re-embeds what changed."""
    scene.run()
    scene.embed(scene.photos)
    change(scene)
    scene.run_refused()
    for images in (scene.photos, None):
        for backbone in ("control:pixels", "control:statistics"):
            words = scene.embedding(images, backbone=backbone)
            scene.refused(*words, kind="PhotographsError", field="images")
    scene.embed(scene.photos, "--replace")
    assert rows(scene.root / "s.zarr") == rows(scene.fresh_store())


@pytest.mark.slow
def test_fresh_starts_over_on_changed_photographs(scene: Scene) -> None:
    before = numbers(scene.run())
    edit(scene)
    fresh = numbers(scene.run("out", None, "--fresh"))
    assert fresh == numbers(scene.fresh()) != before


@pytest.mark.parametrize("change", [edit, _replace, _swap], ids=lambda f: f.__name__.strip("_"))
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


@pytest.mark.slow
def test_a_photograph_that_cannot_be_decoded_is_deleted(scene: Scene) -> None:
    write(scene.photos / "train" / "even" / "broken.jpg", b"no photograph")
    scene.run()
    (scene.photos / "train" / "even" / "broken.jpg").unlink()
    again, fresh = numbers(scene.run()), numbers(scene.fresh())
    again.pop("quarantined"), fresh.pop("quarantined")  # it says what the store has left out
    assert again == fresh


# --- elsewhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", slow_after(1, [shutil.move, shutil.copytree]))
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
    assert scene.ok("stage", "analysis,similarity", scene.root / "s.zarr")["backbones"]


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


@pytest.mark.slow
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
    words = ["--backbone", "control:pixels", "--suite", "identity,grayscale", "--set", "canvas=64"]
    other = scene.add_all(scene.root / "else" / "photos", seed=100)
    third = scene.add_all(scene.root / "third", seed=200)
    scene.embed(scene.photos, store="runs/photos/store.zarr")
    scene.embed(third, store="runs/third/store.zarr")
    for images in (scene.photos, third):
        path = scene.root / "runs" / images.name
        scene.ok("stage", "analysis,similarity", path / "store.zarr", "--out", path)
    scene.refused("run", other, *words, kind="PhotographsError", field="images")


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
    assert rows(scene.root / "out" / "store.zarr") == rows(scene.fresh_store())
    scene.run_refused(field="limit", more=("--set", "limit=12"))


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
    assert scene.embed(scene.photos, "--set", "source.splits=folders")["images"] == 14
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


@pytest.mark.slow
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
