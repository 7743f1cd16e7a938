"""Results always match their store, also after moves and damage."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.conftest import slow_after
from tests.scenarios.scene import SUITE, Scene, edit, numbers, rows

from substyle.engine.cli import main
from substyle.engine.embedding import loop
from substyle.engine.embedding.blobs import Blob
from substyle.engine.stages.analysis import AnalysisStage
from substyle.engine.stages.probes import ProbesStage
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.sources import ImageRecord

# --- two stores -------------------------------------------------------------------------------------------------------


def test_a_store_is_made_anew_in_the_place_of_another(scene: Scene) -> None:
    other = scene.add_all(scene.root / "other", seed=100)
    store = scene.root / "s.zarr"
    scene.embed(scene.photos)
    scene.stages(store)
    shutil.rmtree(store)
    scene.embed(other)
    scene.refused("report", store, kind="StaleError")
    assert numbers(scene.stages(store)) == numbers(scene.fresh(other))


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


# --- results that are older than their inputs -------------------------------------------------------------------------


def test_the_store_grew_and_probes_did_not(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    first = scene.stages(store)
    scene.add(50)
    scene.embed(scene.photos)
    scene.refused("report", store, kind="StaleError")
    scene.refused("stage", "attack", store, "--backbone", "control:pixels", kind="StaleError")
    scene.ok("stage", "probes", store, "--study", scene.study_file())
    scene.refused("report", store, kind="StaleError")  # analyze is not done again yet
    assert scene.stages(store)["images"] == first["images"] + 1


def test_results_older_than_the_probes_beside_them(scene: Scene) -> None:
    scene.run()
    shutil.copytree(scene.root / "out", scene.root / "other")
    scene.study["probes"]["Cs"] = [1e-3]
    scene.ok("stage", "probes", scene.store, "--study", scene.study_file())
    compare = ("compare", scene.root / "out", scene.root / "other", "--out", scene.root / "c")
    scene.refused(*compare, kind="StaleError")
    scene.run()
    assert scene.ok(*compare)["page"]


def test_kept_results_are_edited(scene: Scene) -> None:
    before = numbers(scene.run())
    store, study = scene.store, scene.study_file()
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


# --- embeddings made elsewhere ----------------------------------------------------------------------------------------


def _imported(scene: Scene, keys: list[str], seed: int = 0) -> Path:
    rows_of = [(key, name, *key.split("/")[:2]) for key in keys for name in SUITE.split(",")]
    frame = pd.DataFrame(rows_of, columns=["key", "transformation", "split", "label"])
    frame["embedding"] = list(np.random.default_rng(seed).normal(size=(len(frame), 6)).astype(np.float32))
    frame.to_parquet(scene.root / "x.parquet")
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


# --- one JSON object --------------------------------------------------------------------------------------------------


def test_every_command_answers_with_one_object(scene: Scene, pages: None) -> None:
    """`Scene.command` checks this too; these cases occur in no scenario."""
    scene.run()
    store, out = scene.store, scene.root / "out"
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


# --- code and libraries -----------------------------------------------------------------------------------------------


def test_another_version_of_the_code(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numbers(scene.run())
    store = scene.store
    for each in (ProbesStage, AnalysisStage):
        monkeypatch.setattr(each, "version", 99)
    message = scene.refused("report", store, "--study", scene.study_file(), kind="StaleError")
    assert message.endswith(f"; run substyle stage probes {store} --study {scene.study_file()}")
    assert numbers(scene.run()) == before


def test_a_library_is_another_version(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- a full disk ------------------------------------------------------------------------------------------------------


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
