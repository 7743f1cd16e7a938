"""A study of tokens from photographs to the report, its store, and its probes on new photographs."""

from __future__ import annotations

import pytest
from tests.scenarios.scene import Scene, numbers

TOKENS, LAYER = "control:random:test_resnet@tokens=2", "control:random:test_vit@layer=1,pool=tokens"


def asked(scene: Scene) -> None:
    scene.study["backbones"] = [{"name": name, "precision": "fp32"} for name in (TOKENS, LAYER)] + ["control:pixels"]
    scene.study["probes"] |= {
        "attentive_steps": 8,
        "attentive_learning_rates": [1e-3],
        "attentive_weight_decays": [0.1],
    }
    scene.study["shift"] = {}


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_from_photographs_to_the_report(scene: Scene) -> None:
    asked(scene)
    results = scene.run()
    shapes = {name: (b["dim"], b.get("tokens")) for name, b in results["backbones"].items()}
    assert shapes == {TOKENS: (96, 4), LAYER: (64, 101), "control:pixels": (48, None)}
    for task in ("fine", "semantic"):
        assert list(results["backbones"][TOKENS][task]) == ["linear", "attentive", "efficient"]
        assert list(results["backbones"]["control:pixels"][task]) == ["linear"]
    assert results["backbones"][TOKENS]["knn"]
    heads = {row["head"] for row in results["comparisons"] if row["a"] == row["b"] == TOKENS}
    assert heads == {"attentive-linear", "efficient-linear"}
    assert 'id="attentive"' in (scene.root / "out" / "report.html").read_text(encoding="utf-8")
    assert scene.ok("verify", scene.root / "out" / "store.zarr")["ok"]
    shown = {b["name"]: b for b in scene.ok("backbones", "--store", scene.root / "out" / "store.zarr")["backbones"]}
    assert (shown[LAYER]["dim"], shown[LAYER]["tokens"]) == (64, 101)


@pytest.mark.slow
def test_predictions_of_new_photographs_and_streamed_training(scene: Scene) -> None:
    """`predict` applies every probe; streamed training gives the same results from the same store."""
    asked(scene)
    results = scene.run()
    photo = scene.one("test/*/*.jpg")
    for head in ("linear", "attentive", "efficient"):
        (probe,) = (scene.root / "out" / "probes").glob(f"*resnet*/semantic-{head}.safetensors")
        (found,) = scene.ok("predict", probe, photo)["predictions"]
        ranked = found["outputs"]["class"]
        assert {row["label"] for row in ranked} == {"even", "odd"}
        assert sum(row["probability"] for row in ranked) == pytest.approx(1.0)
    scene.study["probes"]["table"] = "streamed"
    assert numbers(scene.run()) == numbers(results)


def test_options_that_no_network_has_are_refused_before_embedding(scene: Scene) -> None:
    for name, allowed in (("control:pixels@tokens=2", "pixels, statistics"), (f"{TOKENS},pool=avg", "tokens")):
        scene.study["backbones"] = [name]
        code, answer = scene.command(*scene.asked())
        assert code == 2
        assert allowed in answer["error"]["message"]
    assert not (scene.root / "out" / "store.zarr").exists()
