"""From photographs to a site: a run, its rows in a directory, and pages; the study file of a row runs again."""

from __future__ import annotations

import dataclasses

import pytest
from tests.scenarios.scene import Scene, numbers, read

from substyle.engine.study.file import load_study

PIXELS = "control:pixels"


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
