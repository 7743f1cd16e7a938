"""Backbones with untrained weights are the same network in every store, whatever its photographs."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import Scene, numbers, other_bytes, rows

RANDOM = "control:random:test_efficientnet"


@pytest.mark.slow
def test_a_photograph_is_replaced(scene: Scene) -> None:
    """The embeddings equal those of a fresh store."""
    scene.embed(scene.photos, "--set", "embed.precision=fp32", backbone=RANDOM)
    path = scene.one()
    path.write_bytes(other_bytes(path))
    scene.ok(*scene.embedding(scene.photos, "--set", "embed.precision=fp32", "--replace", backbone=RANDOM))
    scene.embed(scene.photos, "--set", "embed.precision=fp32", store="fresh.zarr", backbone=RANDOM)
    assert rows(scene.root / "s.zarr", RANDOM) == rows(scene.root / "fresh.zarr", RANDOM)


@pytest.mark.slow
def test_predict_needs_no_store(scene: Scene) -> None:
    """The network of a probe does not depend on photographs, which may have changed or gone."""
    scene.study["backbones"] = [{"name": RANDOM, "precision": "fp32"}]
    scene.run()
    (probe,) = (scene.root / "out" / "probes").glob("*/class-linear.safetensors")
    before = scene.ok("predict", probe, scene.one("test/*/*.jpg"))["predictions"]
    assert before
    for path in sorted(scene.photos.glob("train/*/*.jpg")):
        path.write_bytes(other_bytes(path, int(path.stem) + 300))
    assert scene.ok("predict", probe, scene.one("test/*/*.jpg"))["predictions"] == before


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
