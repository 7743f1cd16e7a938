"""Training batches: standardised rows, targets and schedules, prepared several steps ahead."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.dataset import Dataset, Resident, Standardizer
from substyle.engine.probes.loader import Drawn, Placed
from substyle.engine.probes.tasks import I64, Stream, Task
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import dispatch, probe_data
from substyle.kernels.dispatch import upload
from substyle.kernels.probe_data import gather
from substyle.kernels.probe_step_gpu import schedule


class Features:
    """Gathers rows as standardised (B, D) tensors.

    Args:
        table: a dataset, or a table, which is then copied to the device.
        standard: standardisation of the task.
        device: training device.
        dtype: dtype of matrix products.
    """

    def __init__(
        self, table: Dataset | EmbeddingTable, standard: Standardizer, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.held: Dataset = Resident.of(table, device) if isinstance(table, EmbeddingTable) else table
        self.device, self.dtype = device, dtype
        mean_D, scale_D = _over_centre(standard, self.held.centre)
        self.projection: torch.Tensor | None = None
        self.mean = torch.from_numpy(mean_D).to(device)
        self.scale = torch.from_numpy(scale_D).to(device)

    @property
    def width(self) -> int:
        """Width of the features: D, or that of the projection."""
        return self.held.table.width if self.projection is None else self.projection.shape[1]

    @property
    def variants(self) -> int:
        """Number of transformations T."""
        return len(self.held.table.transformations)

    def full(self, dtype: torch.dtype = torch.float32) -> Features:
        """The same features in float32 or float64."""
        other = copy(self)
        other.dtype = dtype
        return other

    def projected(self, width: int, seed: int) -> Features:
        """Project by a Gaussian random matrix, which preserves distances (Johnson & Lindenstrauss 1984)."""
        rng, wide = np.random.default_rng([seed, 0x70726F6A]), self.held.table.width
        other = copy(self)
        other.projection = upload((rng.standard_normal((wide, width)) / wide**0.5).astype(np.float32), self.device)
        return other

    def __call__(self, t_B: I64, n_B: I64, out: torch.Tensor | None = None) -> torch.Tensor:
        """Gather standardised rows (B, D), into ``out`` if given."""
        if out is None:
            out = dispatch.empty((len(t_B), self.width), self.dtype, self.device)
        return self.of(self.held.rows(t_B, n_B), out)

    def of(self, placed: Placed, out: torch.Tensor) -> torch.Tensor:
        """Standardise placed rows into ``out`` (B, D)."""
        row_B, wide, double = upload(placed.row_B, self.device), out, self.dtype == torch.float64
        if self.projection is not None or double:
            dtype = torch.float32 if double else self.dtype
            wide = dispatch.empty((len(out), self.held.table.width), dtype, self.device)
        x_BD = gather(placed.x_RD, row_B, self.mean, self.scale, wide, placed.scale_R)
        if self.projection is None:
            return out.copy_(x_BD) if double else x_BD
        return torch.mm(x_BD.to(self.dtype), self.projection.to(self.dtype), out=out)


def _over_centre(
    standard: Standardizer, centre: Standardizer | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale for embeddings held as they are, or as ``(x - centre.mean) * centre.scale``.

    Features that are constant according to ``centre`` are held as 0 and remain 0.
    """
    if centre is None:
        return standard.mean_D, standard.scale_D
    mean_D = (standard.mean_D.astype(np.float64) - centre.mean_D) * centre.scale_D
    scale_D = np.divide(standard.scale_D, centre.scale_D, out=np.zeros_like(standard.scale_D), where=centre.scale_D > 0)
    return mean_D.astype(np.float32), scale_D


@dataclass(frozen=True)
class BatchPart:
    """The part of each batch that belongs to one loss.

    Attributes:
        task: the task.
        stream: source of its rows.
        count: rows per batch.
        outputs: outputs of the head for this task.
    """

    task: Task
    stream: Stream
    count: int
    outputs: slice


@dataclass(frozen=True)
class StepBlock:
    """A block of n consecutive batches.

    Attributes:
        drawn: rows of each batch.
        x_nBD: features.
        targets: targets per batch and part.
        rows: rows of a batch per part.
        rates: learning rate per batch, relative to its peak.
    """

    drawn: list[Drawn]
    x_nBD: torch.Tensor
    targets: list[list[torch.Tensor]]
    rows: list[slice]
    rates: list[float]

    def __len__(self) -> int:
        return len(self.rates)


