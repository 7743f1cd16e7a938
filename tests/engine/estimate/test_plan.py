"""Plans against sums by hand, published operation counts, and the rules of a roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from substyle.engine.config import BackboneChoice, Study
from substyle.engine.estimate import networks, roofline
from substyle.engine.estimate.plan import plan
from substyle.engine.estimate.roofline import Device
from substyle.errors import ConfigError

# Peaks by NVIDIA's data sheets (dense fp16 products summed in float32). Fractions of them are those of the ViTs.
CARDS = {
    "RTX PRO 6000 Max-Q": Device("RTX PRO 6000 Max-Q", 438.9e12, 110e12, 1.792e12, 96e9, 0.42, "timm"),
    "RTX 5090": Device("RTX 5090", 209.5e12, 104.8e12, 1.792e12, 32e9, 0.76, "timm"),
    "RTX 4090": Device("RTX 4090", 165.2e12, 82.6e12, 1.008e12, 24e9, 0.76, "timm"),
}
# Images/s at 224 pixels on those cards, by torch.compile in amp: results/benchmark-infer-amp-nchw-{pt291-cu130-
# pro6000maxq, pt291-cu130-5090, pt240-cu124-rtx4090}-dynamo.csv of huggingface/pytorch-image-models, aa4b5850
PUBLISHED = {
    "resnet18": (35768.11, 35635.29, 25948.79),
    "resnet50": (12188.25, 12400.78, 8237.46),
    "resnet152": (5357.05, 5330.92, 3646.55),
    "vgg16": (5719.04, 5358.29, 3839.88),
    "convnext_tiny": (9413.54, 9524.46, 6713.74),
    "tf_efficientnet_lite0": (25399.61, 26644.88, 17685.01),
    "mobilenetv2_100": (26548.99, 27591.89, 18995.91),
    "mobilenetv3_large_100": (32507.57, 34721.93, 24474.85),
    "vit_small_patch16_224": (13517.15, 13438.54, 9665.97),
    "vit_base_patch16_224": (4741.58, 4378.83, 3345.67),
    "vit_large_patch16_224": (1509.84, 1338.7, 1041.62),
    "mixer_b16_224": (5241.51, 5105.51, 3841.01),
}
OPTIMISTIC = {
    "efficientnet_b0": (17361.19, 18234.44, 11670.69),
    "densenet121": (9364.37, 10178.85, 6580.95),
    "swin_tiny_patch4_window7_224": (7115.53, 7332.9, 5039.45),
    "regnety_032": (6405.82, 6656.33, 5575.12),
}


@pytest.mark.parametrize(("name", "lowest", "highest"), [
    *((name, 1 / 1.35, 1.35) for name in PUBLISHED), *((name, 1.0, 2.4) for name in OPTIMISTIC),
])  # fmt: skip
def test_rates_of_networks_are_those_published(name: str, lowest: float, highest: float) -> None:
    """Within 35 %; of networks with more between their products, at most 2.4 times too many."""
    work = networks.backbone(f"timm:{name}", 256).work
    for card, rate in zip(CARDS.values(), (PUBLISHED | OPTIMISTIC)[name], strict=True):
        assert lowest < 1 / work.seconds(card) / rate < highest, card.name


def test_layers_in_fp8() -> None:
    """Products of attention, and bytes, stay those of 16 bits; a network that is bound by its bytes gains nothing."""
    card = roofline.device("h100")
    for name, lowest, highest in (("vit_base_patch16_224", 1.3, 1.6), ("vit_small_patch16_224", 1.0, 1.01)):
        work = networks.backbone(f"timm:{name}", 256).work
        assert lowest <= work.seconds(card) / work.seconds(card, fp8=True) < highest
    backbones = [BackboneChoice("control:pixels"), BackboneChoice("timm:vit_base_patch16_224", precision="fp8")]
    study = Study(name="x", suite="mini5", backbones=backbones)
    sixteen = replace(study, backbones=[replace(each, precision=None) for each in backbones])
    hours = [plan(each, 10_000, card).backbones for each in (study, sixteen)]
    assert hours[0][0] == hours[1][0]
    assert hours[0][1].gpu_hours < 0.8 * hours[1][1].gpu_hours
    with pytest.raises(ConfigError, match="A100 SXM 80GB has no fp8"):
        plan(study, 10_000, roofline.device("a100"))


def test_an_image_tower_of_open_clip() -> None:
    facts = networks.backbone("open_clip:ViT-B-32/openai", 2)
    assert facts.dim == 512
    assert facts.work.flop / 1e9 == pytest.approx(8.8, rel=0.03)  # 4.4 GMACs, open_clip's model profile


def test_a_network_that_looks_at_its_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.max())

    monkeypatch.setattr(networks.timm, "create", lambda model: Looks(1, 1))
    with pytest.raises(ConfigError) as caught:
        networks.backbone("timm:test_vit", 1)
    assert (caught.value.field, caught.value.given) == ("backbone timm:test_vit", "test_vit")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("name", "given"),
    [("timm:no_such", "no_such"), ("onnx:x.onnx", "onnx"), ("package:x", "x")],
)
def test_backbones_that_cannot_be_planned_for(name: str, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        networks.backbone(name, 2)
    assert (caught.value.field, caught.value.given) == (f"backbone {name}", given)
