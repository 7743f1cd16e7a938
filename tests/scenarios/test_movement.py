"""Movement in a study: from probes and embeddings, computed again when either changes."""

from __future__ import annotations

from tests.scenarios.scene import Scene, numbers, read

PIXELS = "control:pixels"


def test_it_is_kept_until_the_probes_change(scene: Scene) -> None:
    scene.study |= {"suite": "identity,grayscale,jpeg,gaussian_blur,low_contrast,brightness,pixelate", "movement": {}}
    first = scene.run()
    found = first["backbones"][PIXELS]["movement"]
    assert (found["transformations"], found["images"]) == (6, 6)
    assert set(found["measures"]) == {"sensitivity", "radius", "csls"}
    assert numbers(scene.run()) == numbers(first)
    store = scene.root / "out" / "store.zarr"
    assert read(scene.root / scene.ok("report", store)["results"])["backbones"][PIXELS]["movement"] == found
    scene.study["probes"]["Cs"] = [1e-4]
    changed = scene.run()
    assert numbers(changed) == numbers(scene.fresh())


def test_it_warns_where_it_finds_nothing(scene: Scene) -> None:
    scene.study["movement"] = {}  # two transformations
    assert "movement" not in scene.run()["backbones"][PIXELS]
