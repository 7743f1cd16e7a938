from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from substyle.engine.backbones import registry, weights
from substyle.engine.backbones.presets import PRESETS
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "can:small", dataclasses.replace(PRESETS["can:base"], model="test_vit", side=160))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    made: torch.nn.Module = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    return made


def load(checkpoint: Path, name: str = "can:small") -> Backbone:
    return registry.load(name, LoadContext(224, 2, 0, checkpoint))


def flax(network: torch.nn.Module, style: str) -> dict[str, np.ndarray]:
    """The network's weights as a release of Flax parameters names and lays them out."""
    attention, mlp, second = {"augreg": (1, 3, 2), "scenic": (0, 0, 1), "big_vision": (0, 0, 1)}[style]
    heads = network.blocks[0].attn.num_heads
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    width = state["norm.bias"].shape[0]
    out = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    position = "pos_embedding" if style == "big_vision" else "Transformer/posembed_input/pos_embedding"
    out[position] = state["pos_embed"][:, 1:] if style == "big_vision" else state["pos_embed"]
    for i in range(len(network.blocks)):
        block, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for part, kernel, bias in zip(
            ("query", "key", "value"),
            np.split(state[f"{block}attn.qkv.weight"], 3),
            np.split(state[f"{block}attn.qkv.bias"], 3),
            strict=True,
        ):
            name = f"{theirs}MultiHeadDotProductAttention_{attention}/{part}/"
            out[f"{name}kernel"] = kernel.T.reshape(width, heads, -1)
            out[f"{name}bias"] = bias.reshape(heads, -1)
        name = f"{theirs}MultiHeadDotProductAttention_{attention}/out/"
        out[f"{name}kernel"] = state[f"{block}attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{name}bias"] = state[f"{block}attn.proj.bias"]
        for number in (0, 1):
            name = f"{theirs}MlpBlock_{mlp}/Dense_{number}/"
            out[f"{name}kernel"] = state[f"{block}mlp.fc{number + 1}.weight"].T
            out[f"{name}bias"] = state[f"{block}mlp.fc{number + 1}.bias"]
        for number, ours in ((0, "norm1"), (second, "norm2")):
            out[f"{theirs}LayerNorm_{number}/scale"] = state[f"{block}{ours}.weight"]
            out[f"{theirs}LayerNorm_{number}/bias"] = state[f"{block}{ours}.bias"]
    return out


def same(backbone: Backbone, network: torch.nn.Module) -> None:
    assert backbone.module is not None
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        tokens = network.forward_features(x)
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), tokens[:, 1:].mean(1))
    assert (backbone.spec.pooling, backbone.spec.mean) == ("avg", (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("style", "under", "beside"),
    [
        ("scenic", "opt/target/", ["opt/state/step", "opt/target/decoder/Dense_0/kernel"]),
        ("big_vision", "params/", ["params/head/kernel", "params/projection_head/Dense_0/bias"]),
        ("augreg", "", ["head/kernel", "head/bias", "pre_logits/kernel"]),
    ],
)
def test_flax_parameters(network: torch.nn.Module, tmp_path: Path, style: str, under: str, beside: list[str]) -> None:
    if style == "big_vision":  # adds positions before the class token, which has none
        with torch.no_grad():
            network.pos_embed[:, 0] = 0
    arrays = {f"{under}{key}": value for key, value in flax(network, style).items()}
    arrays |= {key: np.zeros((2, 2), np.float32) for key in beside}
    np.savez(tmp_path / "w.npz", **arrays)
    same(load(tmp_path / "w.npz"), network)
    arrays[f"{under}Transformer/encoderblock_0/Adapter_0/kernel"] = np.zeros(2)
    del arrays[f"{under}Transformer/encoder_norm/bias"]
    np.savez(tmp_path / "w.npz", **arrays)
    misfit = r"1 keys missing \[norm\.bias\], 1 unexpected \[Transformer/encoderblock_0/Adapter_0/kernel\]"
    with pytest.raises(weights.WeightsError, match=misfit):
        load(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("", ["mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight", "projection_head.0.weight"]),
        ("encoder.", ["decoder.blocks.0.norm1.weight", "projector.0.weight"]),
        ("module.encoder.", []),
    ],
)
def test_pytorch_layouts(network: torch.nn.Module, tmp_path: Path, prefix: str, beside: list[str]) -> None:
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": state | {key: torch.zeros(2) for key in beside}}, tmp_path / "checkpoint-799.pth")
    same(load(tmp_path / "checkpoint-799.pth"), network)
    torch.save({"model": state | {f"{prefix}surprise": torch.zeros(2)}}, tmp_path / "checkpoint-799.pth")
    with pytest.raises(weights.WeightsError, match=r"1 unexpected \[surprise\]"):
        load(tmp_path / "checkpoint-799.pth")


def test_a_timm_backbone_takes_flax_parameters_too(network: torch.nn.Module, tmp_path: Path) -> None:
    np.savez(tmp_path / "B_16.npz", **flax(network, "augreg"))
    backbone = load(tmp_path / "B_16.npz", "timm:test_vit")
    assert backbone.module is not None
    x = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), network(x))
