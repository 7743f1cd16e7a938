"""The table `[finetune]` of a study file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictFloat, StrictInt

from substyle.pipelines.validation import Distinct, validated

Objective = Literal["class", "transformation", "joint"]
OBJECTIVES: tuple[Objective, ...] = ("class", "transformation", "joint")


@validated("finetune")
class FinetuneConfig:
    """Fine-tuning of backbones on variants of the training photographs."""

    backbones: Distinct[str] = ()
    """Backbones of the study to fine-tune."""
    objectives: Distinct[Objective] = OBJECTIVES
    """``class``: predict the class of variants; ``transformation``: predict the transformation; ``joint``: both. All
    see the same variants in the same order."""
    seeds: Annotated[StrictInt, Field(ge=1, le=20)] = 3
    """Trainings per backbone and objective, which differ in the order of the photographs and the new layers."""
    steps: Annotated[StrictInt, Field(ge=1)] = 1_000
    """Steps per training."""
    batch: Annotated[StrictInt, Field(ge=2)] = 64
    """Variants per step."""
    learning_rate: Annotated[StrictFloat, Field(gt=0, le=1)] = 1e-4
    """Highest learning rate of the network (AdamW with linear warm-up and cosine decay); ten times as high for the new
    layers."""
    weight_decay: ClassVar[float] = 0.05
    """Weight decay of AdamW."""
    transformation_weight: ClassVar[float] = 0.5
    """joint: weight of the loss of the transformation; the rest is that of the class."""
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    """First seed, that of the study."""
