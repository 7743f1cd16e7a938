"""Plans against sums by hand, published operation counts, and the rules of a roofline."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from tests.conftest import slow_after
from torch import nn

from substyle.engine.backbones import registry
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.estimate import plan as estimated
from substyle.engine.estimate import stages
from substyle.engine.estimate.counting import of_network
from substyle.engine.estimate.plan import PRODUCTS, Plan
from substyle.engine.estimate.roofline import (
    BANDWIDTH,
    DEVICES,
    FLOAT32,
    FULL,
    TENSOR,
    Device,
    Efficiency,
    Launch,
    Work,
    card_of,
    device,
)  # fmt: skip
from substyle.engine.probes.config import ProbeConfig
from substyle.kernels.errors import ConfigError
from substyle.pipelines.transforms.registry import suite

pytestmark = pytest.mark.usefixtures("counted_once")

H100 = DEVICES["h100"]
SUITE = suite("substance31")
# few probes: counting them takes most of the time
plan = partial(estimated.plan, probes=ProbeConfig(tasks=("fine",), heads=("mlp",)))


def test_a_linear_layer_is_counted_by_hand() -> None:
    work = of_network(nn.Linear(10, 20, bias=False), torch.empty(4, 10))
    assert work.launches == [Launch(2.0 * 4 * 10 * 20, 2.0 * (4 * 10 + 10 * 20 + 4 * 20), product=True)]
    assert work.flop == 400.0


def test_a_convolution_is_counted_by_hand() -> None:
    work = of_network(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), torch.empty(2, 3, 16, 16))
    moved = 2.0 * (2 * 3 * 256 + 8 * 27 + 2 * 8 * 64)
    assert work.launches == [Launch(2.0 * 2 * 8 * 3 * 9 * 8 * 8, moved, product=True)]


def test_scores_of_attention_move_nothing() -> None:
    q = torch.empty(3, 50, 8)

    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)

    work = of_network(Attention(), q)
    assert [launch.moved for launch in work.launches] == [2.0 * 2 * q.numel()] * 2


@pytest.mark.parametrize(
    ("name", "dim", "gflop", "million"),
    slow_after(
        3,
        [  # multiply-adds x 2 and parameters without classifier, of timm's result files
            ("timm:vit_base_patch16_224.mae", 768, 35.1, 85.8),
            ("control:random:resnet50", 2048, 8.2, 23.5),
            ("package:efficientnet_lite0", 1280, 0.77, 3.4),
            ("package:mobilenet_v2", 1280, 0.6, 2.2),
            ("package:clip_vit_b16", 512, 35.1, 86.2),
            ("package:clip_vit_b16@head=none", 768, 35.1, 85.8),
        ],
    ),
)
def test_known_networks(name: str, dim: int, gflop: float, million: float) -> None:
    facts = stages.backbone(name, 8)
    assert facts.dim == dim
    assert facts.work.flop / 1e9 == pytest.approx(gflop, rel=0.02)
    assert facts.parameters / 1e6 == pytest.approx(million, rel=0.02)


def test_an_image_tower_of_open_clip() -> None:
    facts = stages.backbone("open_clip:ViT-B-32/openai", 2)
    assert facts.dim == 512
    assert facts.work.flop / 1e9 == pytest.approx(8.8, rel=0.03)  # 4.4 GMACs, open_clip's model profile


@pytest.mark.parametrize(("architecture", "dim"), [("coca_ViT-B-32", 512), ("roberta-ViT-B-32", 512)])
def test_towers_whose_text_needs_more(architecture: str, dim: int) -> None:
    """CoCa's also gives tokens; text towers of others ask a hub for their configuration."""
    assert stages.backbone(f"open_clip:{architecture}", 2).dim == dim


@pytest.mark.parametrize("model", ["resnest14d", "test_vit_relpos", "test_vit2"])
def test_a_layer_of_networks_that_normalise_one_picture_or_have_no_class_token(model: str) -> None:
    assert stages.backbone(f"timm:{model}@layer=-1", 1).dim == stages.backbone(f"timm:{model}", 1).dim


def test_a_network_that_looks_at_its_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.max())

    monkeypatch.setattr(stages.timm, "create", lambda model: Looks(1, 1))
    with pytest.raises(ConfigError) as caught:
        stages.backbone("timm:test_vit", 1)
    assert (caught.value.field, caught.value.given) == ("backbone timm:test_vit", "test_vit")
    assert isinstance(caught.value.__cause__, RuntimeError)


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
    for take in (lambda: stages.backbone(name, 1), lambda: registry.load(name, context)):
        with pytest.raises(ConfigError) as caught:
            take()
        assert re.search(allowed, caught.value.allowed)


def test_styles_share_what_precedes_the_first_normalisation() -> None:
    one = stages.styles(("identity", "style_wave"), 224)
    two = stages.styles(("identity", "style_wave", "style_glass"), 224)
    assert one.flop < two.flop <= 2 * one.flop
    assert stages.styles(("identity", "grayscale"), 224).launches == []


