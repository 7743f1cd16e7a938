"""Backbones with untrained weights are the same network in every store, whatever its photographs."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import Scene, numbers, rows

RANDOM = "control:random:test_efficientnet"


@pytest.mark.slow
def test_a_store_grows(scene: Scene) -> None:
    """Added photographs do not change the network."""
    scene.study["backbones"] = [{"name": RANDOM, "precision": "fp32"}]
    scene.run()
    before = rows(scene.root / "out" / "store.zarr", RANDOM)
    for number in range(40, 44):
        scene.add(number)
    results = scene.run()
    assert results["images"] == 22
    assert rows(scene.root / "out" / "store.zarr", RANDOM).items() >= before.items()
    assert numbers(scene.run()) == numbers(results)
