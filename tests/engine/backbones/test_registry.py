from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import photograph, slow_after

from substyle.engine.backbones import registry, weights
from substyle.engine.backbones.families import controls
from substyle.engine.backbones.families import open_clip as open_clip_family
from substyle.engine.backbones.spec import Backbone
from substyle.errors import ConfigError


def canvases(count: int = 4) -> NDArray[np.uint8]:
    return np.stack([np.array(photograph(i, 224, 224)) for i in range(count)])


def load(name: str, checkpoint: Path | None = None, seed: int = 0) -> Backbone:
    return registry.load(name, registry.LoadContext(224, 4, seed, checkpoint))


def embed(backbone: Backbone) -> torch.Tensor:
    assert backbone.module is not None
    with torch.inference_mode():
        return torch.as_tensor(backbone.module(torch.from_numpy(canvases())))


@pytest.mark.parametrize("name", ["efficientnet", "timm:", "nothing:x", ""])
def test_bad_names_say_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError, match=r"timm:<model>.*open_clip:.*onnx:.*package:.*control:"):
        registry.check_name(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet50", "timm:resnet50"),
        ("hf-hub:timm/resnet50.a1_in1k@pool=avg", "timm:resnet50.a1_in1k@pool=avg"),
        ("ViT-B-16/openai", "open_clip:ViT-B-16/openai"),
        ("ViT-B-16", "open_clip:ViT-B-16/openai"),
        ("dinov2-base", "dinov2:base"),
    ],
)
def test_names_without_a_family_are_answered_with_the_name_to_type(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"allowed: {re.escape(meant)}( or .*)? \(did you mean that\?\)"):
        registry.check_name(name)


@pytest.mark.parametrize("name", ["timm:vit_bas_patch16_224", "package:resnet", "control:noise", "control:random:"])
def test_bad_models_say_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert caught.value.field == f"backbone {name}"


