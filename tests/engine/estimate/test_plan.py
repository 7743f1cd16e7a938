"""Plans against sums by hand, and forecasts of half widths against intervals of simulated differences."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from substyle.engine import config
from substyle.engine.estimate import networks
from substyle.engine.estimate import plan as estimated
from substyle.engine.estimate.forecast import GENERATORS, HEADS, STYLE, forecasts
from substyle.engine.estimate.plan import ANALYSIS, EMBEDDING, PROBES, Plan
from substyle.engine.estimate.roofline import DEVICES, GPU, HOST, Device
from substyle.engine.results.statistics import correlation_interval
from substyle.pipelines.transforms.registry import suite

pytestmark = pytest.mark.usefixtures("counted_once")


H100 = DEVICES["h100"]
VIT = "timm:vit_base_patch16_224"


def plan(backbones: list[str], photographs: int, card: Device = H100, *, count: int = 1, **more: Any) -> Plan:  # noqa: ANN401
    choices = tuple(map(config.BackboneChoice, backbones))
    study = config.Study("s", choices, **more)
    return estimated.plan(study, photographs, card, count=count)


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


def test_a_small_backbone_waits_for_the_host() -> None:
    names = ["package:efficientnet_lite0", "control:pixels"]
    made, wider = plan(names, 1000), plan(names, 1000, embed=config.EmbedConfig(dtype="float32"))
    assert plan(["control:pixels"], 1000).parts[0].limited_by == wider.parts[0].limited_by == HOST
    assert wider.store_bytes == 2 * made.store_bytes
    assert wider.hours == pytest.approx(wider.store_bytes / 0.41e9 / 3600)


def test_each_claim_says_its_width_or_what_it_needs() -> None:
    found = {each.claim: each for each in forecasts(suite("substance31"), 100, 3)}
    assert list(found) == ["C1, C3", "C2", "C4", "C6"]
    assert (found["C2"].half, found["C2"].remark) == (None, "requires three generators")
    assert found["C1, C3"].half == STYLE.half(31, 100)
    assert found["C6"].half is None
    many = {each.claim: each for each in forecasts(suite("substance31,styles48"), 100, 3)}
    assert many["C2"].half == GENERATORS.half(12, 100)
    (last,) = [each for each in forecasts(suite("substance31"), 100, 8) if each.claim == "C6"]
    assert last.half is not None
    assert last.half[1] == correlation_interval(0.0, 8)[1]
    assert forecasts(("identity", "jpeg"), 100, 3) == []
    severities = {each.claim: each for each in forecasts(suite("imagenet_c@1..5"), 100, 3)}
    assert severities["C1, C3"].half == STYLE.half(20, 100)
    assert severities["C4"].half == HEADS.half(20, 100)
