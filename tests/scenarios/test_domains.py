"""Probes of one domain scored on another."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.conftest import jpeg, photograph
from tests.scenarios.scene import CLASSES, COUNTS, Scene, read, write

from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.stages.shift.domains import path_of
from substyle.engine.stages.stamp import photographs_digest
from substyle.engine.store.layout import TEST, slug
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table

PIXELS = "control:pixels"


@pytest.fixture
def scene(scene: Scene) -> Scene:
    scene.add_all(scene.root / "other", seed=60)
    scene.study["probes"]["tasks"] = ["transformation", "kind", "class"]
    scene.study["domains"] = {"other": str(scene.root / "other")}
    return scene


def test_every_domain_is_scored_on_every_other(scene: Scene) -> None:
    results = scene.run()
    found = results["backbones"][PIXELS]["domains"]
    assert set(found) == {"transformation", "kind", "class"}
    out = scene.root / "out"
    (path,) = (out / "shift" / "domains").glob("*.zarr")
    digest = photographs_digest(load_table(EmbeddingStore.open(path), PIXELS))
    assert results["settings"]["shift"]["domains"] == {"other": digest}
    assert str(scene.root) not in json.dumps(results["settings"])
    folders = {"small": (out, out / "store.zarr"), "other": (path.with_suffix(".results"), path)}
    tables = {name: load_table(EmbeddingStore.open(store), PIXELS) for name, (_, store) in folders.items()}
    for trained, (folder, _) in folders.items():
        probe = Probe.load(folder / "probes" / slug(PIXELS) / "transformation-linear.safetensors")
        for tested, table in tables.items():
            images = table.rows(TEST)
            right = [
                (probe.predict(table.take(t, images)).argmax(1) == t)[table.distinct_TN[t, images]].mean()
                for t in range(3)
            ]
            cell = found["transformation"][trained][tested]
            accuracy = cell["accuracy"]
            assert accuracy["value"] == pytest.approx(sum(right) / 3, abs=1e-6)
            assert cell["images"] == len(images)
            assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
            entry = ProbeOutcome.load(folder / "probes" / slug(PIXELS)).results["transformation"]["linear"]
            assert cell["converged"] is entry["converged"]
    # the study's own cell is its own score
    own = results["backbones"][PIXELS]["transformation"]["linear"]["accuracy"]
    assert found["transformation"]["small"]["small"]["accuracy"]["value"] == pytest.approx(own["value"], abs=0.06)
    assert scene.run()["backbones"][PIXELS]["domains"] == found
    assert scene.stages(out / "store.zarr", "--out", out)["backbones"][PIXELS]["domains"] == found


@pytest.mark.slow
def test_other_photographs_of_a_domain_are_embedded_again(scene: Scene) -> None:
    before = scene.run()["backbones"][PIXELS]["domains"]
    scene.add_all(scene.root / "third", seed=90)
    scene.study["domains"] = {"other": str(scene.root / "third")}
    after = scene.run()["backbones"][PIXELS]["domains"]
    scene.study["domains"] = {"other": str(scene.root / "third")}
    assert after != before
    assert after == scene.fresh()["backbones"][PIXELS]["domains"]


def test_a_report_shows_the_domains_of_its_study_only(scene: Scene, pages: None) -> None:
    scene.run()
    store = scene.store
    scene.add_all(scene.root / "third", seed=90)
    scene.study["domains"] = {"other": str(scene.root / "third")}
    scene.refused("report", store, "--study", scene.study_file(), kind="StaleError")
    del scene.study["domains"]
    tables = scene.root / "out" / "tables"
    assert any(tables.glob("domains*"))
    answer = scene.ok("report", store, "--study", scene.study_file())
    assert "domains" not in read(answer["results"])["backbones"][PIXELS]
    assert not any(tables.glob("domains*"))
    shutil.rmtree(path_of(scene.root / "out", "other"))
    scene.refused("report", store, kind="StaleError")


@pytest.mark.slow
def test_numbered_classes_are_compared_between_domains_only_if_named(scene: Scene) -> None:
    for number, name in enumerate(CLASSES):
        for folder in [*scene.photos.glob(f"*/{name}"), *(scene.root / "other").glob(f"*/{name}")]:
            folder.rename(folder.with_name(str(number)))
    found = scene.run()["backbones"][PIXELS]["domains"]["class"]
    assert found["small"]["other"] is None
    assert found["other"]["small"] is None
    assert found["small"]["small"]["images"] == found["other"]["other"]["images"] == COUNTS["test"]
    names = scene.root / "names.txt"
    names.write_text("\n".join(CLASSES))
    scene.study["source"] = {"names": str(names)}
    found = scene.fresh()["backbones"][PIXELS]["domains"]["class"]
    assert found["small"]["other"]["images"] == found["other"]["small"]["images"] == COUNTS["test"]


def test_what_cannot_be_transferred_is_refused(scene: Scene) -> None:
    scene.study["domains"] = {"small": str(scene.root / "other")}
    scene.run_refused(field="domains.small", kind="ConfigError")
    scene.study["domains"] = {"other": str(scene.root / "missing")}
    scene.run_refused(field="domains.other", kind="ConfigError")
    write(scene.root / "other" / "test" / "third" / "0.jpg", jpeg(photograph(70)))
    scene.study["domains"] = {"other": str(scene.root / "other")}
    scene.run_refused(field="domains.other", kind="ConfigError")
    assert not (scene.root / "out").exists()
    scene.study["probes"]["heads"] = ["mlp"]
    scene.run_refused(field="domains", kind="ConfigError")
