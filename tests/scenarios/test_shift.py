"""Results of a shift belong to its photographs, its probes and its settings."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from PIL import Image
from tests.conftest import slow_after
from tests.scenarios.scene import CLASSES, Scene, numbers, other_bytes, read


def _elsewhere(scene: Scene) -> None:
    for number in range(30, 36):
        scene.add(number, ".", scene.root / "others", seed=number + 31)
    scene.study["shift"] = {"other": str(scene.root / "others")}


def _edited(scene: Scene) -> None:
    for path in (scene.root / "shifted").rglob("*.jpg"):
        path.write_bytes(other_bytes(path, int(path.stem) + 301))


def _relabelled(scene: Scene) -> None:
    for path in sorted((scene.root / "shifted" / "even").glob("*.jpg")):
        path.rename(scene.root / "shifted" / "odd" / path.name)


def _renamed(scene: Scene) -> None:
    scene.study["shift"] = {"another": scene.study["shift"]["other"]}


def _dropped(scene: Scene) -> None:
    del scene.study["shift"]


def _corrupted(scene: Scene) -> None:
    scene.study["corruptions"] = "grayscale,jpeg"


@pytest.fixture
def shifted(scene: Scene) -> Scene:
    for number in range(30, 36):
        scene.add(number, ".", scene.root / "shifted")
    scene.study["shift"] = {"other": str(scene.root / "shifted")}
    return scene


@pytest.mark.parametrize(
    "change",
    slow_after(1, [_elsewhere, _edited, _relabelled, _renamed, _dropped, _corrupted]),
    ids=lambda f: f.__name__[1:],
)
def test_photographs_of_a_shift_change(shifted: Scene, change: Callable[[Scene], None]) -> None:
    first = shifted.run()
    before, (digest,) = first["backbones"]["control:pixels"]["shift"], first["settings"]["shift"]["folders"].values()
    assert before["other"]["images"] == 6
    assert re.fullmatch("[0-9a-f]{16}", digest)  # `compare` tells runs with other photographs by it
    change(shifted)
    results = shifted.run()
    now = list(results["settings"]["shift"]["folders"].values()) if change is not _dropped else []
    assert (digest in now) == (change in (_renamed, _corrupted))
    assert numbers(results) == numbers(shifted.fresh())
    assert results["backbones"]["control:pixels"].get("shift") != before or change is _renamed
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
