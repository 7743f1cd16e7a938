"""Backbones calibrated on photographs of their store, which may change."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import Scene, numbers, other_bytes, rows

RANDOM = "control:random:test_efficientnet"


@pytest.mark.slow
def test_a_photograph_that_calibrates_is_replaced(scene: Scene) -> None:
    """The backbone equals that of a fresh store, or is rejected without changes to the store."""
    scene.embed(scene.photos, "--precision", "fp32", backbone=RANDOM)
    before = rows(scene.root / "s.zarr", RANDOM)
    path = scene.one()
    path.write_bytes(other_bytes(path))
    code, answer = scene.command(*scene.embedding(scene.photos, "--precision", "fp32", "--replace", backbone=RANDOM))
    if code:
        assert (code, answer["error"]["type"]) == (1, "DifferentError")
        assert rows(scene.root / "s.zarr", RANDOM) == before
    else:
        scene.embed(scene.photos, "--precision", "fp32", store="fresh.zarr", backbone=RANDOM)
        assert rows(scene.root / "s.zarr", RANDOM) == rows(scene.root / "fresh.zarr", RANDOM)


def test_predict_on_changed_photographs(scene: Scene) -> None:
    """The network of a probe is calibrated as before, or rejected."""
    scene.study["backbones"] = [{"name": RANDOM, "precision": "fp32"}]
    scene.run()
    (probe,) = (scene.root / "out" / "probes").glob("*/semantic-linear.safetensors")
    words = ("predict", probe, scene.one("test/*/*.jpg"), "--store", scene.root / "out" / "store.zarr")
    assert scene.ok(*words)["predictions"]
    for path in sorted(scene.photos.glob("train/*/*.jpg")):
        path.write_bytes(other_bytes(path, int(path.stem) + 300))
    scene.refused(*words, kind="SubstyleError")


def test_a_calibrated_backbone_grows(scene: Scene) -> None:
    """Added photographs do not change the calibration."""
    scene.study["backbones"] = [{"name": RANDOM, "precision": "fp32"}]
    scene.run()
    before = rows(scene.root / "out" / "store.zarr", RANDOM)
    for number in range(40, 44):
        scene.add(number)
    results = scene.run()
    assert results["images"] == 22
    assert rows(scene.root / "out" / "store.zarr", RANDOM).items() >= before.items()
    assert numbers(scene.run()) == numbers(results)
