"""Batches of a training, gathered a few steps ahead: heads that train in turn all read the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from substyle.engine.probes.features import Features
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
        x_nBD: features of n batches, in the dtype of the GEMMs.
        targets: for each batch the targets of each part.
        rows: rows of a batch that belong to each part.
        rates: for each batch the share of the peak learning rate.
    """

    x_nBD: torch.Tensor
    targets: list[list[torch.Tensor]]
    rows: list[slice]
    rates: list[float]

    def __len__(self) -> int:
        return len(self.rates)


class Batches:
    """Gathers blocks into one array, which the next block overwrites."""

    def __init__(self, features: Features, parts: Sequence[Part], most: int) -> None:
        self.features, self.parts = features, parts
        ends = np.cumsum([part.count for part in parts])
        self.rows = [slice(int(end) - part.count, int(end)) for end, part in zip(ends, parts, strict=True)]
        self.size = int(ends[-1])
        shape = most, self.size, features.x_TND.shape[2]
        self.x_nBD = memory.empty(shape, features.dtype, features.device)

    def block(self, rates: Sequence[float]) -> Block:
        """The next batches, one for each rate."""
        targets = []
        for i in range(len(rates)):
            rows = [part.stream.batch(part.count) for part in self.parts]
            t, n = rows[0] if len(rows) == 1 else (np.concatenate(side) for side in zip(*rows, strict=True))
            self.features(t, n, self.x_nBD[i])
            answers = [part.task.answers(*own) for part, own in zip(self.parts, rows, strict=True)]
            targets.append([torch.from_numpy(a).to(self.features.device) for a in answers])
        return Block(self.x_nBD[: len(rates)], targets, self.rows, list(rates))
