"""Results always match their store, also after moves and damage."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import jpeg, photograph, slow_after
from tests.scenarios.scene import SUITE, Scene, edit, numbers, other_bytes, read, rows, write

from substyle.engine.cli import main
from substyle.engine.embedding import loop
from substyle.engine.embedding.blobs import Blob
from substyle.engine.stages.analysis import AnalysisStage
from substyle.engine.stages.probes import ProbesStage
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.sources import ImageRecord

# --- two stores -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_stores_beside_each_other(scene: Scene) -> None:
    """Each store has results in its own folder; they do not overwrite each other."""
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(scene.photos, store="one.zarr")
    scene.embed(other, store="two.zarr")
    shown = {name: scene.stages(scene.root / f"{name}.zarr") for name in ("one", "two")}
    again = {name: read(scene.root / "runs" / name / "results.json") for name in ("one", "two")}
    assert again == shown
    for name, images in (("one", scene.photos), ("two", other)):
        fresh = numbers(scene.fresh(images))
        assert numbers(shown[name]) == fresh
    for stage in (("stage", "probes"), ("stage", "analysis,similarity"), ("report",)):
        words = (*stage, scene.root / "two.zarr", "--out", scene.root / "runs" / "one")
        scene.refused(*words, kind="PhotographsError", field="out")
    assert read(scene.root / "runs" / "one" / "results.json") == shown["one"]


def test_two_stores_of_one_name(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(scene.photos, store="a/s.zarr")
    scene.embed(other, store="b/s.zarr")
    scene.ok("stage", "analysis,similarity", scene.root / "a" / "s.zarr")
    scene.refused("stage", "analysis,similarity", scene.root / "b" / "s.zarr", kind="PhotographsError", field="out")


def test_a_store_is_made_anew_in_the_place_of_another(scene: Scene) -> None:
    """Results of the earlier store are recomputed or rejected."""
    other = scene.add_all(scene.root / "other", seed=100)
    store = scene.root / "s.zarr"
    scene.embed(scene.photos)
    scene.stages(store)
    shutil.rmtree(store)
    scene.embed(other)
    scene.refused("report", store, kind="StaleError")
    assert numbers(scene.stages(store)) == numbers(scene.fresh(other))


@pytest.mark.slow
def test_reports_without_a_study_keep_the_settings_of_few_shots(scene: Scene) -> None:
    scene.study |= {"seed": 3, "few_shot": {"shots": 2, "draws": 3}}
    first = scene.run()["backbones"]["control:pixels"]["few_shot"]
    assert (first["shots"], first["draws"], first["seed"]) == (2, 3, 3)
    store = scene.root / "out" / "store.zarr"
    for out, expected in (("out", (2, 3, 3)), ("others", (16, 5, 3))):  # default settings, with the seed of the store
        scene.ok("stage", "probes", store, "--out", scene.root / out)
        path = scene.ok("report", store, "--out", scene.root / out)["results"]
        found = read(scene.root / path)["backbones"]["control:pixels"]["few_shot"]
        assert (found["shots"], found["draws"], found["seed"]) == expected
        assert (found == first) == (out == "out")


@pytest.mark.slow
def test_the_store_of_a_run_is_deleted(scene: Scene) -> None:
    before = numbers(scene.run())
    shutil.rmtree(scene.root / "out" / "store.zarr")
    assert numbers(scene.run()) == before


@pytest.mark.parametrize("move", slow_after(1, [shutil.move, shutil.copytree]))
def test_a_store_is_moved_or_copied(scene: Scene, move: Callable[[Path, Path], object]) -> None:
    scene.embed(scene.photos)
    first = numbers(scene.stages(scene.root / "s.zarr", "--out", scene.root / "results"))
    before = rows(scene.root / "s.zarr")
    move(scene.root / "s.zarr", scene.root / "there.zarr")
    assert scene.embed(None, store="there.zarr")["new_shards"] == 0
    assert rows(scene.root / "there.zarr") == before
    # what was made from the same store is shown again
    assert numbers(scene.stages(scene.root / "there.zarr", "--out", scene.root / "results")) == first
    assert numbers(scene.stages(scene.root / "there.zarr")) == first


@pytest.mark.slow
def test_a_copy_grows(scene: Scene) -> None:
    """Two stores with one UUID, and other photographs in one of them."""
    scene.embed(scene.photos)
    store, copied = scene.root / "s.zarr", scene.root / "copy.zarr"
    shutil.copytree(store, copied)
    scene.add(50)
    scene.embed(scene.photos, store="copy.zarr")
    out = ("--out", scene.root / "results")
    small = numbers(scene.stages(store, *out))
    scene.refused("report", copied, *out, kind="StaleError")
    assert numbers(scene.stages(copied, *out))["images"] == small["images"] + 1
    scene.refused("report", store, *out, kind="StaleError")


@pytest.mark.slow
def test_results_are_moved_with_their_store(scene: Scene) -> None:
    before = numbers(scene.run())
    shutil.move(scene.root / "out", scene.root / "moved")
    assert numbers(scene.run("moved")) == before
    store = scene.root / "moved" / "store.zarr"
    assert read(scene.ok("report", store, "--study", scene.study_file())["results"])["images"] == 18


# --- results that are older than their inputs -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_store_grew_and_probes_did_not(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    first = scene.stages(store)
    scene.add(50)
    scene.embed(scene.photos)
    scene.refused("report", store, kind="StaleError")
    scene.ok("stage", "probes", store, "--study", scene.study_file())
    scene.refused("report", store, kind="StaleError")  # analyze is not done again yet
    assert scene.stages(store)["images"] == first["images"] + 1


def test_outdated_probes_are_not_attacked(scene: Scene) -> None:
    store = scene.root / "s.zarr"
    scene.embed(scene.photos)
    scene.ok("stage", "probes", store, "--study", scene.study_file(), "--out", scene.root / "out")
    scene.add(40)
    scene.embed(scene.photos)
    words = ("stage", "attack", store, "--out", scene.root / "out", "--backbone", "control:pixels")
    scene.refused(*words, kind="StaleError")


@pytest.mark.slow
def test_photographs_were_redone_and_probes_were_not(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    scene.stages(store)
    scene.one().write_bytes(other_bytes(scene.one()))
    scene.embed(scene.photos, "--replace")
    scene.refused("report", store, kind="StaleError")
    assert numbers(scene.stages(store)) == numbers(scene.fresh())


def test_results_older_than_the_probes_beside_them(scene: Scene) -> None:
    scene.run()
    scene.run("other")
    scene.study["probes"]["expert"]["passes"] = 195
    scene.ok("stage", "probes", scene.root / "out" / "store.zarr", "--study", scene.study_file())
    compare = ("compare", scene.root / "out", scene.root / "other", "--out", scene.root / "c")
    scene.refused(*compare, kind="StaleError")
    scene.run()
    assert scene.ok(*compare)["page"]


def test_runs_on_different_photographs_are_compared(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    scene.run("one")
    scene.run("two", other)
    scene.run("three")
    folders = [scene.root / name for name in ("one", "two", "three")]
    assert "photographs" in scene.ok("compare", *folders[:2], "--out", scene.root / "c")["setup"]
    assert scene.ok("compare", folders[0], folders[2], "--out", scene.root / "c")["setup"] == {}


def test_kept_results_are_edited(scene: Scene) -> None:
    before = numbers(scene.run())
    store, study = scene.root / "out" / "store.zarr", scene.study_file()
    (path,) = (scene.root / "out" / "analysis").rglob("analysis.json")
    path.write_text(path.read_text().replace("0.", "1.", 1))
    scene.refused("report", store, "--study", study, kind="StaleError")
    assert numbers(scene.run()) == before
    results = scene.root / "out" / "results.json"
    written = results.read_text()
    results.write_text(json.dumps(json.loads(written)))  # in another layout
    assert scene.ok("share", "card", scene.root / "out")
    results.write_text(re.sub(r'("accuracy": \{\s*"value": 0\.)\d', r"\g<1>9", written))
    scene.refused("share", "card", scene.root / "out", kind="StaleError")
    scene.refused("compare", scene.root / "out", scene.root / "out", "--out", scene.root / "c", kind="StaleError")


@pytest.mark.slow
def test_a_damaged_gallery_is_drawn_again(scene: Scene, pages: None) -> None:
    before = numbers(scene.run())
    note = scene.root / "out" / "gallery" / "complete.json"
    written = note.read_text()
    note.write_text("{}")
    store, study = scene.root / "out" / "store.zarr", scene.study_file()
    scene.ok("report", store, "--study", study, "--out", scene.root / "out")  # without it
    assert numbers(scene.run()) == before
    assert json.loads(note.read_text())["files"] == json.loads(written)["files"]


# --- embeddings made elsewhere ----------------------------------------------------------------------------------------


def _imported(scene: Scene, keys: list[str], seed: int = 0) -> Path:
    names = SUITE.split(",")
    table = [(key, name) for key in keys for name in names]
    x = np.random.default_rng(seed).normal(size=(len(table), 6)).astype(np.float32)
    columns = {
        "key": [key for key, _ in table],
        "transformation": [name for _, name in table],
        "label": [key.split("/")[1] for key, _ in table],
        "split": [key.split("/")[0] for key, _ in table],
        "embedding": list(x),
    }
    pq.write_table(pa.table(columns), scene.root / "x.parquet")
    return scene.root / "x.parquet"


def test_imported_embeddings(scene: Scene) -> None:
    keys = [scene.key(path) for path in sorted(scene.photos.rglob("*.jpg"))]
    file, store = _imported(scene, keys), scene.root / "i.zarr"
    words = ("import", file, "--store", store, "--backbone", "import:mine")
    assert scene.ok(*words)["images"] == 18
    first = numbers(scene.stages(store))
    assert scene.ok(*words)["images"] == 18  # there already
    _imported(scene, keys, 7)  # the same file with other numbers
    scene.refused(*words, kind="DifferentError")
    assert set(first["backbones"]) == {"import:mine"}
    scene.refused(
        *scene.embedding(None, store="i.zarr", backbone="control:pixels"), kind="MissingError", field="IMAGES"
    )
    other = scene.root / "others"
    for number in range(60, 64):
        scene.add(number, "train", other)
    for backbone in ("import:mine", "control:pixels"):
        code, answer = scene.command(*scene.embedding(other, store="i.zarr", backbone=backbone))
        assert code == 2, answer
    assert numbers(scene.stages(store)) == first


def test_imported_embeddings_of_a_photograph_that_cannot_be_read_stay(scene: Scene) -> None:
    """Nothing could compute them again."""
    keys = [scene.key(path) for path in sorted(scene.photos.rglob("*.jpg"))]
    scene.ok("import", _imported(scene, keys), "--store", scene.root / "i.zarr", "--backbone", "import:mine")
    words, real = scene.embedding(scene.photos, store="i.zarr", backbone="control:pixels"), loop.read

    def fail(record: ImageRecord | None) -> Blob:
        return Blob(b"", reason="cannot be read") if record and record.key == keys[3] else real(record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "read", fail)
        scene.refused(*words, kind="StoreError", field=None)
    assert len(load_table(EmbeddingStore.open(scene.root / "i.zarr"), "import:mine").keys) == 18
    scene.ok(*words)
    assert len(load_table(EmbeddingStore.open(scene.root / "i.zarr"), "import:mine").keys) == 18


def test_variants_of_other_photographs_are_not_imported(scene: Scene) -> None:
    scene.embed(scene.photos)
    made = scene.ok("variants", scene.photos, "--out", scene.root / "variants", "--suite", SUITE, "--set", "canvas=64")
    np.save(scene.root / "x.npy", np.random.default_rng(0).normal(size=(made["variants"], 4)))
    where = ("--rows", scene.root / "variants" / "variants.csv", "--store", scene.root / "s.zarr")
    words = ("import", scene.root / "x.npy", *where, "--backbone", "import:mine")
    scene.ok(*words)
    edit(scene)
    scene.embed(scene.photos, "--replace")
    scene.refused(*words, kind="ConfigError", field=f"content_hash of {scene.key(scene.one())}")


def test_other_imported_embeddings_in_the_same_place(scene: Scene) -> None:
    keys = [scene.key(path) for path in sorted(scene.photos.rglob("*.jpg"))]
    store, shown = scene.root / "i.zarr", []
    for seed in (0, 1):
        shutil.rmtree(store, ignore_errors=True)
        scene.ok("import", _imported(scene, keys, seed), "--store", store, "--backbone", "import:mine")
        if seed:
            scene.refused("report", store, kind="StaleError")
        shown.append(numbers(scene.stages(store)))
    assert shown[0]["backbones"] != shown[1]["backbones"]


# --- one JSON object --------------------------------------------------------------------------------------------------


def test_every_command_answers_with_one_object(scene: Scene, pages: None) -> None:
    """`Scene.command` checks this too; these cases occur in no scenario."""
    scene.run()
    store, out = scene.root / "out" / "store.zarr", scene.root / "out"
    for words in (
        ("info",), ("transforms",), ("backbones",), ("backbones", "--store", store), ("info", store),
        ("verify", store),
        ("plan", scene.study_file(), "--photographs", "10"), (*scene.asked(), "--profile"),
        ("compare", out, out / "results.json", "--out", scene.root / "c"),
    ):  # fmt: skip
        code, answer = scene.command(*words)
        assert code == 0 or "error" in answer, words
    nothing = scene.root / "nothing"
    for words in (
        ("info", nothing), ("verify", nothing), ("stage", "probes", nothing), ("report", nothing),
        ("predict", nothing, nothing), ("compare", nothing, nothing), ("plan", nothing), ("run", nothing),
        ("run", nothing.with_suffix(".toml")), ("run", nothing, "--profile"),
        ("embed", nothing, "--store", "s", "--backbone", "b"),
        ("import", nothing, "--store", "s", "--backbone", "b"), ("transforms", "--suite", "x"),
        ("backbones", "--store", nothing), ("embed",), ("nothing",),
    ):  # fmt: skip
        code, answer = scene.command(*words)
        assert code in (1, 2), words
        assert set(answer["error"]) == {"type", "field", "message"}, words


@pytest.mark.slow
def test_answers_in_a_pipe(scene: Scene) -> None:
    """In a real process: exit codes, and only the object on stdout."""
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    for words, code, kind in (
        (["info", str(store)], 0, None),
        (["embed", "--store", str(store), "--backbone", "control:pixels", "--set", "seed=4"], 2, "PhotographsError"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "substyle.engine.cli", *words, "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        answer = json.loads(done.stdout)
        assert answer.get("error", {}).get("type") == kind
        assert done.stdout.count("\n") == 1


# --- code and libraries -----------------------------------------------------------------------------------------------


def test_another_version_of_the_code(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of other code are recomputed by `run` and rejected by `report`."""
    before = numbers(scene.run())
    store = scene.root / "out" / "store.zarr"
    for each in (ProbesStage, AnalysisStage):
        monkeypatch.setattr(each, "version", 99)
    message = scene.refused("report", store, "--study", scene.study_file(), kind="StaleError")
    assert message.endswith(f"; run substyle stage probes {store} --study {scene.study_file()}")
    assert numbers(scene.run()) == before


