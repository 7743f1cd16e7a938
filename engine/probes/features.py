"""Rows of embeddings on the training device, standardised with the statistics of a task's training rows."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.feed import Placed
from substyle.engine.probes.held import Held, Resident
from substyle.engine.probes.standard import Standard
from substyle.engine.probes.tasks import I64
from substyle.engine.table import EmbeddingTable
from substyle.kernels import memory
from substyle.kernels.dispatch import upload
from substyle.kernels.gather import gather


class Features:
    """Gathers rows as standardised (B, D) tensors.

    Args:
        table: embeddings that are held somewhere, or a table, all of which is then brought to the device.
        standard: of the task.
        device: where they are learned.
        dtype: of the GEMMs.
    """

    def __init__(
        self, table: Held | EmbeddingTable, standard: Standard, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.held: Held = Resident.of(table, device) if isinstance(table, EmbeddingTable) else table
        self.device, self.dtype = device, dtype
        mean_D, scale_D = _over_centre(standard, self.held.centre)
        self.projection: torch.Tensor | None = None
        self.mean = torch.from_numpy(mean_D).to(device)
        self.scale = torch.from_numpy(scale_D).to(device)

    @property
    def width(self) -> int:
        """D, or what rows are projected to."""
        return self.held.table.width if self.projection is None else self.projection.shape[1]

    @property
    def variants(self) -> int:
        """T."""
        return len(self.held.table.transformations)

    def full(self) -> Features:
        """The same in float32."""
        other = copy(self)
        other.dtype = torch.float32
        return other

    def projected(self, width: int, seed: int) -> Features:
        """The same through a Gaussian random matrix, which keeps distances (Johnson & Lindenstrauss 1984)."""
        rng, wide = np.random.default_rng([seed, 0x70726F6A]), self.held.table.width
        other = copy(self)
        other.projection = upload((rng.standard_normal((wide, width)) / wide**0.5).astype(np.float32), self.device)
        return other

    def __call__(self, t_B: I64, n_B: I64, out: torch.Tensor | None = None) -> torch.Tensor:
        """Standardised rows. Shape: (B, D), in the dtype of the GEMMs; in ``out`` if it is given."""
        if out is None:
            out = memory.empty((len(t_B), self.width), self.dtype, self.device)
        return self.of(self.held.rows(t_B, n_B), out)

    def of(self, placed: Placed, out: torch.Tensor) -> torch.Tensor:
        """Standardised rows that are there. Shape: (B, D), in ``out``."""
        row_B, wide = upload(placed.row_B, self.device), out
        if self.projection is not None:
            wide = memory.empty((len(out), self.held.table.width), self.dtype, self.device)
        x_BD = gather(placed.x_RD, row_B, self.mean, self.scale, wide, placed.scale_R)
        return x_BD if self.projection is None else torch.mm(x_BD, self.projection.to(self.dtype), out=out)


def _over_centre(standard: Standard, centre: Standard | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale for embeddings that are held as they are, or as ``(x - centre.mean) * centre.scale``.

    A feature that the centre says never varies is held as 0 and stays so.
    """
    if centre is None:
        return standard.mean_D, standard.scale_D
    mean_D = (standard.mean_D.astype(np.float64) - centre.mean_D) * centre.scale_D
    scale_D = np.divide(standard.scale_D, centre.scale_D, out=np.zeros_like(standard.scale_D), where=centre.scale_D > 0)
    return mean_D.astype(np.float32), scale_D