class Batches:
    """Gathers blocks of batches into one array; each block overwrites the previous one.

    Args:
        features: gathers the rows.
        parts: parts of each batch.
        most: maximum batches per block.
        steps: total number of batches.
    """

    def __init__(self, features: Features, parts: Sequence[BatchPart], most: int, steps: int) -> None:
        self.features, self.parts, self.rows = features, parts, rows_of(parts)
        size = self.rows[-1].stop
        self.x_nBD = dispatch.empty((most, size, features.width), features.dtype, features.device)
        self.feed = features.held.feed(lambda: draw(parts), size, steps)

    def block(self, rates: Sequence[float]) -> StepBlock:
        """Return the next batches, one per rate."""
        drawn, targets = [], []
        for x_BD in self.x_nBD[: len(rates)]:
            step, placed = self.feed.step()
            self.features.of(placed, x_BD)
            drawn.append(step)
            targets.append([torch.from_numpy(a).to(self.features.device) for a in step.answers])
        return StepBlock(drawn, self.x_nBD[: len(rates)], targets, self.rows, list(rates))

    def close(self) -> None:
        """Stop loading."""
        self.feed.close()


def rows_of(parts: Sequence[BatchPart]) -> list[slice]:
    """Slices of a batch per part."""
    ends = np.cumsum([part.count for part in parts])
    return [slice(int(end) - part.count, int(end)) for end, part in zip(ends, parts, strict=True)]


def draw(parts: Sequence[BatchPart]) -> Drawn:
    """Draw the rows and targets of the next batch."""
    rows = [part.stream.batch(part.count) for part in parts]
    t, n = rows[0] if len(rows) == 1 else (np.concatenate(side) for side in zip(*rows, strict=True))
    return Drawn(t, n, [part.task.answers(*own) for part, own in zip(parts, rows, strict=True)])


AHEAD = 64  # steps per schedule


@dataclass(frozen=True)
class StepSchedule:
    """Inputs of up to n training steps on the device; overwritten by the next schedule.

    Attributes:
        row_nB: int64 table rows of each step.
        targets: int64 targets of each part of the batch, (n, count).
        now_n3: ``probe_step_gpu.Rates.now_3`` of each step.
        number_n: int32 step numbers, which key dropout.
    """

    row_nB: torch.Tensor
    targets: list[torch.Tensor]
    now_n3: torch.Tensor
    number_n: torch.Tensor


@dataclass(frozen=True)
class Queue:
    """Scheduled steps and the memory of their rows.

    Attributes:
        script: schedule, at a fixed address during a training.
        steps: number of steps.
        features: standardise the rows.
        x_RD, scale_R: as in `loader.Placed`, at fixed addresses during a training.
        rows: slices of a batch per part.
    """

    script: StepSchedule
    steps: int
    features: Features
    x_RD: torch.Tensor
    scale_R: torch.Tensor | None
    rows: list[slice]

    def __len__(self) -> int:
        return self.steps


class DeviceBatches:
    """Schedules the steps of a training on the device.

    Args:
        features: standardise the rows.
        parts: parts of each batch.
        most: maximum steps per schedule.
        steps: total number of steps.
    """

    def __init__(self, features: Features, parts: Sequence[BatchPart], most: int, steps: int) -> None:
        self.features, self.parts, self.most, self.taken = features, parts, most, 0
        self.rows = rows_of(parts)
        size, device = self.rows[-1].stop, features.device
        self.script = StepSchedule(
            torch.zeros(most, size, dtype=torch.int64, device=device),
            [torch.zeros(most, part.count, dtype=torch.int64, device=device) for part in parts],
            torch.zeros(most, 3, device=device),
            torch.zeros(most, dtype=torch.int32, device=device),
        )
        self.feed = features.held.feed(lambda: draw(parts), size, steps)

    def block(self, rates: Sequence[float]) -> Queue:
        """Schedule the next steps: one per rate, or as many as have their rows on the device at the same time."""
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
        script.number_n[:count].copy_(probe_data.device_steps(range(self.taken, self.taken + count), device))
        self.taken += count
        return Queue(script, count, self.features, placed.x_RD, placed.scale_R, self.rows)

    def close(self) -> None:
        """Stop loading."""
        self.feed.close()
