"""Training batches: standardised rows, targets and schedules, drawn several steps ahead."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import Dataset, Resident, Standardizer, standard_of
from substyle.engine.probes.loader import Drawn, Placed
from substyle.engine.probes.tasks import I64, Stream, Task
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import cpu, dispatch
from substyle.kernels.dispatch import upload
from substyle.kernels.probe_data import gather
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import schedule

KEPT = 1 << 30  # maximum bytes of standardised features that are kept; half as many again for those in 16 bits
_AT_ONCE = 1 << 24  # numbers that are standardised at a time


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Dtype of matrix products in training: "auto" is bfloat16 on GPUs and on CPUs with native support.

    Weights, moments and losses are always float32, and linear heads are scored in float32.
    """
    if precision == "auto":
        fast = device.type == "cuda" or cpu.has("avx512_bf16", "amx_bf16", "bf16")
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


class Features:
    """Gathers rows as standardised (B, D) tensors.

    Args:
        table: a dataset, or a table, which is then copied to the device.
        dtype: dtype of matrix products.
    """

    def __init__(
        self, table: Dataset | EmbeddingTable, standard: Standardizer, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.held: Dataset = Resident.of(table, device) if isinstance(table, EmbeddingTable) else table
        self.device, self.dtype, self.standard = device, dtype, standard
        mean_D, scale_D = _over_centre(standard, self.held.centre)
        self.projection: torch.Tensor | None = None
        self.mean = torch.from_numpy(mean_D).to(device)
        self.scale = torch.from_numpy(scale_D).to(device)

    @classmethod
    def of_task(cls, held: Dataset, task: Task, config: ProbeConfig) -> Features:
        """Features standardised over the training rows of a task."""
        standard = standard_of(held.table, task, config.seed)
        return cls(held, standard, held.device, pick_dtype(config.expert.precision, held.device))

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

    def in_advance(self, gathered: int) -> torch.Tensor | None:
        """All rows standardised, if this saves time on a CPU, else None.

        On a GPU a gather takes as long as its memory accesses, with or without standardisation.

        Args:
            gathered: number of rows to be gathered.
        """
        held = self.held
        if self.device.type != "cpu" or not isinstance(held, Resident):
            return None
        rows = len(held.x_RD)
        if gathered < 2 * rows or rows * self.width * self.dtype.itemsize > KEPT:
            return None
        x_RD, size = dispatch.empty((rows, self.width), self.dtype, self.device), max(1, _AT_ONCE // held.table.width)
        for row_B, out_BD in zip(torch.split(torch.arange(rows), size), torch.split(x_RD, size), strict=True):
            self.of(Placed(held.x_RD, row_B, held.scale_R), row_B, out_BD)
        return x_RD

    def __call__(self, t_B: I64, n_B: I64) -> torch.Tensor:
        """Gather standardised rows (B, D)."""
        placed = self.held.rows(t_B, n_B)
        return self.of(placed, placed.row_nB, dispatch.empty((len(t_B), self.width), self.dtype, self.device))

    def of(self, placed: Placed, row_B: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Standardise rows ``row_B`` of ``placed.x_RD`` into ``out`` (B, D)."""
        wide, double = out, self.dtype == torch.float64
        if self.projection is not None or double:
            dtype = torch.float32 if double else self.dtype
            wide = dispatch.empty((len(out), self.held.table.width), dtype, self.device)
        x_BD = gather(placed.x_RD, row_B, self.mean, self.scale, wide, placed.scale_R)
        if self.projection is None:
            return out.copy_(x_BD) if double else x_BD
        return torch.mm(x_BD.to(self.dtype), self.projection.to(self.dtype), out=out)

    @property
    def stored(self) -> torch.Tensor | None:
        """The rows (T * N, D) as stored in float16, None if they are in another format or not on the device."""
        held = self.held
        return held.x_RD if isinstance(held, Resident) and held.x_RD.dtype == torch.float16 else None

    def for_stored(self, heads: Heads) -> Heads:
        """Linear heads that compute from stored rows what ``heads`` compute from standardised ones."""
        weight_KCD = heads.w1 if self.projection is None else heads.w1 @ self.projection.T
        weight_KCD = weight_KCD * self.scale
        return Heads(weight_KCD, heads.b1 - weight_KCD @ self.mean)

    def from_stored(self, dw_KCD: torch.Tensor, db_KC: torch.Tensor) -> torch.Tensor:
        """Gradient of the weights of linear heads from those of `for_stored`."""
        dw_KCD = (dw_KCD - db_KC[:, :, None] * self.mean) * self.scale
        return dw_KCD if self.projection is None else dw_KCD @ self.projection


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
        stream: source of its rows.
        count: rows per batch.
    """

    task: Task
    stream: Stream
    count: int


def rows_of(parts: Sequence[BatchPart]) -> list[slice]:
    """Slices of a batch per part."""
    ends = np.cumsum([part.count for part in parts])
    return [slice(int(end) - part.count, int(end)) for end, part in zip(ends, parts, strict=True)]


def draw(parts: Sequence[BatchPart], first: int, count: int) -> Drawn:
    """Draw ``count`` batches and their targets, from number ``first``. The number of launches is that of one batch."""
    rows, targets = [], []
    for part in parts:
        t_R, n_R = part.stream.rows(first * part.count, count * part.count)
        answers = part.task.targets(part.stream.answer, t_R, n_R)
        rows.append(torch.stack([t_R, n_R]).view(2, count, part.count))
        targets.append(answers.view(count, part.count))
    t_nB, n_nB = torch.cat(rows, 2)
    return Drawn(t_nB, n_nB, targets)


AHEAD = 256  # steps per schedule: drawing takes about 250 launches however many they are


@dataclass(frozen=True)
class StepSchedule:
    """Inputs of n training steps on the device; overwritten by the next schedule.

    Attributes:
        word_nP: int64; in each row of it the attributes below, so that one copy selects a step.
        rows: slices of a batch per part.
    """

    word_nP: torch.Tensor
    rows: list[slice]

    @classmethod
    def of(cls, steps: int, rows: list[slice], device: torch.device) -> StepSchedule:
        """A schedule of zeros."""
        return cls(torch.zeros(steps, 2 * rows[-1].stop + 3, dtype=torch.int64, device=device), rows)

    @property
    def row_nB(self) -> torch.Tensor:
        """Table rows of each step, int64."""
        return self.word_nP[:, : self.rows[-1].stop]

    @property
    def targets(self) -> list[torch.Tensor]:
        """Targets of each part of the batch, (n, count) int64."""
        size = self.rows[-1].stop
        return [self.word_nP[:, size + own.start : size + own.stop] for own in self.rows]

    @property
    def now_n3(self) -> torch.Tensor:
        """``now_3`` of `probe_step.step` in each step, float64."""
        return self.word_nP[:, -3:].view(torch.float64)

    def step(self, at: torch.Tensor, out: StepSchedule) -> None:
        """Copy step ``at``, (1,) on the device, to a schedule of one step."""
        torch.index_select(self.word_nP, 0, at, out=out.word_nP)


@dataclass(frozen=True)
class StepBlock:
    """A block of consecutive steps and the memory of their rows.

    Attributes:
        script: schedule, at a fixed address during a training.
        steps: number of steps.
        x_RD, scale_R: as in `loader.Placed`, at fixed addresses during a training.
        x_nBD: features of each step; None if each step gathers its own.
    """

    script: StepSchedule
    steps: int
    features: Features
    x_RD: torch.Tensor
    scale_R: torch.Tensor | None
    x_nBD: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.steps


class Batches:
    """Draws blocks of training steps; each overwrites the previous one.

    Args:
        most: maximum steps per block.
        steps: total number of steps.
        gathered: whether the features of a block are gathered with it.
    """

    def __init__(
        self, features: Features, parts: Sequence[BatchPart], most: int, steps: int, *, gathered: bool = True
    ) -> None:
        self.features, self.most, self.taken = features, most, 0
        self.script = StepSchedule.of(most, rows_of(parts), features.device)
        size = self.script.rows[-1].stop
        self.ready_RD = features.in_advance(steps * size) if gathered else None
        shape = most, size, features.width
        self.x_nBD = dispatch.empty(shape, features.dtype, features.device) if gathered else None
        self.feed = features.held.feed(partial(draw, parts), size, steps)

    def block(self, rates: Sequence[float]) -> StepBlock:
        """Return the next steps: one per rate, or as many as have their rows on the device at the same time.

        Args:
            rates: learning rate of each step, relative to its peak.
        """
        drawn, placed = self.feed.take(min(len(rates), self.most))
        count, script = len(placed.row_nB), self.script
        script.row_nB[:count].copy_(placed.row_nB)
        for target_nB, given_nB in zip(script.targets, drawn.targets, strict=True):
            target_nB[:count].copy_(given_nB)
        script.now_n3[:count].copy_(upload(schedule(rates[:count], self.taken), self.features.device))
        self.taken += count
        block = StepBlock(script, count, self.features, placed.x_RD, placed.scale_R)
        if self.x_nBD is None:
            return block
        # only these: of a small batch the buffer holds hundreds of thousands, and iteration makes a view of each
        x_nBD = self.x_nBD[:count]
        for row_B, x_BD in zip(placed.row_nB, x_nBD, strict=True):
            if self.ready_RD is None:
                self.features.of(placed, row_B, x_BD)
            else:
                torch.index_select(self.ready_RD, 0, row_B, out=x_BD)
        return replace(block, x_nBD=x_nBD)

    def close(self) -> None:
        """Stop loading."""
        self.feed.close()
