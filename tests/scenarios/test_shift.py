"""Results of a shift and of domains belong to their photographs, probes and settings."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from PIL import Image
from tests.conftest import jpeg, photograph, slow_after
from tests.scenarios.scene import CLASSES, COUNTS, Scene, numbers, other_bytes, read, write

from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.stages.shift.domains import path_of
from substyle.engine.stages.stamp import photographs_digest
from substyle.engine.store.layout import TEST, slug
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table


def _change(scene: Scene, what: str) -> None:
    folder = scene.root / "shifted"
    match what:
        case "elsewhere":
            for number in range(30, 36):
                scene.add(number, ".", scene.root / "others", seed=number + 31)
            scene.study["shift"] = {"other": str(scene.root / "others")}
        case "edited":
            for path in folder.rglob("*.jpg"):
                path.write_bytes(other_bytes(path, int(path.stem) + 301))
        case "relabelled":
            for path in sorted((folder / "even").glob("*.jpg")):
                path.rename(folder / "odd" / path.name)
        case "renamed":
            scene.study["shift"] = {"another": scene.study["shift"]["other"]}
        case "dropped":
            del scene.study["shift"]
        case "corrupted":
            scene.study["corruptions"] = "grayscale,jpeg"


@pytest.fixture
def shifted(scene: Scene) -> Scene:
    for number in range(30, 36):
        scene.add(number, ".", scene.root / "shifted")
    scene.study["shift"] = {"other": str(scene.root / "shifted")}
    return scene


@pytest.mark.parametrize(
    "what", slow_after(1, ["elsewhere", "edited", "relabelled", "renamed", "dropped", "corrupted"])
)
def test_photographs_of_a_shift_change(shifted: Scene, what: str) -> None:
    first = shifted.run()
    before, (digest,) = first["backbones"]["control:pixels"]["shift"], first["settings"]["shift"]["folders"].values()
    assert before["other"]["images"] == 6
    assert re.fullmatch("[0-9a-f]{16}", digest)  # `compare` tells runs with other photographs by it
    _change(shifted, what)
    results = shifted.run()
    now = list(results["settings"]["shift"]["folders"].values()) if what != "dropped" else []
    assert (digest in now) == (what in ("renamed", "corrupted"))
    assert numbers(results) == numbers(shifted.fresh())
    assert results["backbones"]["control:pixels"].get("shift") != before or what == "renamed"
    # the report of the same study is the same report
    report = shifted.ok("report", shifted.store, "--study", shifted.study_file())
    again = numbers(read(report["results"]))
    assert again["backbones"] == numbers(results)["backbones"]
    assert again.get("robustness") == numbers(results).get("robustness")


def test_corruptions_are_variants_of_the_test_photographs(scene: Scene) -> None:
    """Accuracy on corruptions that are also transformations of the study is that on these transformations."""
    scene.study |= {"suite": "identity,grayscale,jpeg,pixelate", "corruptions": "grayscale,jpeg"}
    found = scene.run()["backbones"]["control:pixels"]
    by, shifted = found["class"]["linear"]["by_transformation"], found["shift"]["grayscale,jpeg"]
    assert shifted["images"] == scene.run()["splits"]["test"]
    assert shifted["accuracy"]["value"] == pytest.approx((by["grayscale"] + by["jpeg"]) / 2)
    scene.study["corruptions"] = "grayscales"
    scene.run_refused("corruptions", "ConfigError")
    scene.study |= {"corruptions": "pixelate,jpeg", "adapt": {"methods": ["pisco"]}}  # adapters are trained on jpeg
    scene.run_refused("corruptions", "ConfigError")


def test_training_photographs_are_not_scored_again(shifted: Scene) -> None:
    before = shifted.run()["backbones"]["control:pixels"]["shift"]["other"]
    copies = [shifted.root / "shifted" / name / f"copy-{name}{end}.jpg" for name in CLASSES for end in ("", "-encoded")]
    for copy in copies:
        original = shifted.one(f"train/{copy.parent.name}/*.jpg")
        if "encoded" in copy.name:
            Image.open(original).save(copy, quality=85)
        else:
            copy.write_bytes(original.read_bytes())
    assert shifted.run()["backbones"]["control:pixels"]["shift"]["other"] == before
    for path in (shifted.root / "shifted").rglob("*.jpg"):
        if path not in copies:
            path.unlink()
    shifted.run_refused("shift.other", "ConfigError")


def test_numbered_classes_of_a_shift_are_not_those_of_the_study(shifted: Scene) -> None:
    for number, name in enumerate(CLASSES):
        for folder in [*shifted.photos.glob(f"*/{name}"), shifted.root / "shifted" / name]:
            folder.rename(folder.with_name(str(number)))
    shifted.run_refused("shift.other", "ConfigError")
    names = shifted.root / "names.txt"
    names.write_text("\n".join(CLASSES))
    shifted.study["source"] = {"names": str(names)}
    assert shifted.fresh()["backbones"]["control:pixels"]["shift"]["other"]["images"] == 6


@pytest.mark.slow
def test_shift_after_the_probes_changed(shifted: Scene) -> None:
    """The shift was scored by a probe that no longer exists."""
    shifted.run()
    shifted.study["probes"]["Cs"] = [1e-3]
    store, study = shifted.store, shifted.study_file()
    shifted.ok("stage", "probes", store, "--study", study)
    shifted.refused("report", store, "--study", study, kind="StaleError")
    assert numbers(shifted.run()) == numbers(shifted.fresh())


# --- domains ----------------------------------------------------------------------------------------------------------


PIXELS = "control:pixels"


@pytest.fixture
def domains(scene: Scene) -> Scene:
    scene.add_all(scene.root / "other", seed=60)
    scene.study["probes"]["tasks"] = ["transformation", "kind", "class"]
    scene.study["domains"] = {"other": str(scene.root / "other")}
    return scene


def test_every_domain_is_scored_on_every_other(domains: Scene) -> None:
    results = domains.run()
    found = results["backbones"][PIXELS]["domains"]
    assert set(found) == {"transformation", "kind", "class"}
    out = domains.root / "out"
    (path,) = (out / "shift" / "domains").glob("*.zarr")
    digest = photographs_digest(load_table(EmbeddingStore.open(path), PIXELS))
    assert results["settings"]["shift"]["domains"] == {"other": digest}
    assert str(domains.root) not in json.dumps(results["settings"])
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
    assert domains.run()["backbones"][PIXELS]["domains"] == found
    assert domains.stages(out / "store.zarr", "--out", out)["backbones"][PIXELS]["domains"] == found


@pytest.mark.slow
def test_other_photographs_of_a_domain_are_embedded_again(domains: Scene) -> None:
    before = domains.run()["backbones"][PIXELS]["domains"]
    domains.add_all(domains.root / "third", seed=90)
    domains.study["domains"] = {"other": str(domains.root / "third")}
    after = domains.run()["backbones"][PIXELS]["domains"]
    domains.study["domains"] = {"other": str(domains.root / "third")}
    assert after != before
    assert after == domains.fresh()["backbones"][PIXELS]["domains"]


def test_a_report_shows_the_domains_of_its_study_only(domains: Scene, pages: None) -> None:
    domains.run()
    store = domains.store
    domains.add_all(domains.root / "third", seed=90)
    domains.study["domains"] = {"other": str(domains.root / "third")}
    domains.refused("report", store, "--study", domains.study_file(), kind="StaleError")
    del domains.study["domains"]
    tables = domains.root / "out" / "tables"
    assert any(tables.glob("domains*"))
    answer = domains.ok("report", store, "--study", domains.study_file())
    assert "domains" not in read(answer["results"])["backbones"][PIXELS]
    assert not any(tables.glob("domains*"))
    shutil.rmtree(path_of(domains.root / "out", "other"))
    domains.refused("report", store, kind="StaleError")


@pytest.mark.slow
def test_numbered_classes_are_compared_between_domains_only_if_named(domains: Scene) -> None:
    for number, name in enumerate(CLASSES):
        for folder in [*domains.photos.glob(f"*/{name}"), *(domains.root / "other").glob(f"*/{name}")]:
            folder.rename(folder.with_name(str(number)))
    found = domains.run()["backbones"][PIXELS]["domains"]["class"]
    assert found["small"]["other"] is None
    assert found["other"]["small"] is None
    assert found["small"]["small"]["images"] == found["other"]["other"]["images"] == COUNTS["test"]
    names = domains.root / "names.txt"
    names.write_text("\n".join(CLASSES))
    domains.study["source"] = {"names": str(names)}
    found = domains.fresh()["backbones"][PIXELS]["domains"]["class"]
    assert found["small"]["other"]["images"] == found["other"]["small"]["images"] == COUNTS["test"]


def test_what_cannot_be_transferred_is_refused(domains: Scene) -> None:
    domains.study["domains"] = {"small": str(domains.root / "other")}
    domains.run_refused(field="domains.small", kind="ConfigError")
    domains.study["domains"] = {"other": str(domains.root / "missing")}
    domains.run_refused(field="domains.other", kind="ConfigError")
    write(domains.root / "other" / "test" / "third" / "0.jpg", jpeg(photograph(70)))
    domains.study["domains"] = {"other": str(domains.root / "other")}
    domains.run_refused(field="domains.other", kind="ConfigError")
    assert not (domains.root / "out").exists()
    domains.study["probes"]["heads"] = ["mlp"]
    domains.run_refused(field="domains", kind="ConfigError")
