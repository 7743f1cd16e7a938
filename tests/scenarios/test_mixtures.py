"""Inputs that must not be mixed: foreign files, sources, settings, and stores that change during a run."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout
from typing import Any

import pytest
from tests.conftest import jpeg, photograph, slow_after
from tests.scenarios.scene import STAGES, Scene, other_bytes, write

from substyle.engine.cli import main
from substyle.engine.stages import probes
from substyle.engine.store import lock


def test_results_never_go_among_other_files(scene: Scene) -> None:
    thesis = scene.root / "out"
    for name in ("figures/one.png", "tables/two.csv", "report.html"):
        write(thesis / name, b"mine")
    for more in ((), ("--fresh",)):
        scene.refused(*scene.asked("out", None, *more), kind="ConfigError", field="--out")
    scene.embed(scene.photos)
    for stage in STAGES[:2]:
        scene.refused(*stage, scene.root / "s.zarr", "--out", thesis, kind="ConfigError", field="--out")
    assert sorted(path.name for path in thesis.rglob("*.*")) == ["one.png", "report.html", "two.csv"]
    assert not (thesis / "substyle.json").exists()
    before = sorted(scene.photos.rglob("*"))
    scene.refused(*scene.asked(scene.photos), kind="ConfigError", field="--out")
    assert sorted(scene.photos.rglob("*")) == before


def test_a_store_without_its_manifest_takes_no_photographs(scene: Scene) -> None:
    scene.embed(scene.photos)
    store = scene.root / "s.zarr"
    shutil.rmtree(store / "images.parquet")
    other = scene.add_all(scene.root / "other", seed=500)
    scene.refused(*scene.embedding(other), kind="StoreError")
    findings = scene.command("verify", store)[1]["findings"]
    assert "manifest" in {finding["kind"] for finding in findings}


def test_embeddings_that_change_while_probes_are_trained(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.embed(scene.photos)
    train = probes.run_probes

    def meanwhile(*words: Any, **more: Any) -> Any:  # noqa: ANN401
        outcome = train(*words, **more)
        scene.one().write_bytes(other_bytes(scene.one()))
        with redirect_stdout(io.StringIO()):
            assert main([*map(str, scene.embedding(scene.photos, "--replace")), "--quiet"]) == 0
        return outcome

    monkeypatch.setattr(probes, "run_probes", meanwhile)
    store = scene.root / "s.zarr"
    out = scene.root / "results"
    scene.refused("stage", "probes", store, "--study", scene.study_file(), "--out", out, kind="StaleError")
    scene.refused("report", store, "--out", out, kind="ConfigError", field="STORE")


def test_fresh_deletes_nothing_where_the_run_would_fail(scene: Scene) -> None:
    scene.run()
    before = sorted((scene.root / "out").rglob("*"))
    few = write(scene.root / "few" / "train" / "even" / "0.jpg", jpeg(photograph(0))).parents[2]
    for images, field in ((scene.root / "nothing", "images"), (few, "splits.train")):
        scene.refused(*scene.asked("out", images, "--fresh"), kind="ConfigError", field=field)
    with lock.hold(scene.store, "busy"):
        scene.refused(*scene.asked("out", None, "--fresh"), kind="LockedError")
    assert sorted((scene.root / "out").rglob("*")) == before


@pytest.mark.parametrize("changed", slow_after(1, ["out", "copy"]))
def test_results_of_a_store_that_has_changed_are_not_compared(scene: Scene, changed: str) -> None:
    scene.run()
    shutil.copytree(scene.root / "out", scene.root / "copy")
    comparison = ["compare", scene.root / "out", scene.root / "copy", "--out", scene.root / "comparison"]
    scene.ok(*comparison)
    scene.one().write_bytes(other_bytes(scene.one()))
    scene.embed(scene.photos, "--replace", store=f"{changed}/store.zarr")
    scene.refused(*comparison, kind="StaleError")
    scene.refused("share", "card", scene.root / changed, kind="StaleError")
