"""Controls, styles of pictures, unseen generators and a leaderboard, each from photographs to its results."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.conftest import jpeg, photograph
from tests.scenarios.scene import Scene, numbers, read, rows

from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.study.file import load_study
from substyle.pipelines.transforms import registry
from substyle.pipelines.transforms.style import by_generator

PIXELS = "control:pixels"
RANDOM = "control:random:test_efficientnet"
STYLES = "style_ink_pen,style_ink_brush,style_kuwahara_noir,style_kuwahara_poster,style_glyphs_terminal"


def test_extensions_without_enough_to_compute_are_left_out(scene: Scene) -> None:
    scene.study["suite"] = f"identity,grayscale,{STYLES}"  # of three, but one has a single style
    scene.study["movement"] = {}  # the classes are not learned
    scene.study["probes"]["tasks"] = ["transformation"]
    found = scene.run()["backbones"][PIXELS]
    assert "generators" not in found
    assert "movement" not in found
    scene.study["generators"] = {"styles": 2}
    scene.run_refused("generators", "ConfigError")
    scene.study["generators"] = {"styles": 0}
    assert "generators" not in scene.run()["backbones"][PIXELS]


@pytest.mark.slow
def test_a_store_grows(scene: Scene) -> None:
    scene.study["backbones"] = [{"name": RANDOM, "precision": "fp32"}]
    scene.run()
    before = rows(scene.store, RANDOM)
    for number in range(40, 44):
        scene.add(number)
    results = scene.run()
    assert results["images"] == 22
    assert rows(scene.store, RANDOM).items() >= before.items()
    assert numbers(scene.run()) == numbers(results)


def write(folder: Path, content: bytes, name: str = "monet in 1906.jpg") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    row = f'{{ name = "mine", of = "style_arbitrary", picture = "{name}" }}'
    path = folder / "own.toml"
    path.write_text(f'transformations = [{row}, "style_gravel", "style_wave"]')
    return path


def test_a_store_refuses_another_picture(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", [])
    one, other = jpeg(photograph(100)), jpeg(photograph(101))
    suite = write(scene.root / "suite", one)
    scene.embed(scene.photos, "--suite", suite)
    scene.new_process()
    write(scene.root / "suite", other)
    scene.add(40)
    refused = scene.embedding(scene.photos, "--suite", suite)
    message = scene.refused(*refused, kind="DifferentError")
    assert "mine (another definition)" in message
    scene.new_process()
    moved = write(scene.root / "elsewhere", one, "copy.jpg")
    scene.embed(scene.photos, "--suite", moved)
    table = load_table(EmbeddingStore.open(scene.root / "s.zarr"), PIXELS)
    assert len(table.keys) == 19
    scene.new_process()  # which lacks the suite
    expected = {"arbitrary": ["mine", "style_gravel"], "multistyle": ["style_wave"]}
    table = load_table(EmbeddingStore.open(scene.root / "s.zarr"), PIXELS)
    found = by_generator(table.transformations, table.generators)
    assert {key: [table.transformations[t] for t in own] for key, own in found.items()} == expected


@pytest.mark.usefixtures("pages")
def test_a_run_becomes_rows_and_a_site(scene: Scene) -> None:
    scene.study |= {"limit": 17, "splits": {"train": 0.5, "val": 0.2, "test": 0.3}}
    results = scene.run()
    run, there, out = scene.root / "out", scene.root / "there", scene.root / "site"
    (path,) = scene.ok("share", "rows", "add", run, "--to", there)["added"]
    assert scene.ok("share", "rows", "add", run, "--to", there)["unchanged"] == [path]
    assert scene.ok("share", "rows", "check", there)["rows"] == 1
    assert scene.ok("share", "rows", "pull", there, "--to", scene.root / "copy")["added"] == [path]
    row = read(scene.root / "copy" / path)
    accuracy = results["backbones"][PIXELS]["transformation"]["linear"]["accuracy"]["value"]
    assert next(score for score in row["scores"] if score["key"] == "transformation_linear")["value"] == accuracy
    assert row["data"]["digest"] == results["identity"]["photographs"]
    assert set(row["stamps"]) >= {"probes", "analysis"}

    answer = scene.ok("share", "site", run, there, "--out", out)
    assert (answer["rows"], answer["tables"]) == (1, 1)
    assert list((out / "pictures").glob("*.jpg"))
    assert list((out / "probes").rglob("transformation-linear.safetensors"))
    (study,) = (out / "studies").glob("*.toml")
    made, own = load_study(study), load_study(scene.study_file())
    assert (made.probes, made.limit, made.splits) == (dataclasses.replace(own.probes, threads=0), own.limit, own.splits)
    again = scene.ok("run", study, "--images", scene.photos, "--out", scene.root / "again")
    assert numbers(read(again["results"]))["backbones"] == numbers(results)["backbones"]
