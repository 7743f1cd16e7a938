"""Fine-tuning of backbones to predict the transformation, the class, or both, at equal budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from substyle.engine.extensions.finetune.config import FinetuneConfig, Objective
from substyle.engine.probes.tasks import UNKNOWN, Advance
from substyle.engine.probes.trainer import learning_rate

_HEAD_RATE = 10.0  # learning rate of the new layers, relative to that of the network
_WARMUP = 0.1  # of the steps


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
        "class": 1.0 - config.transformation_weight if objective == "joint" else float(objective == "class"),
        "transformation": config.transformation_weight if objective == "joint" else float(objective != "class"),
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
