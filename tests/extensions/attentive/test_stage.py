"""A study of tokens from photographs to the report, and its store."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import Scene, numbers

RESNET, LAYER = "control:random:test_resnet", "control:random:test_vit@layer=1"


def asked(scene: Scene, **changes: object) -> None:
    scene.study["backbones"] = [{"name": name, "precision": "fp32"} for name in (RESNET, LAYER)] + ["control:pixels"]
    scene.study["shift"] = {}
    own = {"backbones": [RESNET, LAYER], "grid": 2, "learning_rates": [1e-3]}
    scene.study["probes"]["mlp_steps"] = 8
    scene.study["attentive"] = own | changes


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_from_photographs_to_the_report(scene: Scene) -> None:
    asked(scene)
    results = scene.run()
    found = {name: own.get("attentive") for name, own in results["backbones"].items()}
    assert {name: own and (own["tokens"], own["dim"]) for name, own in found.items()} == {
        RESNET: (4, 96), LAYER: (4, 64), "control:pixels": None,
    }  # fmt: skip
    for task in ("transformation", "class"):
        assert list(found[RESNET][task]) == ["linear", "attentive", "efficient"]
        assert list(results["backbones"][RESNET][task]) == ["linear"]
    rows = results["attentive"]["differences"]
    assert {row["head"] for row in rows} == {"attentive-linear", "efficient-linear"}
    assert all(row["a"] == row["b"] and row["p_holm"] >= row["p"] for row in rows if row["p"] is not None)
    assert 'id="attentive"' in (scene.root / "out" / "report.html").read_text(encoding="utf-8")
    store = scene.root / "out" / "attentive" / "tokens.zarr"
    assert scene.ok("verify", store)["ok"]
    assert {b["name"]: b["dim"] for b in scene.ok("backbones", "--store", store)["backbones"]} == {
        f"tokens:2:{RESNET}": 4 * 96, f"tokens:2:{LAYER}": 4 * 64,
    }  # fmt: skip
    assert numbers(scene.run()) == numbers(results)
    scene.study["attentive"]["learning_rates"] = [1e-2]  # the tokens stay
    before = (store / "substyle.json").stat().st_mtime_ns
    assert numbers(scene.run()) != numbers(results)
    assert (store / "substyle.json").stat().st_mtime_ns == before


def test_what_no_network_has_is_refused_before_embedding(scene: Scene) -> None:
    for changes, allowed in (
        ({"backbones": ["control:pixels"]}, "a network with a map of features"),
        ({"backbones": ["control:statistics"]}, "backbones of the study"),
        ({"grid": 6}, "the side of the map"),
    ):
        asked(scene, **changes)
        code, answer = scene.command(*scene.asked())
        assert code == 2
        assert allowed in answer["error"]["message"]
    assert not (scene.root / "out" / "store.zarr").exists()
