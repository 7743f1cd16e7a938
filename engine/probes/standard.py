"""Means and deviations of features over rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.tasks import I64, Task
from substyle.engine.table import EmbeddingTable
from substyle.kernels.errors import SubstyleError
from substyle.kernels.gather import gather

SAMPLE = 65_536  # rows, enough for means and standard deviations to 0.4 % of a standard deviation
_CHUNK = 8_192


@dataclass(frozen=True)
class Standard:
    """``(x - mean) * scale``, with scale 0 for a feature that never varies. Shapes: (D,) float32 each."""

    mean_D: NDArray[np.float32]
    scale_D: NDArray[np.float32]


def standard_of(table: EmbeddingTable, task: Task, seed: int) -> Standard:
    """Mean and 1 / standard deviation over the training rows of a task (a fixed sample of 65,536 if there are more).

    They are those of the embeddings as they are stored, however a device holds them.

    Raises SubstyleError where one of them is not finite.
    """
    return over(table, *task.sample(task.train_N, SAMPLE, np.random.default_rng([seed, 0x737464])))


def over(table: EmbeddingTable, t_B: I64, n_B: I64) -> Standard:
    """Mean and 1 / standard deviation over rows. Raises SubstyleError where one of them is not finite."""
    shift = table.take(t_B[:1], n_B[:1])[0].astype(np.float32)  # sums about a row of the data lose no digits
    mean_D, ones = torch.from_numpy(shift), torch.ones(table.width)
    total, squares = np.zeros(table.width), np.zeros(table.width)
    for start in range(0, len(t_B), _CHUNK):
        here = slice(start, start + _CHUNK)
        x_RD, row_B = raw(table, t_B[here], n_B[here])
        rows = torch.from_numpy(row_B)
        part = gather(x_RD, rows, mean_D, ones, torch.empty(len(rows), table.width)).numpy()
        total += part.sum(axis=0, dtype=np.float64)
        squares += np.einsum("nd,nd->d", part, part, dtype=np.float64)
    mean = total / len(t_B)
    deviation = np.sqrt(np.maximum(squares / len(t_B) - mean**2, 0.0))
    mean += shift
    if not np.isfinite(mean).all() or not np.isfinite(deviation).all():
        raise not_finite(table)
    varies = deviation > 1e-5 * np.maximum(np.abs(mean), 1e-3)
    scale = np.divide(1.0, deviation, out=np.zeros(table.width), where=varies)
    return Standard(mean.astype(np.float32), scale.astype(np.float32))


def raw(table: EmbeddingTable, t_B: I64, n_B: I64) -> tuple[torch.Tensor, I64]:
    """Rows of a table on the CPU and which of them are meant: the table itself where it is in memory as it can be."""
    if isinstance(table.x_TND, np.ndarray) and table.x_TND.flags.c_contiguous:
        return torch.from_numpy(table.x_TND.reshape(-1, table.width)), t_B * table.x_TND.shape[1] + n_B
    return torch.from_numpy(np.ascontiguousarray(table.take(t_B, n_B))), np.arange(len(t_B))


def not_finite(table: EmbeddingTable) -> SubstyleError:
    """The error of embeddings that are no numbers."""
    return SubstyleError(f"embeddings of {table.backbone} that count as valid hold NaN or infinite values")
