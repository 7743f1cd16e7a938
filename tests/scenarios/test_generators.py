"""Styles of unseen generators in a study: when they are scored, kept, computed again and refused."""

from __future__ import annotations

from tests.scenarios.scene import Scene

PIXELS = "control:pixels"
STYLES = "style_ink_pen,style_ink_brush,style_kuwahara_noir,style_kuwahara_poster,style_glyphs_terminal"


def test_too_few_generators_are_refused_only_if_asked_for(scene: Scene) -> None:
    scene.study["suite"] = f"identity,grayscale,{STYLES}"  # of three, but one has a single style
    assert "generators" not in scene.run()["backbones"][PIXELS]
    scene.study["generators"] = {"styles": 2}
    scene.run_refused("generators", "ConfigError")
    scene.study["generators"] = {"styles": 0}
    assert "generators" not in scene.run()["backbones"][PIXELS]
