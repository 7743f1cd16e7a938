"""Plans against sums by hand, published operation counts, and the rules of a roofline."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from benchmarks import operators
from tests.conftest import slow_after
from torch import nn

from substyle.engine import config
from substyle.engine.backbones import registry
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.estimate import networks
from substyle.engine.estimate import plan as estimated
from substyle.engine.estimate.networks import Work, of_network
from substyle.engine.estimate.plan import ANALYSIS, EMBEDDING, PROBES, Plan, _stage
from substyle.engine.estimate.roofline import DEVICES, DISK, GPU, HOST, Device, Parts, card_of
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("counted_once")

H100 = DEVICES["h100"]
VIT = "timm:vit_base_patch16_224"


def plan(backbones: list[str], photographs: int, card: Device = H100, *, count: int = 1, **more: Any) -> Plan:  # noqa: ANN401
    choices = tuple(map(config.BackboneChoice, backbones))
    study = config.Study("s", choices, **more)
    return estimated.plan(study, photographs, card, count=count)


def test_a_linear_layer_is_counted_by_hand() -> None:
    work = of_network(nn.Linear(10, 20, bias=False), torch.empty(4, 10))
    assert work.products == [(2.0 * 10 * 20, 2.0 * (10 + 10 * 20 / 4 + 20))]
    assert work.flop == 400.0


def test_a_convolution_is_counted_by_hand() -> None:
    work = of_network(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), torch.empty(2, 3, 16, 16))
    moved = 2.0 * (3 * 256 + 8 * 27 / 2 + 8 * 64)
    assert work.products == [(2.0 * 8 * 3 * 9 * 8 * 8, moved)]


def test_scores_of_attention_move_nothing() -> None:
    q = torch.empty(3, 50, 8)

    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)

    work = of_network(Attention(), q)
    assert [moved for _, moved in work.products] == [2.0 * 2 * q[0].numel()] * 2


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
    facts = networks.backbone(name, 8)
    assert facts.dim == dim
    assert facts.work.flop / 1e9 == pytest.approx(gflop, rel=0.02)
    assert facts.parameters / 1e6 == pytest.approx(million, rel=0.02)


def test_an_image_tower_of_open_clip() -> None:
    facts = networks.backbone("open_clip:ViT-B-32/openai", 2)
    assert facts.dim == 512
    assert facts.work.flop / 1e9 == pytest.approx(8.8, rel=0.03)  # 4.4 GMACs, open_clip's model profile


@pytest.mark.parametrize(("architecture", "dim"), [("coca_ViT-B-32", 512), ("roberta-ViT-B-32", 512)])
def test_towers_whose_text_needs_more(architecture: str, dim: int) -> None:
    """CoCa's also gives tokens; text towers of others ask a hub for their configuration."""
    assert networks.backbone(f"open_clip:{architecture}", 2).dim == dim


@pytest.mark.parametrize("model", ["resnest14d", "test_vit_relpos", "test_vit2"])
def test_a_layer_of_networks_that_normalise_one_picture_or_have_no_class_token(model: str) -> None:
    assert networks.backbone(f"timm:{model}@layer=-1", 1).dim == networks.backbone(f"timm:{model}", 1).dim


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
    for take in (lambda: networks.backbone(name, 1), lambda: registry.load(name, context)):
        with pytest.raises(ConfigError) as caught:
            take()
        assert re.search(allowed, caught.value.allowed)


def test_the_slower_of_arithmetic_and_traffic_decides() -> None:
    work = Work([(100.0, 1.0), (1.0, 100.0)])
    card = Device("x", flops=100.0, float32=5.0, bandwidth=10.0, memory=1.0, reached=0.5, source="", moving=0.1)
    assert work.seconds(replace(card, reached=1.0, moving=1.0)) == pytest.approx(1.0 + 10.0)
    assert work.seconds(card) == pytest.approx(2.0 + 100.0)
    assert card.seconds(50.0, 1.0, product=False) == 20.0


def hours(made: Plan, stage: str) -> float:
    return sum(part.hours for part in made.parts if part.stage == stage)


def test_a_plan_adds_up() -> None:
    made = plan([VIT, "control:pixels"], 3600)
    vit, pixels = made.backbones
    assert made.store_bytes == vit.store_bytes + pixels.store_bytes == 3600 * 31 * 2 * 768 * 2
    assert vit.gpu_hours == pytest.approx(31 * networks.backbone(VIT, 256).work.seconds(H100))  # hours of seconds
    assert vit.embeddings_per_s == pytest.approx(31 / vit.gpu_hours)
    assert pixels.embeddings_per_s is None  # arithmetic is stored and takes time, and has no rate
    assert made.parts[0].busy[GPU] == pytest.approx(made.variant_hours + vit.gpu_hours + pixels.gpu_hours)
    assert made.hours == hours(made, EMBEDDING) == made.parts[0].busy[made.parts[0].limited_by]
    assert made.total_hours == pytest.approx(made.hours + hours(made, PROBES) + hours(made, ANALYSIS))
    assert hours(made, PROBES) > 0
    assert hours(made, ANALYSIS) > 0
    assert asdict(made)["parts"][0]["busy"] == made.parts[0].busy


