"""Batches of a training, gathered a few steps ahead: heads that train in turn all read the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from substyle.engine.probes.features import Features
from substyle.engine.probes.feed import Drawn
from substyle.engine.probes.sampling import Stream
from substyle.engine.probes.tasks import Task
from substyle.kernels import memory


@dataclass(frozen=True)
class Part:
    """Rows of each batch that one loss is computed on, and the outputs it is computed for.

    Attributes:
        task: what the rows are asked.
        stream: where they come from.
        count: how many of them are in a batch.
        outputs: the outputs of the head that answer.
    """

    task: Task
    stream: Stream
    count: int
    outputs: slice


@dataclass(frozen=True)
class Block:
    """Some successive batches.

    Attributes:
        drawn: the rows of each.
        x_nBD: features of n batches, in the dtype of the GEMMs.
        targets: for each batch the targets of each part.
        rows: rows of a batch that belong to each part.
        rates: for each batch the share of the peak learning rate.
    """

    drawn: list[Drawn]
    x_nBD: torch.Tensor
    targets: list[list[torch.Tensor]]
    rows: list[slice]
    rates: list[float]

    def __len__(self) -> int:
        return len(self.rates)


class Batches:
    """Gathers blocks into one array, which the next block overwrites.

    Args:
        features: gathers the rows.
        parts: make up each batch.
        most: batches of a block.
        steps: batches that may be asked for in all.
    """

    def __init__(self, features: Features, parts: Sequence[Part], most: int, steps: int) -> None:
        self.features, self.parts, self.rows = features, parts, rows_of(parts)
        size = self.rows[-1].stop
        self.x_nBD = memory.empty((most, size, features.width), features.dtype, features.device)
        self.feed = features.held.feed(lambda: draw(parts), size, steps)

    def block(self, rates: Sequence[float]) -> Block:
        """The next batches, one for each rate."""
        drawn, targets = [], []
        for x_BD in self.x_nBD[: len(rates)]:
            step, placed = self.feed.step()
            self.features.of(placed, x_BD)
            drawn.append(step)
            targets.append([torch.from_numpy(a).to(self.features.device) for a in step.answers])
        return Block(drawn, self.x_nBD[: len(rates)], targets, self.rows, list(rates))

    def close(self) -> None:
        """No further block is asked for."""
        self.feed.close()


def rows_of(parts: Sequence[Part]) -> list[slice]:
    """Rows of a batch that belong to each part."""
    ends = np.cumsum([part.count for part in parts])
    return [slice(int(end) - part.count, int(end)) for end, part in zip(ends, parts, strict=True)]


def draw(parts: Sequence[Part]) -> Drawn:
    """The rows of the next batch and their answers."""
    rows = [part.stream.batch(part.count) for part in parts]
    t, n = rows[0] if len(rows) == 1 else (np.concatenate(side) for side in zip(*rows, strict=True))
    return Drawn(t, n, [part.task.answers(*own) for part, own in zip(parts, rows, strict=True)])