def test_a_library_is_another_version(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is resumed with a warning, unlike a fresh run."""
    scene.embed(scene.photos)
    before = rows(scene.root / "s.zarr")
    monkeypatch.setattr("substyle.engine.backbones.compile.version", lambda name: "99.0")
    scene.add(50)
    scene.capsys.readouterr()
    assert main(list(map(str, scene.embedding(scene.photos)))) == 0
    assert "99.0" in scene.capsys.readouterr().err
    assert rows(scene.root / "s.zarr").items() >= before.items()


def test_a_transformation_of_the_package_changes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from substyle.pipelines.transforms import base

    scene.run()
    changed = dataclasses.replace(base.get("jpeg"), version=99)
    monkeypatch.setitem(base.REGISTRY, "jpeg", changed)
    scene.run_refused(None, "DifferentError")
    scene.study["suite"] = "identity,grayscale"
    assert numbers(scene.run()) == numbers(scene.fresh())


@pytest.mark.slow
def test_two_names_of_one_photograph(scene: Scene) -> None:
    """A copy under another name is in the same split."""
    copied = write(scene.photos / "test" / "even" / "copy.jpg", scene.one("train/even/*.jpg").read_bytes())
    first = scene.run()
    assert first["duplicates_moved"] == 1
    assert numbers(first) == numbers(scene.fresh())
    copied.write_bytes(jpeg(photograph(500)))
    scene.run_refused()
    assert scene.run("out", None, "--fresh")["duplicates_moved"] == 0


def test_a_damaged_marker_of_results(scene: Scene) -> None:
    """--fresh deletes nothing in a folder without marker."""
    scene.run()
    (scene.root / "out" / "substyle.json").unlink()
    scene.refused(*scene.asked("out", None, "--fresh"), kind="ConfigError", field="--out")
    assert (scene.root / "out" / "results.json").is_file()


# --- a full disk ------------------------------------------------------------------------------------------------------

STAGES = {"probes": "stage probes", "analysis": "stage analysis", "tables": "stage gallery and report"}


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_names_path_and_stage(scene: Scene, name: str) -> None:
    folder, make = scene.root / "out" / name, os.mkdir

    def full(path: str | Path, *more: int) -> None:
        if Path(path).is_relative_to(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        make(path, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        message = scene.refused(*scene.asked(), kind="StoreError")
    for said in (str(folder), os.strerror(errno.ENOSPC), STAGES[name]):
        assert said in message
    scene.run()
