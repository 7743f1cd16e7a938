"""Results always match their store, also after moves and damage."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from tests.conftest import jpeg, photograph
from tests.scenarios.scene import SUITE, Scene, numbers, other_bytes, read, rows, write

from substyle.engine.cli import main

SLOW = """
import time
from pathlib import Path

from substyle.pipelines.transforms.base import kernel

CALLS = []


@kernel('mine_slow', coarse='tone', role='train', parameters=[])
def slow(canvas_BSSC, args, keys_B):
    CALLS.append(1)
    while len(CALLS) > 2 and Path({flag!r}).exists():
        time.sleep(0.02)
    return 255 - canvas_BSSC
"""


def _stages(scene: Scene, store: Path, *more: object) -> dict[str, Any]:
    """probe, analyze and report, with the study's settings. Returns results.json."""
    study = scene.study_file()
    for stage in ("probe", "analyze"):
        scene.ok(stage, store, "--study", study, *more)
    return read(scene.root / scene.ok("report", store, "--study", study, *more)["results"])


# --- two stores -------------------------------------------------------------------------------------------------------


def test_two_stores_beside_each_other(scene: Scene) -> None:
    """Each store has results in its own folder; they do not overwrite each other."""
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(scene.photos, store="one.zarr")
    scene.embed(other, store="two.zarr")
    shown = {name: _stages(scene, scene.root / f"{name}.zarr") for name in ("one", "two")}
    again = {name: read(scene.root / "runs" / name / "results.json") for name in ("one", "two")}
    assert again == shown
    for name, images in (("one", scene.photos), ("two", other)):
        fresh = numbers(scene.fresh(images))
        assert numbers(shown[name]) == fresh
    for stage in ("probe", "analyze", "report"):
        words = (stage, scene.root / "two.zarr", "--out", scene.root / "runs" / "one")
        scene.refused(*words, kind="PhotographsError", field="out")
    assert read(scene.root / "runs" / "one" / "results.json") == shown["one"]


