"""Movement in a study: from probes and embeddings, computed again when either changes."""

from __future__ import annotations

from tests.scenarios.scene import Scene

PIXELS = "control:pixels"


def test_it_warns_where_it_finds_nothing(scene: Scene) -> None:
    scene.study["movement"] = {}  # two transformations
    assert "movement" not in scene.run()["backbones"][PIXELS]
