"""Styles of unseen generators in a study: when they are scored, kept, computed again and refused."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import Scene, numbers, read

PIXELS = "control:pixels"
STYLES = "style_ink_pen,style_ink_brush,style_kuwahara_noir,style_kuwahara_poster,style_glyphs_terminal"
MORE = "style_glyphs_typewriter"


@pytest.mark.slow
def test_they_are_scored_and_kept_until_a_setting_changes(scene: Scene) -> None:
    scene.study |= {"suite": f"identity,grayscale,{STYLES},{MORE}", "generators": {"styles": 1, "draws": 2}}
    first = scene.run()
    found = first["backbones"][PIXELS]["generators"]
    assert found["generators"] == ["ink", "kuwahara", "glyphs"]
    assert first["settings"]["generators"] == {
        **{"styles": 1, "draws": 2, "bootstrap": 100, "resample_by": "photograph", "seed": 0},
    }
    assert numbers(scene.run()) == numbers(first)
    store, out = scene.root / "out" / "store.zarr", scene.root / "out"
    path = scene.ok("report", store, "--study", scene.study_file())["results"]
    assert read(scene.root / path)["backbones"][PIXELS]["generators"] == found
    # other settings of one backbone are not compared with those of another, nor shown beside them
    scene.ok("embed", scene.photos, "--store", store, "--backbone", "control:statistics")
    scene.ok("stage", "probes", store, "--out", out, "--backbone", "control:statistics")
    asked = ["--backbone", "control:statistics", "--out", out, "--set", "generators.styles=1"]
    scene.ok("stage", "generators", store, *asked, "--set", "generators.draws=1")
    scene.refused("report", store, kind="StaleError")
    scene.study["generators"]["draws"] = 1
    other = scene.run()["backbones"][PIXELS]["generators"]
    assert (other["draws"], other["matrix"] != found["matrix"]) == (1, True)


def test_too_few_generators_are_refused_only_if_asked_for(scene: Scene) -> None:
    scene.study["suite"] = f"identity,grayscale,{STYLES}"  # of three, but one has a single style
    assert "generators" not in scene.run()["backbones"][PIXELS]
    scene.study["generators"] = {"styles": 2}
    scene.run_refused("generators", "ConfigError")
    scene.study["generators"] = {"styles": 0}
    assert "generators" not in scene.run()["backbones"][PIXELS]