def test_two_stores_of_one_name(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    scene.embed(scene.photos, store="a/s.zarr")
    scene.embed(other, store="b/s.zarr")
    scene.ok("analyze", scene.root / "a" / "s.zarr")
    scene.refused("analyze", scene.root / "b" / "s.zarr", kind="PhotographsError", field="out")


def test_a_store_is_made_anew_in_the_place_of_another(scene: Scene) -> None:
    """Results of the earlier store are recomputed or rejected."""
    other = scene.add_all(scene.root / "other", seed=100)
    store = scene.root / "s.zarr"
    scene.embed(scene.photos)
    _stages(scene, store)
    shutil.rmtree(store)
    scene.embed(other)
    scene.refused("report", store, kind="StaleError")
    assert numbers(_stages(scene, store)) == numbers(scene.fresh(other))


def test_the_store_of_a_run_is_deleted(scene: Scene) -> None:
    before = numbers(scene.run())
    shutil.rmtree(scene.root / "out" / "store.zarr")
    assert numbers(scene.run()) == before


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_store_is_moved_or_copied(scene: Scene, move: Callable[[Path, Path], object]) -> None:
    scene.embed(scene.photos)
    first = numbers(_stages(scene, scene.root / "s.zarr", "--out", scene.root / "results"))
    before = rows(scene.root / "s.zarr")
    move(scene.root / "s.zarr", scene.root / "there.zarr")
    assert scene.embed(None, store="there.zarr")["new_shards"] == 0
    assert rows(scene.root / "there.zarr") == before
    # what was made from the same store is shown again
    assert numbers(_stages(scene, scene.root / "there.zarr", "--out", scene.root / "results")) == first
    assert numbers(_stages(scene, scene.root / "there.zarr")) == first


def test_a_copy_grows(scene: Scene) -> None:
    """Two stores with one UUID, and other photographs in one of them."""
    scene.embed(scene.photos)
    store, copied = scene.root / "s.zarr", scene.root / "copy.zarr"
    shutil.copytree(store, copied)
    scene.add(50)
    scene.embed(scene.photos, store="copy.zarr")
    out = ("--out", scene.root / "results")
    small = numbers(_stages(scene, store, *out))
    scene.refused("report", copied, *out, kind="StaleError")
    assert numbers(_stages(scene, copied, *out))["images"] == small["images"] + 1
    scene.refused("report", store, *out, kind="StaleError")


def test_results_are_moved_with_their_store(scene: Scene) -> None:
    before = numbers(scene.run())
    shutil.move(scene.root / "out", scene.root / "moved")
    assert numbers(scene.run("moved")) == before
    store = scene.root / "moved" / "store.zarr"
    assert read(scene.ok("report", store, "--study", scene.study_file())["results"])["images"] == 18


# --- results that are older than their inputs -------------------------------------------------------------------------


def test_the_store_grew_and_probes_did_not(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    first = _stages(scene, store)
    scene.add(50)
    scene.embed(scene.photos)
    scene.refused("report", store, kind="StaleError")
    scene.ok("probe", store, "--study", scene.study_file())
    scene.refused("report", store, kind="StaleError")  # analyze is not done again yet
    assert _stages(scene, store)["images"] == first["images"] + 1


def test_photographs_were_redone_and_probes_were_not(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    _stages(scene, store)
    scene.one().write_bytes(other_bytes(scene.one()))
    scene.embed(scene.photos, "--replace")
    scene.refused("report", store, kind="StaleError")
    assert numbers(_stages(scene, store)) == numbers(scene.fresh())


def test_results_older_than_the_probes_beside_them(scene: Scene) -> None:
    scene.run()
    scene.run("other")
    scene.study["probes"]["passes"] = 195
    scene.ok("probe", scene.root / "out" / "store.zarr", "--study", scene.study_file())
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


# --- what others do to a store ----------------------------------------------------------------------------------------


def test_attributes_and_groups_belong_to_users(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    first = numbers(_stages(scene, store))
    before = rows(store)
    root: Any = zarr.open_group(store, mode="a")
    root.attrs["mine"] = "root"
    (backbone,) = (group for _, group in root["embeddings"].groups())
    backbone.attrs["mine"] = "backbone"
    backbone["identity"].attrs["substyle"] = {"name": "something else"}
    root.create_group("notes").attrs["mine"] = "group"
    zarr.consolidate_metadata(store)
    assert scene.ok("verify", store)["ok"]
    assert rows(store) == before
    assert numbers(_stages(scene, store)) == first
    scene.embed(None, backbone="control:statistics")
    scene.add(50)
    scene.embed(scene.photos)
    assert rows(store).items() >= before.items()
    verdict = scene.ok("verify", store)
    assert (verdict["ok"], verdict["complete"]) == (True, False)  # statistics lack the new photograph
    assert {finding["kind"] for finding in verdict["findings"]} == {"addition"}
    root = zarr.open_group(store, mode="r", use_consolidated=False)
    assert root.attrs["mine"] == "root"
    assert root["embeddings"][backbone.basename].attrs["mine"] == "backbone"
    assert root["notes"].attrs["mine"] == "group"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", [Path.unlink, _flip, _cut], ids=["missing", "flipped", "cut"])
def test_damage_is_found_refused_and_repaired(scene: Scene, harm: Callable[[Path], None]) -> None:
    first = numbers(scene.run())
    store = scene.root / "out" / "store.zarr"
    before = rows(store)
    harm(sorted(store.glob("embeddings/*/jpeg/c/*/0"))[0])
    verdicts = []
    for _ in range(2):
        code, verdict = scene.command("verify", store)
        assert (code, verdict["ok"]) == (1, False)
        verdicts.append(verdict)
    assert verdicts[0] == verdicts[1]
    for stage in ("probe", "analyze", "report"):
        scene.refused(stage, store, "--study", scene.study_file(), kind="StoreError")
    assert scene.embed(None, store="out/store.zarr")["new_shards"] == 1
    assert rows(store) == before
    assert scene.ok("verify", store)["complete"]
    assert numbers(scene.run()) == first


def test_run_repairs_what_verify_found(scene: Scene) -> None:
    first = numbers(scene.run())
    store = scene.root / "out" / "store.zarr"
    for chunk in store.glob("embeddings/*/jpeg/c/*/0"):
        _flip(chunk)
    assert scene.command("verify", store)[0] == 1
    assert numbers(scene.run()) == first
    assert scene.ok("verify", store)["complete"]


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edited", ["not yet embedded", "embedded"])
def test_an_interrupted_embed_goes_on(scene: Scene, edited: str) -> None:
    """A photograph is edited before resuming: rejected if already embedded, otherwise used as it is now."""
    plugin, flag, store = scene.root / "slow.py", scene.root / "flag", scene.root / "s.zarr"
    plugin.write_text(SLOW.format(flag=str(flag)))
    flag.touch()
    words = ["--suite", "identity,mine_slow", "--plugin", plugin]
    command = list(map(str, scene.embedding(scene.photos, *words, "--json", "--quiet")))
    process = subprocess.Popen(
        [sys.executable, "-m", "substyle.engine.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not list((store / "journal").glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    flag.unlink()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["type"] == "Interrupted"
    done = scene.ok("info", store)["backbones"][0]["embeddings"]
    assert 0 < done["done"] < done["total"]
    finished = {key for key, _ in rows(store)}
    path = next(
        p for p in sorted(scene.photos.rglob("*.jpg")) if (_key(scene, p) in finished) == (edited == "embedded")
    )
    path.write_bytes(other_bytes(path))
    again = scene.embedding(scene.photos, *words)
    if edited == "embedded":
        scene.refused(*again, kind="PhotographsError", field="images")
        again.append("--replace")
    scene.ok(*again)
    scene.ok(*scene.embedding(scene.photos, *words, store="fresh.zarr"))
    assert rows(store) == rows(scene.root / "fresh.zarr")
    assert scene.ok("verify", store)["complete"]


def _key(scene: Scene, path: Path) -> str:
    return path.relative_to(scene.photos).as_posix()


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
    keys = [_key(scene, path) for path in sorted(scene.photos.rglob("*.jpg"))]
    file, store = _imported(scene, keys), scene.root / "i.zarr"
    words = ("import", file, "--store", store, "--backbone", "import:mine")
    assert scene.ok(*words)["images"] == 18
    scene.refused(*words, kind="StoreError")  # a store is there
    first = numbers(_stages(scene, store))
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
    assert numbers(_stages(scene, store)) == first


def test_other_imported_embeddings_in_the_same_place(scene: Scene) -> None:
    keys = [_key(scene, path) for path in sorted(scene.photos.rglob("*.jpg"))]
    store, shown = scene.root / "i.zarr", []
    for seed in (0, 1):
        shutil.rmtree(store, ignore_errors=True)
        scene.ok("import", _imported(scene, keys, seed), "--store", store, "--backbone", "import:mine")
        if seed:
            scene.refused("report", store, kind="StaleError")
        shown.append(numbers(_stages(scene, store)))
    assert shown[0]["backbones"] != shown[1]["backbones"]


# --- one JSON object --------------------------------------------------------------------------------------------------


def test_every_command_answers_with_one_object(scene: Scene, pages: None) -> None:
    """`Scene.command` checks this too; these cases occur in no scenario."""
    scene.run()
    store, out = scene.root / "out" / "store.zarr", scene.root / "out"
    for words in (
        ("doctor",), ("transforms",), ("backbones",), ("backbones", "--store", store), ("info", store),
        ("verify", store),
        ("plan", scene.study_file(), "--photographs", "10"), ("profile", *scene.asked()[1:]),
        ("compare", out, out / "results.json", "--out", scene.root / "c"),
    ):  # fmt: skip
        code, answer = scene.command(*words)
        assert code == 0 or "error" in answer, words
    nothing = scene.root / "nothing"
    for words in (
        ("info", nothing), ("verify", nothing), ("probe", nothing), ("analyze", nothing), ("report", nothing),
        ("predict", nothing, nothing), ("compare", nothing, nothing), ("plan", nothing), ("run", nothing),
        ("run", nothing.with_suffix(".toml")), ("profile", nothing),
        ("embed", nothing, "--store", "s", "--backbone", "b"),
        ("import", nothing, "--store", "s", "--backbone", "b"), ("transforms", "--suite", "x"), ("bench", "x"),
        ("backbones", "--store", nothing), ("embed",), ("nothing",),
    ):  # fmt: skip
        code, answer = scene.command(*words)
        assert code in (1, 2), words
        assert set(answer["error"]) == {"type", "field", "message"}, words


def test_answers_in_a_pipe(scene: Scene) -> None:
    """In a real process: exit codes, and only the object on stdout."""
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    for words, code, kind in (
        (["info", str(store)], 0, None),
        (["embed", "--store", str(store), "--backbone", "control:pixels", "--seed", "4"], 2, "PhotographsError"),
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
    monkeypatch.setattr("substyle.engine.study.outputs.cache.code_hash", lambda *patterns: "another")
    scene.refused("report", store, "--study", scene.study_file(), kind="StaleError")
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
    of = base.Transformation.definition_hash
    monkeypatch.setattr(base.Transformation, "definition_hash", lambda self: "x" if self.name == "jpeg" else of(self))
    scene.run_refused(None, "DifferentError")
    scene.study["suite"] = "identity,grayscale"
    assert numbers(scene.run()) == numbers(scene.fresh())


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