def test_the_slower_of_arithmetic_and_traffic_decides() -> None:
    work = Work([Launch(100.0, 1.0, product=True), Launch(1.0, 100.0), Launch(50.0, 1.0)], images=2)
    card = Device("x", flops=100.0, float32=5.0, bandwidth=10.0, copies=1.0, memory=1.0, reached=1.0, source="")
    assert work.busy(card, FULL) == {TENSOR: 0.5, FLOAT32: 5.0, BANDWIDTH: 5.0}
    assert work.times(card, FULL) == pytest.approx(((1.0 + 10.0) / 2, 10.0 / 2))
    assert work.seconds(card, Efficiency(0.5, 0.1)) == pytest.approx((2.0 + 100.0 + 20.0) / 2)


VIT = "timm:vit_base_patch16_224"


def test_a_plan_adds_up() -> None:
    made = plan([VIT], SUITE, 1000, H100)
    (decode, variants, styles, vit), (table,) = made.stages, made.tables
    assert [stage.name for stage in made.stages] == ["decode", "variants", "styles", VIT]
    assert made.store_bytes == table.store_bytes == 31_000 * 768 * 2
    total = sum(stage.seconds for stage in made.stages)
    assert (made.limiting, made.busy["GPU compute"]) == ("GPU compute", pytest.approx(total))
    assert made.hours == pytest.approx(1000 * total / 3600)
    assert made.of_backbone_rate == pytest.approx(vit.seconds / total)
    assert made.mean_variant_us == pytest.approx(1e6 * (variants.seconds + styles.seconds) / 30)
    assert made.embeddings_per_s == pytest.approx(31 / total)
    assert 0 < made.memory_bytes < H100.memory
    assert all(stage.seconds == pytest.approx(stage.compute + stage.bandwidth) for stage in made.stages)
    assert made.describe()["stages"][0]["name"] == decode.name
    # at full peak nothing is faster than its operations allow
    ideal = plan([VIT], SUITE, 1000, H100, efficiency=FULL)
    assert ideal.stages[-1].seconds >= ideal.stages[-1].flop / H100.flops


def test_the_stages_are_those_that_were_counted() -> None:
    made = {stage.name: stage for stage in plan([VIT], SUITE, 1000, H100).stages}
    counted = {
        "decode": stages.decode(224),
        "variants": stages.variants(SUITE, 224),
        "styles": stages.styles(SUITE, 224),
    }
    for name, work in counted.items():
        assert (made[name].flop, made[name].traffic) == pytest.approx((work.flop, work.traffic))
        assert made[name].launches == pytest.approx(len(work.launches) * 256 / work.images)
        assert made[name].counted != PRODUCTS
    vit = stages.backbone(VIT, 256).work
    assert made[VIT].flop == pytest.approx(31 * vit.flop)
    assert made[VIT].seconds == pytest.approx(31 * vit.seconds(H100, Efficiency(H100.reached)))


@pytest.mark.slow
def test_a_small_backbone_waits_for_the_host() -> None:
    names = ["package:efficientnet_lite0", "control:pixels"]
    made, wider = plan(names, SUITE, 1000, H100), plan(names, SUITE, 1000, H100, dtype="float32")
    assert made.limiting == "host (Python)"
    assert wider.limiting == "host (writing)"
    assert wider.hours == pytest.approx(1000 * wider.busy["host (writing)"] / 3600)
    networks = sum(stage.seconds for stage in wider.stages[3:])
    assert wider.of_backbone_rate == pytest.approx(networks / wider.busy["host (writing)"])
    for each in (made, wider):
        assert each.busy["host (writing)"] == pytest.approx(each.store_bytes / 1000 / 0.41e9)
    assert wider.store_bytes == 2 * made.store_bytes


@pytest.mark.slow
def test_the_cost_of_each_backbone() -> None:
    names = [VIT, "control:random:test_resnet", "control:pixels"]
    made = plan(names, SUITE, 3600, H100, count=2)
    assert [table.backbone for table in made.tables] == names
    assert sum(table.store_bytes for table in made.tables) == made.store_bytes
    seconds = {stage.name: stage.seconds for stage in made.stages}
    for table in made.tables:
        assert table.gpu_hours == pytest.approx(seconds[table.backbone])  # 3600 photographs take hours of seconds
    for table in made.tables[:2]:
        assert table.embeddings_per_s == pytest.approx(31 / seconds[table.backbone])
    # arithmetic is stored and takes time, and is no part of the rate
    assert made.tables[2].embeddings_per_s is None
    assert made.embeddings_per_s == pytest.approx(2 * 31 * 3600 / 3600 / made.hours)


