"""Numbers belong to the inputs they are shown with: what was changed between two commands is noticed by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.conftest import setting, slow_after
from tests.scenarios.scene import STAGES, SUITE, Scene, edit, numbers, read, write

from substyle.engine.extensions.adapt.family import Adapter
from substyle.engine.store.importer import import_store
from substyle.engine.store.layout import slug
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


# --- a study and the results of its former settings ---


FORMER = {
    "suite_file": ("DifferentError", None),
    "plug_in": ("DifferentError", None),
    "limit": ("PhotographsError", "limit"),
    "images": ("PhotographsError", "images"),
    "one_image": ("PhotographsError", "images"),
    "splits": ("PhotographsError", "splits"),
    "domains": ("PhotographsError", "images"),
    "shift": ("PhotographsError", "images"),
}


def _begin(scene: Scene, what: str) -> None:
    scene.study["images"] = str(scene.photos)
    if what in ("images", "domains", "shift"):
        others = scene.add_all(scene.root / "others", seed=50)
        scene.study |= {what: {"others": str(others)}} if what != "images" else {}
    elif what == "suite_file":
        scene.study["suite"] = f"identity,{write(scene.root / 'mine.toml', SOFTER.encode())}"
    elif what == "plug_in":
        plugin = write(scene.root / "mine.py", BRIGHTER.encode())
        scene.study |= {"suite": "identity,jpeg,mine_brighter", "plugins": [str(plugin)]}
    elif what == "splits":
        for path in list(scene.photos.glob("*/*/*.jpg")):  # without splits of their own
            path.rename(write(scene.photos / path.parent.name / path.name, b""))
        for split in ("train", "val", "test"):
            shutil.rmtree(scene.photos / split)


def _change(scene: Scene, what: str) -> None:
    others = scene.root / "others"
    match what:
        case "suite_file":
            (scene.root / "mine.toml").write_text(SOFTER.replace("30", "20"))
        case "plug_in":
            (scene.root / "mine.py").write_text(BRIGHTER.replace("40", "50"))
        case "limit":
            scene.study["limit"] = 12
        case "images":
            scene.study["images"] = str(others)
        case "one_image":
            edit(scene)
        case "splits":
            scene.study["splits"] = {"train": 0.4, "val": 0.2, "test": 0.4}
        case _:
            scene.one(folder=others).write_bytes(scene.one(at=3, folder=others).read_bytes())
    scene.new_process()


@pytest.mark.parametrize("what", slow_after(3, FORMER))
def test_results_of_former_settings_are_not_shown(scene: Scene, what: str) -> None:
    _begin(scene, what)
    before = scene.run()
    again = read(scene.ok("report", scene.store, "--study", scene.study_file())["results"])
    assert numbers(again) == numbers(before)
    _change(scene, what)
    kind, field = FORMER[what]
    for stage in STAGES[2:] if what in ("domains", "shift") else STAGES:
        scene.refused(*stage, scene.store, "--study", scene.study_file(), kind=kind, field=field)


def test_photographs_of_a_study_may_be_named_or_gone(scene: Scene) -> None:
    scene.study["images"] = "elsewhere"
    before = scene.run()  # with --images
    store = scene.store
    scene.refused("report", store, "--study", scene.study_file(), kind="PhotographsError", field="images")
    again = scene.ok("report", store, "--study", scene.study_file(), "--images", scene.photos)
    assert numbers(read(again["results"])) == numbers(before)
    moved = scene.photos.rename(scene.root / "moved")
    for stage in STAGES:
        scene.ok(*stage, store, "--study", scene.study_file(), "--images", moved)
    scene.ok("report", store, "--study", scene.study_file(), "--images", scene.photos)
    scene.refused("report", store, "--images", scene.photos, kind="ConfigError", field="--images")


# --- two runs ---


def test_an_output_folder_belongs_to_one_run_at_a_time(scene: Scene) -> None:
    scene.run()
    store = scene.store
    with outputs.locked(scene.root / "out"):
        for stage in STAGES:
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


def test_an_export_fits_the_store_it_is_imported_into(scene: Scene, tmp_path: Path) -> None:
    folder, store = exported(scene), scene.root / "s.zarr"
    scene.ok("import", folder, "--store", store, "--backbone", "mine")
    a, b = (open_table(EmbeddingStore.open(store), name) for name in (PIXELS, "mine"))
    images = np.arange(len(a.keys))
    np.testing.assert_array_equal(a.take(1, images), b.take(1, images))
    others = {}
    for each in ("seed=1", "orientation=apply", "style_precision=fp32", "canvas=96", "crop_pct=1"):
        field = each.partition("=")[0]
        others[field] = scene.root / f"{field}.zarr"
        words = ["embed", scene.photos, "--store", others[field], "--backbone", PIXELS, "--suite", SUITE]
        scene.ok(*words, *setting("embed.shard_rows=8", "canvas=64", each))
    scene.one().write_bytes(scene.one(at=2).read_bytes())
    others[f"content_hash of {scene.key(scene.one())}"] = scene.fresh_store()
    for field, other in others.items():
        scene.refused("import", folder, "--store", other, "--backbone", "mine", kind="ConfigError", field=field)
    # what an import cannot check it says
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


# --- stores, probes, results and adapters ---


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


def test_an_edited_export_is_written_again(scene: Scene) -> None:
    scene.embed(scene.photos)
    words = ["export", scene.root / "s.zarr", "--to", "numpy", "--out", scene.root / "arrays"]
    scene.ok(*words)
    path = next((scene.root / "arrays").glob("*/grayscale.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\x01\x02")
    assert scene.ok(*words)["written"] == 1
    assert path.read_bytes() == whole


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
