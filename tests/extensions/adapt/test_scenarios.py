"""Adapted backbones of a study belong to its photographs and backbones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from tests.scenarios.scene import Scene

from substyle.engine.extensions.adapt.family import Adapter, path_of
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table
from substyle.pipelines.transforms import base

NAME = "timm:test_vit"


@pytest.fixture
def scene(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.chdir(scene.root)
    path = scene.root / "w.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    scene.add_all()
    scene.study["backbones"] = [{"name": NAME, "checkpoint": str(path), "precision": "fp32"}, "control:pixels"]
    scene.study["probes"] |= {"multitask_steps": 4, "widths": [8]}
    scene.study["probes"]["tasks"] = ["transformation", "kind", "class"]
    scene.study["adapt"] = {"methods": ["multitask", "pisco"]}
    return scene


def adapted(results: dict[str, Any]) -> dict[str, str]:
    """Adapted backbones of results by method."""
    found = {
        str(Adapter.load(path_of(name)).metadata["method"]): name for name in results["backbones"] if "adapt" in name
    }
    assert len(found) == len(results["backbones"]) - 2
    return found


def test_one_command_adapts_a_store_and_its_file_embeds_photographs(scene: Scene) -> None:
    scene.embed(scene.photos, store="s.zarr")
    name, store = _adapted(scene), EmbeddingStore.open("s.zarr")
    derived = load_table(store, name)
    assert derived.x_TND.shape[2] == store.backbone(name).dim
    # the whole network on the photographs gives the same embeddings as the adapter on stored ones, but for float16
    scene.embed(scene.photos, store="t.zarr", backbone=name)
    whole = load_table(EmbeddingStore.open("t.zarr"), name)
    assert whole.keys == derived.keys
    scale = np.abs(np.asarray(derived.x_TND, np.float32)).max()
    np.testing.assert_allclose(_floats(whole), _floats(derived), atol=2e-3 * scale)
    scene.refused(*scene.embedding(scene.photos, store="s.zarr", backbone=name), kind="DifferentError", field=None)
    # photographs that came later
    scene.add(40)
    scene.embed(scene.photos, store="s.zarr")
    assert len(load_table(store, name).keys) == 18
    assert scene.ok("embed", "--store", "s.zarr", "--backbone", name)["derived"] == {name: "control:pixels"}
    assert len(load_table(store, name).keys) == 19


def test_an_adapter_does_not_go_to_a_store_that_holds_its_transformations_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.embed(scene.photos, store="s.zarr")
    name = _adapted(scene)
    monkeypatch.setattr(base, "REGISTRY", dict(base.REGISTRY))
    (scene.root / "held.toml").write_text(
        'transformations = [{ name = "grayscale", role = "held_out" }, "jpeg", "low_resolution"]'
    )
    scene.embed(scene.photos, "--suite", "held.toml", store="t.zarr")
    scene.refused("embed", "--store", "t.zarr", "--backbone", name, kind="ConfigError", field="backbone")


def _adapted(scene: Scene) -> str:
    """Name of an adapted backbone of s.zarr."""
    words = ("stage", "adapt", "s.zarr", "--backbone", "control:pixels", "--set", 'adapt.methods=["pisco"]')
    (result,) = scene.ok(*words, "--out", "a")["backbones"].values()
    return str(result["adapt"])


def _floats(table: EmbeddingTable) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(table.x_TND, np.float32)


def test_what_cannot_be_adapted_is_refused(scene: Scene) -> None:
    scene.embed(scene.photos, store="s.zarr")
    scene.refused("stage", "adapt", "s.zarr", "--backbone", "control:statistics", kind="StoreError")
    scene.refused("embed", "--store", "s.zarr", "--backbone", "adapt:missing.safetensors", kind="WeightsError")
    adapted = _adapted(scene)
    words = ("stage", "adapt", "s.zarr", "--backbone", adapted, "--out", "a")
    scene.refused(*words, kind="ConfigError", field="backbone")
    words = ("embed", "--store", "s.zarr", "--backbone", adapted)
    scene.refused(*words, "--part", "1/2", kind="ConfigError", field="--part")
    scene.refused(*words, "--set", "threads=1", kind="ConfigError", field="--set")
