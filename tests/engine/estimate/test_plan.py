"""Plans against sums by hand, published operation counts, and the rules of a roofline."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from substyle.engine.backbones import registry
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.estimate import roofline
from substyle.engine.estimate.plan import BATCH, plan
from substyle.engine.estimate.roofline import DEVICES, FULL, Device, Efficiency, Work, card_of, device, of_network
from substyle.kernels.errors import ConfigError
from substyle.pipelines.transforms.registry import suite

H100 = DEVICES["h100"]
SUITE = suite("substance31")


def test_a_linear_layer_is_counted_by_hand() -> None:
    work = of_network(nn.Linear(10, 20, bias=False), torch.empty(4, 10))
    assert work.products == [(2.0 * 4 * 10 * 20, 2.0 * (4 * 10 + 10 * 20 + 4 * 20))]
    assert work.flop == 400.0


def test_a_convolution_is_counted_by_hand() -> None:
    work = of_network(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), torch.empty(2, 3, 16, 16))
    assert work.products == [(2.0 * 2 * 8 * 3 * 9 * 8 * 8, 2.0 * (2 * 3 * 256 + 8 * 27 + 2 * 8 * 64))]


def test_scores_of_attention_move_nothing() -> None:
    q = torch.empty(3, 50, 8)

    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)

    work = of_network(Attention(), q)
    assert [moved for _, moved in work.products] == [2.0 * 2 * q.numel()] * 2


@pytest.mark.parametrize(
    ("name", "dim", "gflop", "million"),
    [  # multiply-adds x 2 and parameters without classifier, of timm's result files
        ("timm:vit_base_patch16_224.mae", 768, 35.1, 85.8),
        ("control:random:resnet50", 2048, 8.2, 23.5),
        ("package:efficientnet_lite0", 1280, 0.77, 3.4),
        ("package:mobilenet_v2", 1280, 0.6, 2.2),
        ("package:clip_vit_b16", 512, 35.1, 86.2),
        ("package:clip_vit_b16@head=none", 768, 35.1, 85.8),
    ],
)
def test_known_networks(name: str, dim: int, gflop: float, million: float) -> None:
    facts = roofline.backbone(name, 8)
    assert facts.dim == dim
    assert facts.work.flop / 1e9 == pytest.approx(gflop, rel=0.02)
    assert facts.parameters / 1e6 == pytest.approx(million, rel=0.02)


def test_an_image_tower_of_open_clip() -> None:
    facts = roofline.backbone("open_clip:ViT-B-32/openai", 2)
    assert facts.dim == 512
    assert facts.work.flop / 1e9 == pytest.approx(8.8, rel=0.03)  # 4.4 GMACs, open_clip's model profile


@pytest.mark.parametrize(("architecture", "dim"), [("coca_ViT-B-32", 512), ("roberta-ViT-B-32", 512)])
def test_towers_whose_text_needs_more(architecture: str, dim: int) -> None:
    """CoCa's also gives tokens; text towers of others ask a hub for their configuration."""
    assert roofline.backbone(f"open_clip:{architecture}", 2).dim == dim


@pytest.mark.parametrize("model", ["resnest14d", "test_vit_relpos", "test_vit2"])
def test_a_layer_of_networks_that_normalise_one_picture_or_have_no_class_token(model: str) -> None:
    assert roofline.backbone(f"timm:{model}@layer=-1", 1).dim == roofline.backbone(f"timm:{model}", 1).dim


def test_a_network_that_looks_at_its_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.max())

    monkeypatch.setattr(roofline.timm_family, "create", lambda model: Looks(1, 1))
    with pytest.raises(ConfigError) as caught:
        roofline.backbone("timm:test_vit", 1)
    assert (caught.value.field, caught.value.given) == ("backbone timm:test_vit", "test_vit")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_align_is_planned_wherever_it_is_read(pool: str) -> None:
    pytest.importorskip("transformers")
    assert roofline.backbone(f"align:base@pool={pool}", 1).dim == 640
    with pytest.raises(ConfigError, match="avg, max"):
        roofline.backbone("align:base@pool=cls", 1)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("timm:vit_base_patch16_224.nonsense", r"vit_base_patch16_224\.mae"),
        ("timm:vit_bas_patch16_224", "vit_base_patch16_224"),
        ("timm:test_vit.", r"test_vit, test_vit\.r160_in1k"),
        ("control:random:test_vit.nonsense", r"test_vit\.r160_in1k"),
        ("control:noise", "pixels, statistics, random"),
        ("open_clip:ViT-B-32/nonsense", "openai"),
        ("open_clip:ViT-B-3/openai", "ViT-B-32"),
        ("package:resnet", "efficientnet_lite0"),
    ],
)
def test_a_plan_refuses_the_names_that_embed_refuses(name: str, allowed: str) -> None:
    context = LoadContext(64, 2, 0, None)
    for take in (lambda: roofline.backbone(name, 1), lambda: registry.load(name, context)):
        with pytest.raises(ConfigError) as caught:
            take()
        assert re.search(allowed, caught.value.allowed)


def test_styles_share_what_precedes_the_first_normalisation() -> None:
    one = roofline.styles(("identity", "style_wave"), 224)
    two = roofline.styles(("identity", "style_wave", "style_glass"), 224)
    assert one.flop < two.flop <= 2 * one.flop
    assert roofline.styles(("identity", "grayscale"), 224).products == []


def test_the_slower_of_arithmetic_and_traffic_decides() -> None:
    work = Work([(100.0, 1.0), (1.0, 100.0)], images=1)
    assert work.seconds(Device("x", 100.0, 10.0, 1.0), FULL) == pytest.approx(1.0 + 10.0)
    assert work.seconds(Device("x", 100.0, 10.0, 1.0), Efficiency(0.5, 0.1)) == pytest.approx(2.0 + 100.0)


