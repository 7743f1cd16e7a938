"""Fine-tuning of backbones to predict the transformation, the class, or both, at equal budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, StrictFloat, StrictInt
from torch import nn
from torch.nn.functional import cross_entropy

from substyle.engine.probes.tasks import UNKNOWN, Advance
from substyle.engine.probes.trainer import learning_rate
from substyle.pipelines.validation import Distinct, validated

Objective = Literal["semantic", "transformation", "joint"]
OBJECTIVES: tuple[Objective, ...] = ("semantic", "transformation", "joint")
_HEAD_RATE = 10.0  # learning rate of the new layers, relative to that of the network
_WARMUP = 0.1  # of the steps


@validated("finetune")
class FinetuneConfig:
    """Fine-tuning of backbones on variants of the training photographs."""

    backbones: Distinct[str] = ()
    """Backbones of the study to fine-tune."""
    objectives: Distinct[Objective] = OBJECTIVES
    """``semantic``: predict the class of variants; ``transformation``: predict the transformation; ``joint``: both. All
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
    weight_decay: Annotated[StrictFloat, Field(ge=0, le=1)] = 0.05
    """Weight decay of AdamW."""
    transformation_weight: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.5
    """joint: weight of the loss of the transformation; the rest is that of the class."""
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    """First seed. Defaults to the study's."""


@dataclass(frozen=True)
class LabelledVariants:
    """A batch of B variants.

    Attributes:
        pixels_BSSC: (B, S, S, 3) uint8.
        transformation_B: (B,) int64 labels, UNKNOWN where the variant hardly differs from its photograph.
        class_B: (B,) int64 labels, UNKNOWN for unlabelled photographs.
    """

    pixels_BSSC: torch.Tensor
    transformation_B: torch.Tensor
    class_B: torch.Tensor


def fit(
    module: nn.Module,
    batches: Iterator[LabelledVariants],
    config: FinetuneConfig,
    objective: Objective,
    *,
    dim: int,
    transformations: int,
    classes: int,
    seed: int,
    device: torch.device,
    advance: Advance = lambda count: None,
) -> dict[str, list[float]]:
    """Fine-tune a backbone in place.

    Batch normalisation uses its stored statistics, and dropout is off, so that a photograph's embedding does not depend
    on its batch. Each task has a linear layer on the standardised embedding. On a GPU the network runs in bfloat16 by
    autocast.

    Args:
        module: maps (B, S, S, 3) uint8 to (B, D) float32.
        batches: at least ``config.steps`` batches, on any device.
        dim: width D.
        transformations, classes: number of labels of each task.
        seed: seed of the new layers.

    Returns:
        mean loss of each task in each tenth of the steps; of tasks that are not part of the objective none.
    """
    weights = {
        "class": 1.0 - config.transformation_weight if objective == "joint" else float(objective == "semantic"),
        "transformation": config.transformation_weight if objective == "joint" else float(objective != "semantic"),
    }
    tasks = {name: weight for name, weight in weights.items() if weight}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # on the host, so that all devices start from the same layers
        sizes = {"class": classes, "transformation": transformations}
        heads = nn.ModuleDict({name: nn.Linear(dim, sizes[name]) for name in tasks}).to(device)
    standardise = nn.BatchNorm1d(dim, affine=False).to(device)
    module.to(device).eval().requires_grad_(True)
    groups = [
        {"params": list(module.parameters()), "highest": config.learning_rate},
        {"params": list(heads.parameters()), "highest": config.learning_rate * _HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    losses: dict[str, list[float]] = {name: [] for name in tasks}
    for step, batch in enumerate(islice(batches, config.steps)):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            x_BD = standardise(module(batch.pixels_BSSC.to(device)).float())
        target = {"class": batch.class_B, "transformation": batch.transformation_B}
        total = torch.zeros((), device=device)
        for name, weight in tasks.items():
            if bool((target[name] != UNKNOWN).any()):
                loss = cross_entropy(heads[name](x_BD), target[name].to(device), ignore_index=UNKNOWN)
                losses[name].append(float(loss.detach()))
                total = total + weight * loss
        if total.requires_grad:  # the batch has labels
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * learning_rate(step, config.steps, max(int(_WARMUP * config.steps), 1))
            optimizer.step()
        advance(1)
    module.requires_grad_(False)
    tenths = {name: np.array_split(np.array(values), 10) for name, values in losses.items()}
    return {name: [float(part.mean()) for part in parts if len(part)] for name, parts in tenths.items()}
