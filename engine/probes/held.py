"""The embeddings of a backbone where probes train: all of them as float16 or int8, or streamed from the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.feed import Drawn, DrawnAhead, Feed, Placed, ReadAhead, Straight
from substyle.engine.probes.room import FLOAT16, INT8, STREAMED, Room, free_bytes, row_bytes
from substyle.engine.probes.standard import SAMPLE, Standard, not_finite, over, raw
from substyle.engine.probes.tasks import I64
from substyle.engine.probes.window import Job, Window, as_torch, rows_of_half
from substyle.engine.store.layout import TRAIN
from substyle.engine.table import EmbeddingTable
from substyle.kernels.errors import ConfigError
from substyle.kernels.gather import quantise


class Held(Protocol):
    """Embeddings that can be reached from a device.

    Attributes:
        table: whose they are.
        how: float16, int8 or streamed.
        device: where rows of them lie.
        centre: what int8 embeddings were standardised by before they were rounded, None for others.
    """

    table: EmbeddingTable
    how: str
    device: torch.device
    centre: Standard | None

    def rows(self, t_B: I64, n_B: I64) -> Placed:
        """Any rows."""
        ...

    def feed(self, draw: Callable[[], Drawn], size: int, steps: int) -> Feed:
        """Rows of ``steps`` steps of ``size`` rows each."""
        ...


class Resident:
    """All embeddings lie on the device."""

    def __init__(
        self,
        table: EmbeddingTable,
        x_RD: torch.Tensor,
        scale_R: torch.Tensor | None = None,
        centre: Standard | None = None,
    ) -> None:
        self.table, self.x_RD, self.scale_R, self.centre = table, x_RD, scale_R, centre
        self.how, self.device = FLOAT16 if scale_R is None else INT8, x_RD.device

    @classmethod
    def of(cls, table: EmbeddingTable, device: torch.device) -> Resident:
        """All of a table in memory, as it is; on a CPU it is not copied."""
        x_TND = np.ascontiguousarray(table.x_TND if isinstance(table.x_TND, np.ndarray) else table.x_TND.whole())
        return cls(table, torch.from_numpy(x_TND.reshape(-1, table.width)).to(device))

    def rows(self, t_B: I64, n_B: I64) -> Placed:
        """Any rows: they are there."""
        return Placed(self.x_RD, t_B * self.table.x_TND.shape[1] + n_B, self.scale_R)

    def feed(self, draw: Callable[[], Drawn], size: int, steps: int) -> Feed:
        """Rows of each step."""
        if self.device.type == "cpu":
            return Straight(self.rows, draw)
        return DrawnAhead(self.rows, draw, steps)


class Streamed:
    """Embeddings stay in the store; rows of the next steps are read while earlier ones are learned.

    The rows are those of any other table in the same order, so that the same is learned: what a few steps draw is read
    in the order in which it lies in the files, and put in the order in which it was drawn.

    Args:
        buffer: bytes of the host's memory; a GPU takes as many.
    """

    def __init__(self, table: EmbeddingTable, device: torch.device, buffer: int) -> None:
        self.table, self.device, self.buffer, self.how = table, device, buffer, STREAMED
        self.centre: Standard | None = None

    def rows(self, t_B: I64, n_B: I64) -> Placed:
        """Any rows, read now."""
        x_RD, row_B = raw(self.table, t_B, n_B)
        if self.device.type == "cpu":
            return Placed(x_RD, row_B)
        return Placed(x_RD[torch.from_numpy(row_B)].to(self.device), np.arange(len(row_B)))

    def feed(self, draw: Callable[[], Drawn], size: int, steps: int) -> Feed:
        """Rows of the next steps, as many as half of the buffer holds.

        Raises:
            ConfigError: it holds less than one step.
        """
        each = size * self.table.width * self.table.x_TND.dtype.itemsize
        at_once = min(rows_of_half(self.buffer, each), steps)
        if at_once < 1:
            allowed = f"at least {2 * each}: two steps of {size} rows of {self.table.width} numbers"
            raise ConfigError("probes.stream_buffer", self.buffer, allowed)
        return ReadAhead(self.table, self.device, draw, size=size, steps=steps, at_once=at_once)


def hold(table: EmbeddingTable, config: ProbeConfig, device: torch.device, *, quiet: bool = True) -> Held:
    """Bring embeddings within reach of a device, as the configuration says or as there is room; says so on stderr.

    Raises:
        ConfigError: there is no room, with the numbers.
        SubstyleError: embeddings that are not finite.
    """
    in_memory = isinstance(table.x_TND, np.ndarray)
    if in_memory and device.type == "cpu" and config.table in ("auto", FLOAT16):
        return Resident.of(table, device)  # there is nothing to decide
    itemsize = table.x_TND.dtype.itemsize
    room = Room(table.x_TND.shape, itemsize, free_bytes(device), config.stream_buffer, str(device))
    how = room.choose(config.table)
    if not quiet:
        print(f"probes {table.backbone}: embeddings {room.words(how)}", file=sys.stderr, flush=True)
    if how == STREAMED:
        return Streamed(table, device, config.stream_buffer)
    if how == INT8:
        return _rounded(table, device, config)
    return Resident.of(table, device) if device.type == "cpu" else _as_stored(table, device, config)


def _as_stored(table: EmbeddingTable, device: torch.device, config: ProbeConfig) -> Resident:
    rows = len(table.keys) * len(table.transformations)
    x_RD = torch.empty(rows, table.width, dtype=as_torch(table.x_TND.dtype), device=device)
    for own, piece_BD in _on_device(table, device, config.stream_buffer):
        x_RD[own].copy_(piece_BD)
    return Resident(table, x_RD)


def _rounded(table: EmbeddingTable, device: torch.device, config: ProbeConfig) -> Resident:
    rows, centre = len(table.keys) * len(table.transformations), _centre(table, config.seed)
    x_RD = torch.empty(rows, table.width, dtype=torch.int8, device=device)
    scale_R = torch.empty(rows, device=device)
    mean_D, scale_D = (torch.from_numpy(v).to(device) for v in (centre.mean_D, centre.scale_D))
    for own, piece_BD in _on_device(table, device, config.stream_buffer):
        x_RD[own], scale_R[own] = quantise(piece_BD, mean_D, scale_D)
    if not bool(torch.isfinite(scale_R).all()):
        raise not_finite(table)
    return Resident(table, x_RD, scale_R, centre)


def _on_device(table: EmbeddingTable, device: torch.device, buffer: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """All embeddings in pieces, and which rows each is: no more than the buffer lies in the host's memory."""
    _, images, width = table.x_TND.shape
    rows = min(max(rows_of_half(buffer, row_bytes(FLOAT16, width, table.x_TND.dtype.itemsize)), 1), images)
    window = Window[int](rows, width, as_torch(table.x_TND.dtype), device)
    for first, count, start in window.through(_pieces(table, rows)):
        yield slice(start, start + count), window.x_RD[first : first + count]


def _pieces(table: EmbeddingTable, rows: int) -> Iterator[Job[int]]:
    variants, images, _ = table.x_TND.shape

    def read(t: int, first: int, out_RD: NDArray[Any]) -> tuple[int, int]:
        count = min(rows, images - first)
        table.part(t, first, first + count, out_RD[:count])
        return count, t * images + first

    for t in range(variants):
        for first in range(0, images, rows):
            yield lambda out_RD, t=t, first=first: read(t, first, out_RD)  # type: ignore[misc]


def _centre(table: EmbeddingTable, seed: int) -> Standard:
    """What standardises rows before they are rounded: a sample of the training images in all variants."""
    images, variants = table.rows(TRAIN), len(table.transformations)
    cells = np.random.default_rng([seed, 0x696E7438]).choice(
        len(images) * variants, min(SAMPLE, len(images) * variants), replace=False
    )
    cells.sort()
    t_B, place = np.divmod(cells, len(images))
    return over(table, t_B, images[place])
