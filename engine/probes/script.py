"""The next steps of a training, written to a device that then takes them by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from substyle.engine.probes.batches import Part, draw, rows_of
from substyle.engine.probes.features import Features
from substyle.kernels import dropout
from substyle.kernels.dispatch import upload
from substyle.kernels.probe_device import schedule

AHEAD = 64  # steps of a script


@dataclass(frozen=True)
class Script:
    """What up to n steps are; the next ones overwrite it from the start.

    Attributes:
        row_nB: int64 rows of the table that a step learns from.
        targets: int64 answers of each part of the batch, (n, count).
        now_n3: ``probe_device.Rates.now_3`` of each step.
        number_n: int32 number of each step, which keys its dropout.
    """

    row_nB: torch.Tensor
    targets: list[torch.Tensor]
    now_n3: torch.Tensor
    number_n: torch.Tensor


@dataclass(frozen=True)
class Queue:
    """The first steps of a script, and where their rows are.

    Attributes:
        script: says what they are; it lies in the same memory throughout a training.
        steps: how many.
        features: standardise the rows.
        x_RD, scale_R: as in `held.Placed`; they lie in the same memory throughout a training.
        rows: rows of a batch that belong to each part.
    """

    script: Script
    steps: int
    features: Features
    x_RD: torch.Tensor
    scale_R: torch.Tensor | None
    rows: list[slice]

    def __len__(self) -> int:
        return self.steps


class DeviceBatches:
    """Draws the steps of a training into one script.

    Args:
        features: standardise the rows.
        parts: make up each batch.
        most: steps of the script.
        steps: steps that may be asked for in all.
    """

    def __init__(self, features: Features, parts: Sequence[Part], most: int, steps: int) -> None:
        self.features, self.parts, self.most, self.taken = features, parts, most, 0
        self.rows = rows_of(parts)
        size, device = self.rows[-1].stop, features.device
        self.script = Script(
            torch.zeros(most, size, dtype=torch.int64, device=device),
            [torch.zeros(most, part.count, dtype=torch.int64, device=device) for part in parts],
            torch.zeros(most, 3, device=device),
            torch.zeros(most, dtype=torch.int32, device=device),
        )
        self.feed = features.held.feed(lambda: draw(parts), size, steps)

    def block(self, rates: Sequence[float]) -> Queue:
        """The next steps: one for each rate, or as many as have rows that lie on the device at the same time."""
        drawn, placed = self.feed.step()
        steps, rows = [drawn], [placed.row_B]
        while len(steps) < min(len(rates), self.most) and self.feed.left:
            drawn, placed = self.feed.step()
            steps.append(drawn)
            rows.append(placed.row_B)
        count, device, script = len(steps), self.features.device, self.script
        script.row_nB[:count].copy_(upload(np.stack(rows), device))
        for i, target_nB in enumerate(script.targets):
            target_nB[:count].copy_(upload(np.stack([step.answers[i] for step in steps]), device))
        script.now_n3[:count].copy_(upload(schedule(rates[:count], self.taken), device))
        script.number_n[:count].copy_(dropout.device_steps(range(self.taken, self.taken + count), device))
        self.taken += count
        return Queue(script, count, self.features, placed.x_RD, placed.scale_R, self.rows)

    def close(self) -> None:
        """No further block is asked for."""
        self.feed.close()
