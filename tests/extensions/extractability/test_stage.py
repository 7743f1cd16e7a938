"""The stages in a run: their settings, and probes of other settings beside them."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import Scene


@pytest.mark.slow
def test_results_beside_other_probes_are_outdated(scene: Scene) -> None:
    scene.study["complexity"] = {"depths": [0], "widths": [8]}
    found = scene.run()["backbones"]["control:pixels"]
    assert (
        found["complexity"]["linear"]["transformation"]["value"]
        == found["transformation"]["linear"]["accuracy"]["value"]
    )
    store, out = scene.root / "out" / "store.zarr", scene.root / "out"
    scene.ok("report", store, "--out", out)
    del scene.study["complexity"]
    scene.study["probes"]["Cs"] = [1e-1]
    scene.ok("stage", "probes", store, "--study", scene.study_file(), "--images", scene.photos, "--out", out)
    scene.refused("report", store, "--out", out, kind="StaleError")
