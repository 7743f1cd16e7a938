"""What the engine means to reach, beside what a plan says of it."""

from __future__ import annotations

from typing import Any

from substyle.engine.estimate.devices import DEVICES, Efficiency
from substyle.engine.estimate.plan import plan
from substyle.pipelines.suites import suite

CARD, HOURS = "h100", 1.0
PHOTOGRAPHS = 1_331_167  # of ImageNet: training and validation images
BACKBONE = "timm:vit_base_patch16_224"
WHAT = "ImageNet × 31 embedded with ViT-B/16 on one H100"


def goal(efficiency: Efficiency) -> dict[str, Any]:
    """The goal in hours and the plan's number for it."""
    made = plan([BACKBONE], suite("substance31"), PHOTOGRAPHS, DEVICES[CARD], efficiency=efficiency)
    return {"what": WHAT, "hours": HOURS, "planned_hours": made.seconds / 3600}