def test_more_gpus_faster_ones_and_more_photographs() -> None:
    one, eight = plan([VIT], 100_000), plan([VIT], 100_000, count=8)
    assert plan([VIT], 200_000).hours == pytest.approx(2 * one.hours)
    assert eight.hours == pytest.approx(one.hours / 8)
    for stage in (PROBES, ANALYSIS):  # of one backbone, on one GPU
        assert hours(eight, stage) == hours(one, stage)
    by_card = [plan([VIT], 1000, DEVICES[card]).hours for card in ("h200", "h100", "a100", "l4")]
    assert by_card == sorted(by_card)
    assert 0 < plan(["control:random:test_vit"], 1).total_hours < 0.1


def test_a_small_backbone_waits_for_the_host() -> None:
    names = ["package:efficientnet_lite0", "control:pixels"]
    made, wider = plan(names, 1000), plan(names, 1000, embed=config.EmbedConfig(dtype="float32"))
    assert plan(["control:pixels"], 1000).parts[0].limited_by == wider.parts[0].limited_by == HOST
    assert wider.store_bytes == 2 * made.store_bytes
    assert wider.hours == pytest.approx(wider.store_bytes / 0.41e9 / 3600)


def test_variants_move_as_many_bytes_as_their_suites() -> None:
    quick, styles, traces = (
        plan(["control:pixels"], 3600, suite=suite).variant_hours
        for suite in ("identity,grayscale", "identity,style_wave", "traces16")
    )
    canvas = 3 * 224**2 / (0.8 * H100.bandwidth)
    found = list(operators.counts())
    seconds = (operators.around(found) + sum(count.ms for count in found)) / 1e3 / operators.BATCH / len(found)
    assert quick == pytest.approx(estimated._SUBSTANCE * canvas)
    assert seconds * operators.BANDWIDTH / (3 * 224**2) == pytest.approx(estimated._SUBSTANCE, rel=0.05)
    assert quick < styles < traces
    assert plan(["control:pixels"], 3600, suite="identity,grayscale", canvas=448).variant_hours == pytest.approx(
        4 * quick
    )
    assert plan(["control:pixels"], 10, suite="identity").variant_hours == 0


def test_layers_of_one_network_are_one_pass() -> None:
    deep, both = (plan([f"{VIT}@layer={layers}"], 1000) for layers in ("11", "5:11"))
    assert [each.gpu_hours for each in both.backbones] == [0.0, deep.backbones[0].gpu_hours]
    assert [each.backbone for each in both.backbones] == [f"{VIT}@layer={layer}" for layer in (5, 11)]
    assert [each.embeddings_per_s is None for each in both.backbones] == [True, False]


@pytest.mark.parametrize(("photographs", "held"), [(1_000, "float16"), (1_500_000, "int8"), (4_000_000, "streamed")])
def test_how_probes_hold_a_table(photographs: int, held: str) -> None:
    assert plan([VIT], photographs).backbones[0].held == held


def test_each_gpu_computes_one_backbone_at_a_time() -> None:
    x: Parts = {"a": {HOST: 3.0}, "b": {HOST: 2.0}}
    y: Parts = {"a": {HOST: 1.0}}
    z: Parts = {"b": {HOST: 2.0}}
    for count, share in ((1, 1.0), (2, 5 / 8), (3, 5 / 8), (8, 5 / 8)):  # x takes 5 of 8
        a, b = _stage(PROBES, [x, y, z], count)
        assert (a.name, a.hours, a.busy) == ("a", pytest.approx(share * 4 / 3600), {HOST: pytest.approx(4 / 3600)})
        assert (b.name, b.hours) == ("b", pytest.approx(share * 4 / 3600))
    (alike,) = _stage(PROBES, [{"a": {DISK: 3.0}}, {"a": {DISK: 1.0}}], 8)
    assert alike.hours == pytest.approx(4 / 3600)  # all share it
    assert [part.hours for part in _stage(PROBES, [{"a": {HOST: 0.0}}], 8)] == [0.0]


@pytest.mark.parametrize(
    ("name", "given"),
    [("timm:no_such", "no_such"), ("onnx:x.onnx", "onnx"), ("package:x", "x")],
)
def test_backbones_that_cannot_be_planned_for(name: str, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        networks.backbone(name, 2)
    assert (caught.value.field, caught.value.given) == (f"backbone {name}", given)


def test_each_card_says_what_its_products_reach() -> None:
    for card in DEVICES.values():
        assert 0 < card.reached <= 1
        assert card.source.partition(":")[0] in ("assumed", "published", "measured")


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
    alone, beside = (
        plan(["control:pixels"], 1000, suite=suite) for suite in ("mini5", "mini5+torchvision:ColorJitter")
    )
    assert (alone.not_counted, beside.not_counted) == ([], ["torchvision.ColorJitter"])
    assert beside.variants == alone.variants + 1
    assert beside.variant_hours == alone.variant_hours
