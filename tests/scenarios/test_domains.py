"""Probes of one domain scored on another."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import COUNTS, Scene

PIXELS = "control:pixels"


@pytest.fixture
def scene(scene: Scene) -> Scene:
    scene.add_all()
    scene.add_all(scene.root / "other", seed=60)
    scene.study["probes"]["tasks"] = ["transformation", "kind", "class"]
    scene.study["domains"] = {"other": str(scene.root / "other")}
    return scene


def test_training_photographs_of_another_domain_are_not_scored(scene: Scene) -> None:
    for path in sorted((scene.root / "other" / "test").rglob("*.jpg"))[:2]:
        path.write_bytes(scene.one(f"train/{path.parent.name}/*.jpg").read_bytes())
    found = scene.run()["backbones"][PIXELS]["domains"]
    for cells in found.values():
        assert cells["small"]["other"]["images"] == COUNTS["test"] - 2
        assert cells["other"]["other"]["images"] == cells["other"]["small"]["images"] == COUNTS["test"]