def test_statistics_are_counted_and_cheap() -> None:
    """Their operations are not fused: every one reads and writes its tensors, and each launch has the whole batch."""
    vit, statistics = (stages.backbone(name, stages.BATCH).work for name in (VIT, "control:statistics"))
    assert 0.05 * vit.seconds(H100, Efficiency(H100.reached)) < statistics.seconds(H100, Efficiency(H100.reached))
    assert statistics.seconds(H100, Efficiency(H100.reached)) < 0.2 * vit.seconds(H100, Efficiency(H100.reached))
    assert len(statistics.launches) < 200


def test_layers_of_one_network_are_one_pass() -> None:
    deep, both = (plan([f"{VIT}@layer={layers}"], SUITE, 1000, H100) for layers in ("11", "5:11"))
    assert [stage.seconds for stage in both.stages[3:]] == [0.0, deep.stages[3].seconds]
    assert [table.backbone for table in both.tables] == [f"{VIT}@layer={layer}" for layer in (5, 11)]
    assert [table.embeddings_per_s is None for table in both.tables] == [True, False]
    assert (both.hours, both.memory_bytes) == pytest.approx((deep.hours, deep.memory_bytes))
    assert both.embeddings_per_s == pytest.approx(2 * (deep.embeddings_per_s or 0))


def test_controls_alone_have_no_rate() -> None:
    assert plan(["control:pixels", "control:statistics"], SUITE, 10, H100).embeddings_per_s is None


def test_measured_shares_take_the_place_of_assumed_ones() -> None:
    def made(efficiency: Efficiency) -> Plan:
        return plan(["control:random:test_resnet"], SUITE, 10, H100, efficiency=efficiency)

    full, found = made(FULL), made(Efficiency(H100.reached, decode_bytes=1e8, backbones=0.5, styles=0.25, variants=0.1))
    assert found.busy["JPEG decoder"] == pytest.approx(1e8 / H100.bandwidth)
    for stage, ideal, share in zip(found.stages[1:], full.stages[1:], (0.1, 0.25, 0.5), strict=True):
        assert stage.seconds == pytest.approx(ideal.seconds / share)


def test_more_gpus_faster_ones_and_more_photographs() -> None:
    def hours(photographs: int, gpu: str, count: int) -> float:
        return plan([VIT], SUITE, photographs, DEVICES[gpu], count=count).hours

    assert hours(2000, "h100", 1) == pytest.approx(2 * hours(1000, "h100", 1))
    assert hours(1000, "h100", 4) == pytest.approx(hours(1000, "h100", 1) / 4)
    assert hours(1000, "h200", 1) < hours(1000, "h100", 1) < hours(1000, "a100", 1) < hours(1000, "l4", 1)


@pytest.mark.parametrize(("photographs", "held"), [(1_000, "float16"), (1_500_000, "int8"), (4_000_000, "streamed")])
def test_how_probes_hold_a_table(photographs: int, held: str) -> None:
    table = plan(["timm:vit_base_patch16_224"], SUITE, photographs, H100).tables[0]
    assert table.held == held
    assert table.held_bytes <= 0.8 * H100.memory
    assert table.store_bytes == photographs * 31 * 768 * 2


@pytest.mark.slow
def test_a_suite_of_identity_alone_has_no_variants_to_make() -> None:
    made = plan(["control:pixels"], ("identity",), 10, H100)
    assert made.stages[1].seconds == pytest.approx(0.0, abs=1e-11)
    assert (made.stages[2].seconds, made.stages[3].seconds < 1e-6) == (0.0, True)
    assert made.mean_variant_us == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "given"),
    [("timm:no_such", "no_such"), ("onnx:x.onnx", "onnx"), ("package:x", "x")],
)
def test_backbones_that_cannot_be_planned_for(name: str, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stages.backbone(name, 2)
    assert (caught.value.field, caught.value.given) == (f"backbone {name}", given)


def test_each_card_says_what_its_products_reach() -> None:
    for card in DEVICES.values():
        assert 0 < card.reached <= 1
        assert card.source.partition(":")[0] in ("assumed", "published", "measured")
    hours = {share: plan([VIT], SUITE, 1000, H100, efficiency=Efficiency(share)).hours for share in (H100.reached, 0.6)}
    assert plan([VIT], SUITE, 1000, H100).hours == hours[H100.reached] > hours[0.6]


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        device("h900")
    assert (caught.value.field, caught.value.given) == ("--gpu", "h900")


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


def test_transformations_of_libraries_are_named_and_not_counted() -> None:
    names = suite("mini5+torchvision:ColorJitter")
    alone, beside = (plan(["control:pixels"], each, 1000, DEVICES["a100"]) for each in (suite("mini5"), names))
    assert (alone.not_counted, beside.not_counted) == ([], ["torchvision.ColorJitter"])
    assert beside.variants == alone.variants + 1
    assert [stage.flop for stage in beside.stages[:3]] == [stage.flop for stage in alone.stages[:3]]
