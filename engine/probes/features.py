"""Rows of an embedding table on the training device, standardised with the statistics of a task's training rows."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.tasks import I64, Task
from substyle.engine.table import EmbeddingTable
from substyle.kernels import memory, probe_native
from substyle.kernels.errors import SubstyleError

_STATISTICS_ROWS = 65_536  # enough for means and standard deviations to 0.4 % of a standard deviation
_CHUNK = 8_192


@dataclass(frozen=True)
class Standard:
    """``(x - mean) * scale``, with scale 0 for a feature that never varies. Shapes: (D,) float32 each."""

    mean_D: NDArray[np.float32]
    scale_D: NDArray[np.float32]


def standard_of(table: EmbeddingTable, task: Task, seed: int) -> Standard:
    """Mean and 1 / standard deviation over the training rows of a task (a fixed sample of 65,536 if there are more).

    Raises SubstyleError where one of them is not finite.
    """
    t, n = task.sample(task.train_N, _STATISTICS_ROWS, np.random.default_rng([seed, 0x737464]))
    width = table.x_TND.shape[2]
    shift = table.x_TND[t[0], n[0]].astype(np.float32)  # sums about a row of the data lose no digits
    ones = np.ones(width, np.float32)
    rows = Features(table, Standard(shift, ones), torch.device("cpu"), torch.float32)
    total, squares = np.zeros(width), np.zeros(width)
    for start in range(0, len(t), _CHUNK):
        here = slice(start, start + _CHUNK)
        part = rows(t[here], n[here]).numpy()
        total += part.sum(axis=0, dtype=np.float64)
        squares += np.einsum("nd,nd->d", part, part, dtype=np.float64)
    mean = total / len(t)
    deviation = np.sqrt(np.maximum(squares / len(t) - mean**2, 0.0))
    mean += shift
    if not np.isfinite(mean).all() or not np.isfinite(deviation).all():
        raise SubstyleError(f"embeddings of {table.backbone} that count as valid hold NaN or infinite values")
    varies = deviation > 1e-5 * np.maximum(np.abs(mean), 1e-3)
    scale = np.divide(1.0, deviation, out=np.zeros(width), where=varies)
    return Standard(mean.astype(np.float32), scale.astype(np.float32))


class Features:
    """Gathers rows of a table as standardised (B, D) tensors."""

    def __init__(self, table: EmbeddingTable, standard: Standard, device: torch.device, dtype: torch.dtype) -> None:
        self.x_TND = table.x_TND
        self.device, self.dtype = device, dtype
        self.mean = torch.from_numpy(standard.mean_D).to(device)
        self.scale = torch.from_numpy(standard.scale_D).to(device)
        plain = self.x_TND.flags.c_contiguous and self.x_TND.dtype in (np.float16, np.float32)
        self.x_RD = self.x_TND.reshape(-1, self.width) if plain else None

    @property
    def width(self) -> int:
        """D."""
        return int(self.x_TND.shape[2])

    def full(self) -> Features:
        """The same in float32."""
        other = copy(self)
        other.dtype = torch.float32
        return other

    def __call__(self, t_B: I64, n_B: I64, out: torch.Tensor | None = None) -> torch.Tensor:
        """Standardised rows. Shape: (B, D), in the dtype of the GEMMs; in ``out`` if it is given."""
        if self.x_RD is not None and probe_native.available(self.device, self.dtype):
            if out is None:
                out = memory.empty((len(t_B), self.width), self.dtype, self.device)
            probe_native.gather(self.x_RD, t_B * self.x_TND.shape[1] + n_B, self.mean, self.scale, out)
            return out
        x = torch.from_numpy(self.x_TND[t_B, n_B]).to(self.device).float().sub_(self.mean).mul_(self.scale)
        return x.to(self.dtype) if out is None else out.copy_(x)