def test_counts_on_a_gpu_are_those_of_bincount() -> None:
    codes = torch.randint(0, 48, (5, 999), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    codes[3] = 47  # one value alone, at the end
    expected = torch.stack([torch.bincount(row, minlength=48) for row in codes])
    assert torch.equal(controls._counts(codes, 48), expected)
    flat = (codes + 48 * torch.arange(5, dtype=torch.int32)[:, None]).flatten()
    assert torch.equal(controls._scattered(flat, 5 * 48).view(5, 48).long(), expected)


def test_random_control_is_a_function_of_seed_and_photographs() -> None:
    one, again, other = (load("control:random:test_efficientnet", seed=seed) for seed in (0, 0, 1))
    assert one.spec.weights_hash == again.spec.weights_hash != other.spec.weights_hash
    assert one.spec.control
    spread = embed(one).std(0).mean()
    assert spread > 1e-4  # recalibration keeps activations alive
    state = torch.random.get_rng_state()
    load("control:random:test_efficientnet")
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Architectures of open_clip with one layer each, which are made and saved ten times as fast."""
    from open_clip import factory

    for name, vision in (
        ("RN50", {"layers": [1, 1, 1, 1], "width": 16}),
        *((name, {"layers": 1}) for name in ("ViT-B-16", "ViT-B-16-quickgelu")),
    ):
        config = copy.deepcopy(factory._MODEL_CONFIGS[name])
        config["vision_cfg"] |= vision
        config["text_cfg"] |= {"layers": 1, "vocab_size": 64}
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)


@pytest.mark.usefixtures("few_layers")
def test_open_clip_checkpoint(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("RN50", pretrained=None)
    path = tmp_path / "clip.pt"
    torch.save(model.state_dict(), path)
    backbone = load(f"open_clip:RN50/{path}")
    assert backbone.spec.dim == 1024
    assert backbone.spec.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert backbone.module is not None
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), model.eval().encode_image(x))


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize(
    ("architecture", "tag"),
    [("ViT-B-16", "openai"), pytest.param("ViT-B-16", "laion2b_s34b_b88k", marks=pytest.mark.slow)],
)
def test_open_clip_activation_is_that_of_the_weights(tmp_path: Path, architecture: str, tag: str) -> None:
    import open_clip

    torch.manual_seed(0)
    right = architecture + ("-quickgelu" if tag == "openai" else "")
    model = open_clip.create_model(right, pretrained=None)
    path = tmp_path / "clip.pt"
    torch.save(model.state_dict(), path)
    backbone = load(f"open_clip:{architecture}/{tag}", path)
    assert backbone.module is not None
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), model.eval().encode_image(x))


@pytest.mark.parametrize(
    "name", ["MobileCLIP-S1/datacompdr", "MobileCLIP-S1/file", "ViT-B-16-SigLIP/file", "RN50/file"]
)
def test_open_clip_levels_are_those_of_the_weights(name: str) -> None:
    import open_clip

    architecture, _, tag = name.partition("/")
    first = open_clip.list_pretrained_tags_by_model(architecture)[0]
    expected = open_clip.get_pretrained_cfg(architecture, first if tag == "file" else tag)
    found = open_clip_family._trained(architecture, tag)
    assert (tuple(found["mean"]), tuple(found["std"])) == (tuple(expected["mean"]), tuple(expected["std"]))


@pytest.mark.parametrize(
    ("given", "taken", "key"),
    slow_after(
        1,
        [
            ("vit_tiny_patch16_384", "vit_tiny_patch16_224", r"pos_embed \[1, 577, 192\], not \[1, 197, 192\]"),
            ("vit_small_patch32_224", "vit_small_patch16_224", r"patch_embed.proj.weight .*, not .*16, 16\]"),
        ],
    ),
)
def test_weights_of_another_patch_or_side_are_not_resampled(tmp_path: Path, given: str, taken: str, key: str) -> None:
    import timm

    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(given, pretrained=False).state_dict(), path)
    with pytest.raises(weights.WeightsError, match=rf"weights\.pth .*{key}"):
        load(f"timm:{taken}", path)


@pytest.fixture
def tiny_coca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A CoCa of open_clip, whose image tower gives tokens beside its embedding, in the working directory as a file."""
    import open_clip

    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1, "embed_cls": True}
    decoder = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": decoder, "custom_text": True}
    path = tmp_path / "coca_tiny.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    model = open_clip.create_model("coca_tiny", pretrained=None).eval()
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), "weights.pth")
    assert isinstance(model, torch.nn.Module)
    return model


@pytest.mark.parametrize("file", ["weights.pth", "weights.ckpt", "last"])
def test_a_file_in_the_place_of_a_tag(tiny_coca: torch.nn.Module, file: str) -> None:
    Path("weights.pth").rename(file)
    name = f"open_clip:coca_tiny/{file}"
    backbone = load(name)
    assert backbone.spec.weights == f"checkpoint {file}"
    assert registry.identity(name, registry.LoadContext(224, 2, 0, None)) is not None
    assert backbone.module is not None
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = tiny_coca.encode_image(x, normalize=False)  # type: ignore[operator]
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), expected)
    assert load(f"{name}@mean=0:0.5:1").spec.mean == (0.0, 0.5, 1.0)
    with pytest.raises(ConfigError) as caught:
        load("open_clip:coca_tiny/nothing.pth")
    assert caught.value.field == "open_clip:coca_tiny/nothing.pth: checkpoint"


def test_open_clip_names() -> None:
    for name, given, near in (
        ("open_clip:ViT-B-61/openai", "ViT-B-61", "ViT-B-16"),
        ("open_clip:ViT-B-16/nobody", "nobody", "openai"),
    ):
        with pytest.raises(ConfigError, match=near) as caught:
            load(name)
        assert (caught.value.field, caught.value.given) == (f"backbone {name}", given)


def test_hub_out_of_reach_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, repository in (
        ("timm:vit_base_patch16_224.mae", r"timm/vit_base_patch16_224\.mae"),
        ("open_clip:ViT-B-16/openai", r"timm/vit_base_patch16_clip_224\.openai"),
    ):
        with pytest.raises(weights.WeightsError, match=rf"{repository}.*{tmp_path}.*checkpoint = path"):
            load(name)
