"""Numbers belong to the inputs they are shown with: what was changed between two commands is noticed by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.conftest import setting, slow_after
from tests.scenarios.scene import SUITE, Scene, edit, numbers, read, write
from tests.staged import run_of

from substyle.engine.config import AnalysisConfig
from substyle.engine.extensions.adapt.family import Adapter
from substyle.engine.stages.execution import computed, kept
from substyle.engine.stages.similarity import STAGE as SIMILARITY
from substyle.engine.stages.stamp import StaleError, is_result
from substyle.engine.stages.tables import tables
from substyle.engine.store.importer import import_store
from substyle.engine.store.layout import StoreError, slug
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_table
from substyle.engine.study import outputs
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite_name, suites

PIXELS = "control:pixels"
BRIGHTER = """
import torch
from substyle.pipelines.transforms.base import kernel

@kernel("mine_brighter", kind="tone", role="train")
def brighter(canvas_BSSC, args, keys_B):
    return (canvas_BSSC.to(torch.int16) + 40).clamp(0, 255).to(torch.uint8)
"""
SOFTER = """
transformations = [
    "grayscale",
    { name = "mine_jpeg", of = "jpeg", parameters = { quality = [30] } },
]
"""


@pytest.fixture
def scene(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("SUBSTYLE_ALLOW_PLUGINS", "1")
    scene.add_all()
    return scene


# --- a study and the results of its former settings ---


def suite_file(scene: Scene) -> Callable[[], None]:
    path = scene.root / "mine.toml"
    path.write_text(SOFTER)
    scene.study["suite"] = f"identity,{path}"

    def change() -> None:
        path.write_text(SOFTER.replace("30", "20"))
        scene.new_process()

    return change


def plug_in(scene: Scene) -> Callable[[], None]:
    path = scene.root / "mine.py"
    path.write_text(BRIGHTER)
    scene.study |= {"suite": "identity,jpeg,mine_brighter", "plugins": [str(path)]}

    def change() -> None:
        path.write_text(BRIGHTER.replace("40", "50"))
        scene.new_process()

    return change


def limit(scene: Scene) -> Callable[[], None]:
    return lambda: scene.study.update(limit=12)


def larger_limit(scene: Scene) -> Callable[[], None]:
    scene.study["limit"] = 14
    return lambda: scene.study.update(limit=16)


def images(scene: Scene) -> Callable[[], None]:
    scene.add_all(scene.root / "others", seed=50)
    return lambda: scene.study.update(images=str(scene.root / "others"))


def missing_images(scene: Scene) -> Callable[[], None]:
    return lambda: scene.study.update(images=str(scene.root / "nowhere"))


def one_image(scene: Scene) -> Callable[[], None]:
    return lambda: edit(scene)


def another_image(scene: Scene) -> Callable[[], None]:
    return lambda: print(scene.add(40))


def splits(scene: Scene) -> Callable[[], None]:
    for path in list(scene.photos.glob("*/*/*.jpg")):  # without splits of their own
        path.rename(write(scene.photos / path.parent.name / path.name, b""))
    for split in ("train", "val", "test"):
        shutil.rmtree(scene.photos / split)
    return lambda: scene.study.update(splits={"train": 0.4, "val": 0.2, "test": 0.4})


def domain(scene: Scene) -> Callable[[], None]:
    scene.add_all(scene.root / "others", seed=50)
    scene.study["domains"] = {"others": str(scene.root / "others")}
    return lambda: edit_in(scene, scene.root / "others")


def shift(scene: Scene) -> Callable[[], None]:
    scene.add_all(scene.root / "others", seed=50)
    scene.study["shift"] = {"others": str(scene.root / "others")}
    return lambda: edit_in(scene, scene.root / "others")


def edit_in(scene: Scene, folder: Path) -> None:
    scene.one(folder=folder).write_bytes(scene.one(at=3, folder=folder).read_bytes())


CHANGES: dict[Callable[[Scene], Callable[[], None]], tuple[str, str | None]] = {
    suite_file: ("DifferentError", None),
    plug_in: ("DifferentError", None),
    limit: ("PhotographsError", "limit"),
    larger_limit: ("PhotographsError", "images"),
    images: ("PhotographsError", "images"),
    missing_images: ("PhotographsError", "images"),
    one_image: ("PhotographsError", "images"),
    another_image: ("PhotographsError", "images"),
    splits: ("PhotographsError", "splits"),
    domain: ("PhotographsError", "images"),
    shift: ("PhotographsError", "images"),
}


@pytest.mark.parametrize("change", slow_after(3, CHANGES), ids=lambda change: change.__name__)
def test_results_of_former_settings_are_not_shown(scene: Scene, change: Callable[[Scene], Callable[[], None]]) -> None:
    scene.study["images"] = str(scene.photos)
    apply = change(scene)
    before = scene.run()
    store, kind = scene.root / "out" / "store.zarr", CHANGES[change]
    again = read(scene.ok("report", store, "--study", scene.study_file())["results"])
    assert numbers(again) == numbers(before)
    apply()
    stages = (
        (("report",),)
        if change in (domain, shift)
        else (("stage", "probes"), ("stage", "analysis,similarity"), ("report",))
    )
    for stage in stages:
        scene.refused(*stage, store, "--study", scene.study_file(), kind=kind[0], field=kind[1])


def test_photographs_of_a_study_may_be_named_or_gone(scene: Scene) -> None:
    scene.study["images"] = "elsewhere"
    before = scene.run()  # with --images
    store = scene.root / "out" / "store.zarr"
    scene.refused("report", store, "--study", scene.study_file(), kind="PhotographsError", field="images")
    again = scene.ok("report", store, "--study", scene.study_file(), "--images", scene.photos)
    assert numbers(read(again["results"])) == numbers(before)
    scene.photos.rename(scene.root / "moved")
    scene.ok("report", store, "--study", scene.study_file(), "--images", scene.photos)
    scene.refused("report", store, "--images", scene.photos, kind="ConfigError", field="--images")


# --- two runs ---


def test_an_output_folder_belongs_to_one_run_at_a_time(scene: Scene) -> None:
    scene.run()
    store = scene.root / "out" / "store.zarr"
    with outputs.locked(scene.root / "out"):
        for stage in (("stage", "probes"), ("stage", "analysis,similarity"), ("report",)):
            message = scene.refused(*stage, store, "--study", scene.study_file(), kind="LockedError")
            assert str(scene.root / "out") in message
        scene.refused(*scene.asked(), kind="LockedError")
        scene.refused(*scene.asked("out", None, "--fresh"), kind="LockedError")
        assert store.is_dir()
    scene.run()
    scene.run("out", None, "--fresh")


# --- embeddings made elsewhere ---


def exported(scene: Scene) -> Path:
    scene.embed(scene.photos)
    scene.ok("export", scene.root / "s.zarr", "--to", "parquet", "--out", scene.root / "exported")
    return next((scene.root / "exported").glob("*/*.parquet")).parent


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (["--set", "seed=1"], "seed"),
        (["--set", "orientation=apply"], "orientation"),
        (["--set", "style_precision=fp32"], "style_precision"),
        (["--set", "canvas=96"], "canvas"),
        (["--set", "crop_pct=1"], "crop_pct"),
    ],
)
def test_an_export_fits_the_store_it_is_imported_into(scene: Scene, more: list[str], field: str) -> None:
    folder = exported(scene)
    other = scene.root / "other.zarr"
    words = [
        "embed",
        scene.photos,
        "--store",
        other,
        "--backbone",
        PIXELS,
        "--suite",
        SUITE,
        "--set",
        "embed.shard_rows=8",
    ]
    scene.ok(*words, *([] if field == "canvas" else ["--set", "canvas=64"]), *more)
    scene.refused("import", folder, "--store", other, "--backbone", "mine", kind="ConfigError", field=field)
    scene.ok("import", folder, "--store", scene.root / "s.zarr", "--backbone", "mine")
    a, b = (open_table(EmbeddingStore.open(scene.root / "s.zarr"), name) for name in (PIXELS, "mine"))
    images = np.arange(len(a.keys))
    np.testing.assert_array_equal(a.take(1, images), b.take(1, images))


def test_an_export_of_other_photographs_is_refused(scene: Scene) -> None:
    folder = exported(scene)
    path = scene.one()
    path.write_bytes(scene.one(at=2).read_bytes())
    other = scene.fresh_store()
    key = scene.key(path)
    scene.refused(
        "import", folder, "--store", other, "--backbone", "mine", kind="ConfigError", field=f"content_hash of {key}"
    )


def test_what_an_import_cannot_check_it_says(scene: Scene, tmp_path: Path) -> None:
    folder = exported(scene)
    table = pq.read_table(folder).drop_columns(["content_hash", "definition", "orientation", "seed"])
    pq.write_table(table, tmp_path / "plain.parquet")
    scene.capsys.readouterr()
    import_store(tmp_path / "plain.parquet", scene.root / "new.zarr", "mine")
    assert "no column content_hash, definition, seed, orientation" in scene.capsys.readouterr().err


@pytest.mark.parametrize("how", ["suite", "plug-in"])
def test_definitions_travel_with_variants(scene: Scene, how: str) -> None:
    file = scene.root / ("mine.toml" if how == "suite" else "mine.py")
    text, name, old, new = (
        (SOFTER, "mine_jpeg", "30", "20") if how == "suite" else (BRIGHTER, "mine_brighter", "40", "50")
    )
    file.write_text(text)
    out = scene.root / "variants"
    suite = f"identity,{file}" if how == "suite" else f"identity,{name}"
    scene.ok("variants", scene.photos, "--out", out, "--suite", suite, "--set", "canvas=64", "--plugin", file)
    count = len((out / "variants.csv").read_text().splitlines()) - 1
    np.save(scene.root / "x.npy", np.random.default_rng(0).random((count, 4), np.float32))
    words = ["import", scene.root / "x.npy", "--rows", out / "variants.csv", "--backbone", "mine", "--plugin", file]
    scene.ok(*words, "--store", scene.root / "a.zarr")
    file.write_text(text.replace(old, new))
    scene.new_process()
    if how == "suite":
        scene.refused(*words, "--store", scene.root / "b.zarr", kind="ConfigError", field=f"definition of {name}")
    else:  # the pixels that were embedded are recorded, and others do not join them
        scene.ok(*words, "--store", scene.root / "b.zarr")
        more = scene.embedding(scene.photos, "--suite", suite, "--plugin", file, store="b.zarr")
        assert f"{name} (other pixels)" in scene.refused(*more, kind="DifferentError")


def test_variants_are_made_as_a_store_s(scene: Scene) -> None:
    scene.embed(scene.photos, "--set", "orientation=apply")
    rows, words = [], ["variants", scene.photos, "--suite", SUITE, "--set", "canvas=64"]
    for name, more in (("plain", []), ("applied", ["--set", "orientation=apply"])):
        scene.ok(*words, "--out", scene.root / name, *more)
        rows.append(scene.root / name / "variants.csv")
    count = len(rows[0].read_text().splitlines()) - 1
    np.save(scene.root / "x.npy", np.random.default_rng(0).random((count, 4), np.float32))
    asked = ["import", scene.root / "x.npy", "--store", scene.root / "s.zarr", "--backbone", "mine", "--rows"]
    scene.refused(*asked, rows[0], kind="ConfigError", field="orientation")
    scene.ok(*asked, rows[1])


def test_a_study_s_settings_are_compared_with_those_of_an_import(scene: Scene) -> None:
    folder = exported(scene)
    scene.ok("import", folder, "--store", scene.root / "new.zarr", "--backbone", "mine")
    scene.ok("stage", "probes", scene.root / "new.zarr", "--study", scene.study_file())
    scene.study["seed"] = 5
    scene.refused(
        "stage", "probes", scene.root / "new.zarr", "--study", scene.study_file(), kind="PhotographsError", field="seed"
    )


def test_an_edited_export_is_written_again(scene: Scene) -> None:
    scene.embed(scene.photos)
    words = ["export", scene.root / "s.zarr", "--to", "numpy", "--out", scene.root / "arrays"]
    scene.ok(*words)
    path = next((scene.root / "arrays").glob("*/grayscale.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\x01\x02")
    assert scene.ok(*words)["written"] == 1
    assert path.read_bytes() == whole


# --- stores, probes, results and adapters ---


def test_a_table_does_not_follow_its_path_to_another_store(scene: Scene) -> None:
    scene.embed(scene.photos)
    scene.add_all(scene.root / "others", seed=50)
    scene.embed(scene.root / "others", store="t.zarr")
    store = scene.root / "s.zarr"
    table = open_table(EmbeddingStore.open(store), PIXELS)
    table.take(1, np.arange(4))
    store.rename(scene.root / "before.zarr")
    (scene.root / "t.zarr").rename(store)
    with pytest.raises(StoreError, match="was opened here, and this is store"):
        table.take(1, np.arange(4))
    with pytest.raises(StoreError, match="was opened here, and this is store"):
        table.in_memory()


def test_results_without_their_checksum_are_not_compared(scene: Scene) -> None:
    for out in ("a", "b"):
        scene.run(out)
    path = scene.root / "a" / "results.json"
    results = read(path)
    results["backbones"][PIXELS]["transformation"]["linear"]["accuracy"]["value"] = 0.99
    del results["checksum"]
    path.write_text(json.dumps(results))
    for words in (
        ["compare", scene.root / "a", scene.root / "b", "--out", scene.root / "c"],
        ["share", "card", scene.root / "a"],
    ):
        scene.refused(*words, kind="StaleError")


def test_a_probe_of_another_run_is_not_applied_as_this_one_s(scene: Scene) -> None:
    scene.run("a")
    scene.study["seed"] = 3
    scene.run("b")
    name = Path("probes") / slug(PIXELS) / "class-linear.safetensors"
    probe = scene.root / "a" / name
    shutil.copy(probe, scene.root / "alone.safetensors")
    scene.ok("predict", scene.root / "alone.safetensors", scene.one())
    shutil.copy(scene.root / "b" / name, probe)
    scene.refused("predict", probe, scene.one(), kind="StaleError")
    shutil.copy(scene.root / "alone.safetensors", probe.with_name("other.safetensors"))
    shutil.copy(scene.root / "alone.safetensors", probe)
    scene.refused("predict", probe.with_name("other.safetensors"), scene.one(), kind="StaleError")


def test_a_suite_with_other_roles_has_another_name(scene: Scene) -> None:
    scene.study["suite"] = "mini5"
    assert scene.run("a")["suite"] == "mini5"
    known = [base.get(name) for name in suites()["mini5"]]
    assert suite_name([each.describe() for each in known]) == "mini5"
    others = [replace(each, role="held_out") if each.name == "jpeg" else each for each in known]
    assert suite_name([each.describe() for each in others]) == ",".join(suites()["mini5"])


def test_an_adapter_belongs_to_the_canvas_it_was_trained_on(scene: Scene) -> None:
    scene.embed(scene.photos)
    words = ["stage", "adapt", scene.root / "s.zarr", "--backbone", PIXELS, "--study", scene.study_file()]
    (result,) = scene.ok(*words)["backbones"].values()
    name = result["adapt"]
    words = ["embed", scene.photos, "--store", scene.root / "t.zarr", "--backbone", PIXELS, "--suite", SUITE]
    scene.ok(*words, *setting("canvas=96", "embed.shard_rows=8"))
    scene.refused("embed", "--store", scene.root / "t.zarr", "--backbone", name, kind="WeightsError")
    assert Adapter.load(Path(name.removeprefix("adapt:"))).metadata["canvas"] == 64


def test_a_domain_may_be_named_like_a_backbone(scene: Scene) -> None:
    scene.add_all(scene.root / "others", seed=50)
    scene.study["domains"] = {PIXELS: str(scene.root / "others")}
    before = scene.run()
    assert set(before["backbones"][PIXELS]["domains"]["transformation"]) == {"small", PIXELS}
    assert numbers(scene.run()) == numbers(before)
    again = scene.ok("report", scene.root / "out" / "store.zarr", "--study", scene.study_file())
    assert numbers(read(again["results"])) == numbers(before)


def test_what_lies_among_results_is_no_result(scene: Scene) -> None:
    scene.run()
    folder = scene.root / "out" / "probes" / slug(PIXELS)
    probe = folder / "transformation-linear.safetensors"
    shutil.copy(probe, folder / "kind-linear.safetensors")
    assert is_result(probe)
    assert not is_result(folder / "kind-linear.safetensors")
    assert not is_result(scene.root / "nowhere" / "x")


@pytest.mark.slow
def test_similarity_belongs_to_the_tables_it_was_computed_from(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.study["backbones"] = [PIXELS, "control:statistics"]
    last = scene.one("test/*/*.jpg", at=-1)
    data = last.read_bytes()
    last.unlink()
    scene.run()
    write(last, data)
    store = scene.root / "out" / "store.zarr"
    opened = tables(EmbeddingStore.open(store), scene.study["backbones"])
    scene.embed(scene.photos, "--backbone", "control:statistics", store="out/store.zarr")
    assert len(opened[0].keys) == 17
    shutil.rmtree(scene.root / "out" / "similarity")
    run = run_of(EmbeddingStore.open(store), scene.root / "out", opened, similarity=AnalysisConfig())
    assert computed(SIMILARITY, run)
    now = tables(EmbeddingStore.open(store), scene.study["backbones"])
    with pytest.raises(StaleError, match="other photographs"):
        kept(SIMILARITY, run_of(EmbeddingStore.open(store), scene.root / "out", now))


@pytest.mark.parametrize("to", ["parquet", "numpy"])
def test_an_export_follows_no_link(scene: Scene, to: str) -> None:
    scene.embed(scene.photos)
    words = ["export", scene.root / "s.zarr", "--to", to, "--out", scene.root / "exported"]
    scene.ok(*words)
    folder = scene.root / "exported" / slug(PIXELS)
    folder.rename(scene.root / "outside")
    folder.symlink_to(scene.root / "outside")
    note = scene.root / "exported" / "_substyle.json"
    note.write_text(json.dumps({**read(note), "parts": {}}))
    before = {path: path.read_bytes() for path in (scene.root / "outside").iterdir()}
    scene.refused(*words, kind="UnsafeFileError")
    assert {path: path.read_bytes() for path in (scene.root / "outside").iterdir()} == before


def test_a_report_states_the_photographs_that_its_store_has(scene: Scene) -> None:
    """Where they are not read: limit and shares of the study are not those of the store."""
    store = scene.root / "s.zarr"
    scene.embed(scene.photos, "--set", "limit=15")
    asked = ["--study", scene.study_file(), "--out", scene.root / "out"]
    scene.ok("stage", "probes", store, *asked)
    for field, value in (("limit", "12"), ("splits", "{train = 0.5, val = 0.25, test = 0.25}")):
        words = ["report", store, *asked, "--set", f"{field}={value}"]
        scene.refused(*words, kind="PhotographsError", field=field)
    for limit in (0, 18):
        answer = scene.ok("report", store, *asked, "--set", f"limit={limit}")
        assert read(answer["results"])["study"]["limit"] == 15
