from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tests.conftest import slow_after
from timm.data import resolve_model_data_config

from substyle.engine.backbones import presets, registry, weights
from substyle.engine.backbones.presets import PRESETS, Preset
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone
from substyle.engine.estimate import networks as estimated
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread", "counted_once")


def load(name: str, checkpoint: Path | None = None) -> Backbone:
    return registry.load(name, LoadContext(224, 2, 0, checkpoint))


# the first of each family in the fast set: of timm's others the next test compares the width
FIRST = {preset.family: preset.name for preset in reversed(PRESETS.values())}.values()


@pytest.mark.parametrize(
    "name",
    [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS],
)
def test_a_row_has_the_width_of_its_network(name: str) -> None:
    facts = estimated.backbone(name, 1)
    assert facts.dim == PRESETS[name].dim
    assert facts.parameters > 10_000_000


@pytest.mark.parametrize(
    "preset", slow_after(8, [p for p in PRESETS.values() if p.loader == presets.TIMM]), ids=lambda p: p.name
)
def test_a_timm_row_says_what_timm_says(preset: Preset) -> None:
    config = timm.get_pretrained_cfg(preset.model)
    with torch.device("meta"):
        network = timm.create_model(preset.model, pretrained=False, num_classes=0)
    seen = resolve_model_data_config(network)
    assert preset.dim == network.num_features
    assert preset.licence == config.license
    assert preset.weights == f"timm hub: {config.hf_hub_id}"
    assert (preset.mean, preset.std) == (tuple(seen["mean"]), tuple(seen["std"]))
    assert (preset.side == seen["input_size"][-1]) is not preset.side_given
    own = getattr(network, "global_pool", None)
    if isinstance(own, str):
        assert preset.pooling == own


@pytest.mark.parametrize("name", ["clip:base", "clip:large"])
def test_a_clip_row_says_what_open_clip_says(name: str) -> None:
    import open_clip

    preset = PRESETS[name]
    architecture, _, tag = preset.model.partition("/")
    config = open_clip.get_pretrained_cfg(architecture, tag)
    assert (preset.mean, preset.std) == (config["mean"], config["std"])
    assert preset.weights == f"open_clip: {config['hf_hub'].strip('/')}"
    assert config["quick_gelu"]
    assert open_clip.get_model_config(architecture)["quick_gelu"]


def test_a_size_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mae:tiny.*mae:base, mae:large, mae:huge"):
        registry.check_name("mae:tiny")
    registry.check_name("mae:base@layer=6,pool=avg")


@pytest.mark.parametrize("name", ["simclr:resnet50", "align:base"])
def test_published_weights_without_a_preset_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r":hf-hub:(lightly-ai/simclr|kakaobrain/align).* \(did you mean that\?\)"):
        registry.check_name(name)


def test_what_no_hub_has_asks_for_a_checkpoint(tmp_path: Path) -> None:
    name = "can:base"
    with pytest.raises(weights.WeightsError, match="checkpoint = path"):
        load(name)
    with pytest.raises(ConfigError) as caught:
        load(name, tmp_path / "nothing")
    assert (caught.value.field, caught.value.given) == (f"{name}: checkpoint", str(tmp_path / "nothing"))


def test_every_kind_of_misfit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    del state["norm.bias"]
    state["blocks.0.mlp.fc1.bias"] = torch.zeros(3)
    state["more"] = torch.zeros(3)
    torch.save(state, tmp_path / "w.pth")
    expected = (
        r"w\.pth .*\[norm\.bias\], 1 unexpected \[more\], "
        r"1 of another shape \[blocks\.0\.mlp\.fc1\.bias \[3\], not \[\d+\]\]"
    )
    with pytest.raises(weights.WeightsError, match=expected):
        load("timm:test_vit", tmp_path / "w.pth")


class Code:
    """What a checkpoint could run if it were trusted."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must not be printed",)


def test_checkpoints_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"x": Code()}}, tmp_path / "w.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    np.savez(tmp_path / "w.npz", x=np.array([Code()], dtype=object))
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 20)
    for name in ("w.pth", "text.pth", "w.npz", "w.safetensors"):
        with pytest.raises(weights.WeightsError, match=f"^timm:test_vit: .*{name}"):
            load("timm:test_vit", tmp_path / name)
    assert capsys.readouterr().out == ""


def test_dinov2_by_the_names_of_transformers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224)
    renamed = {"embeddings.mask_token": torch.zeros(1, 384)}
    for key, value in network.state_dict().items():
        if ".qkv." in key:
            block, kind = key.split(".")[1], key.rpartition(".")[2]
            for part, each in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = each.clone()
            continue
        for old, new in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
        ):
            key = key.replace(old, new)  # noqa: PLW2901
        renamed["layernorm" + key[4:] if key.startswith("norm.") else key] = value
    save_file(renamed, tmp_path / "model.safetensors")
    backbone = load("dinov2:small", tmp_path / "model.safetensors")
    assert backbone.spec.input_side == 224
    assert backbone.module is not None
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), network.eval()(x))