def test_a_plan_adds_up() -> None:
    made = plan(["timm:vit_base_patch16_224"], SUITE, 1000, H100)
    answer = made.describe()
    assert answer["embeddings"] == 31_000
    assert answer["store_bytes"] == 31_000 * 768 * 2
    assert made.seconds == pytest.approx(1000 * sum(stage["seconds"] for stage in answer["stages"]))
    assert made.limiting.name == "timm:vit_base_patch16_224"
    assert 0.5 < made.backbone_share < 1.0
    assert answer["embeddings_per_s"] == pytest.approx(31_000 / made.seconds)
    assert 0 < made.memory < H100.memory
    # at full peak nothing is faster than its operations allow
    ideal = plan(["timm:vit_base_patch16_224"], SUITE, 1000, H100, efficiency=FULL)
    assert ideal.limiting.seconds >= ideal.limiting.flop / H100.flops


def test_the_cost_of_each_backbone_and_of_what_they_share() -> None:
    names = ["timm:vit_base_patch16_224", "control:random:test_resnet", "control:pixels"]
    made = plan(names, SUITE, 3600, H100, count=2)
    answer = made.describe()
    assert [table["backbone"] for table in answer["tables"]] == names
    assert sum(table["store_bytes"] for table in answer["tables"]) == answer["store_bytes"]
    assert sum(stage["gpu_hours"] for stage in answer["stages"]) == pytest.approx(answer["gpu_hours"])
    seconds = {stage["name"]: stage["seconds"] for stage in answer["stages"]}
    for table in answer["tables"][:2]:
        assert table["gpu_hours"] == pytest.approx(seconds[table["backbone"]])  # 3600 photographs take hours of seconds
        assert table["embeddings_per_s"] == pytest.approx(31 / seconds[table["backbone"]])
    assert (answer["tables"][2]["embeddings_per_s"], answer["tables"][2]["gpu_hours"]) == (None, 0.0)
    # what takes no time is stored, and is no part of the rate
    assert answer["embeddings"] == 3 * 31 * 3600
    assert answer["embeddings_per_s"] == pytest.approx(2 * 31 * 3600 / made.seconds)


def test_controls_alone_have_no_rate() -> None:
    answer = plan(["control:pixels", "control:statistics"], SUITE, 10, H100).describe()
    assert (answer["embeddings"], answer["embeddings_per_s"]) == (620, None)


def test_measured_shares_take_the_place_of_assumed_ones() -> None:
    def stages(efficiency: Efficiency) -> dict[str, float]:
        made = plan(["control:random:test_resnet"], SUITE, 10, H100, efficiency=efficiency)
        return {stage.name: stage.seconds for stage in made.stages}

    full = stages(FULL)
    found = stages(Efficiency(decode_bytes=1e8, backbones=0.5, styles=0.25, variants=0.1))
    assert found["decode"] == pytest.approx(1e8 / H100.bandwidth)
    assert found["control:random:test_resnet"] == pytest.approx(full["control:random:test_resnet"] / 0.5)
    assert found["styles"] == pytest.approx(full["styles"] / 0.25)
    assert found["variants"] == pytest.approx(full["variants"] / 0.1)


def test_more_gpus_faster_ones_and_more_photographs() -> None:
    def hours(photographs: int, gpu: str, count: int) -> float:
        made = plan(["control:random:test_resnet"], SUITE, photographs, DEVICES[gpu], count=count)
        return float(made.describe()["hours"])

    assert hours(2000, "h100", 1) == pytest.approx(2 * hours(1000, "h100", 1))
    assert hours(1000, "h100", 4) == pytest.approx(hours(1000, "h100", 1) / 4)
    assert hours(1000, "h200", 1) < hours(1000, "h100", 1) < hours(1000, "a100", 1) < hours(1000, "l4", 1)


@pytest.mark.parametrize(("photographs", "held"), [(1_000, "float16"), (1_500_000, "int8"), (4_000_000, "streamed")])
def test_how_probes_hold_a_table(photographs: int, held: str) -> None:
    table = plan(["timm:vit_base_patch16_224"], SUITE, photographs, H100).tables[0]
    assert table.held == held
    assert table.held_bytes <= 0.8 * H100.memory
    assert table.store_bytes == photographs * 31 * 768 * 2


def test_a_suite_of_identity_alone_has_no_variants_to_make() -> None:
    stages = {stage.name: stage for stage in plan(["control:pixels"], ("identity",), 10, H100).stages}
    assert stages["variants"].seconds == stages["styles"].seconds == 0.0
    assert stages["control:pixels"].seconds == 0.0
    assert BATCH == 256


@pytest.mark.parametrize(
    ("name", "given"),
    [("timm:no_such", "no_such"), ("onnx:x.onnx", "onnx"), ("package:x", "x")],
)
def test_backbones_that_cannot_be_planned_for(name: str, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        roofline.backbone(name, 2)
    assert (caught.value.field, caught.value.given) == (f"backbone {name}", given)


def test_unknown_gpus_and_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="h100, h200, a100, l4"):
        device("h900")
    for name in ("compute", "bandwidth", "backbones", "styles"):
        with pytest.raises(ConfigError) as caught:
            Efficiency(**{name: 1.5})
        assert (caught.value.field, caught.value.given) == (f"efficiency.{name}", 1.5)
    for name in ("decode_bytes", "variants"):
        with pytest.raises(ConfigError) as caught:
            Efficiency(**{name: 0.0})
        assert (caught.value.field, caught.value.given) == (f"efficiency.{name}", 0.0)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_cards_by_the_names_of_their_drivers(name: str, card: str | None) -> None:
    assert card_of(name) == card
