"""Embeddings on the training device: float16 (as stored), int8 or streamed from the store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.loader import (
    DoubleBuffer,
    Draw,
    Drawn,
    Job,
    Loader,
    Placed,
    ReadAhead,
    Straight,
    as_torch,
    rows_of_half,
)
from substyle.engine.probes.tasks import I64, Task
from substyle.engine.store.layout import TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError
from substyle.kernels.dispatch import CPU, upload
from substyle.kernels.probe_data import gather, quantise

FLOAT16: Final = "float16"  # the dtype of the store, which may be float32
INT8: Final = "int8"
STREAMED: Final = "streamed"
HOW: tuple[Literal["float16", "int8", "streamed"], ...] = (FLOAT16, INT8, STREAMED)  # in order of preference
SHARE = 0.8  # fraction of free memory for embeddings; the rest is for heads, activations and batches
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def row_bytes(how: str, width: int, itemsize: int = 2) -> int:
    """Bytes of one row in memory."""
    return width + 4 if how == INT8 else width * itemsize


@dataclass(frozen=True)
class MemoryBudget:
    """Size of embeddings and free memory of a device.

    Attributes:
        shape: (T, N, D).
        itemsize: bytes per stored number.
        free: free bytes on the device.
        buffer: buffer size for streaming, in bytes.
        device: name of the device.
    """

    shape: tuple[int, ...]
    itemsize: int
    free: int
    buffer: int
    device: str

    def needs(self, how: str) -> int:
        """Required bytes on the device."""
        variants, images, width = self.shape
        return self.buffer if how == STREAMED else variants * images * row_bytes(how, width, self.itemsize)

    def fits(self, how: str) -> bool:
        """Whether the embeddings fit."""
        return self.needs(how) <= SHARE * self.free

    def choose(self, requested: str) -> str:
        """Resolve ``auto`` to the first format that fits.

        Raises:
            ConfigError: the embeddings do not fit; the message states the sizes.
        """
        chosen = next((how for how in HOW if self.fits(how)), STREAMED) if requested == "auto" else requested
        if not self.fits(chosen):
            others = ", ".join(how for how in HOW if self.fits(how)) or "nothing fits"
            raise ConfigError("probes.expert.table", requested, f"{others} ({self.words(chosen)})")
        return chosen

    def words(self, how: str) -> str:
        """Describe required and free memory."""
        variants, images, width = self.shape
        factors = f"{images:,} images × {variants} variants × {width}"
        need, free = f"{self.needs(how) / 1e9:.2f} GB", f"{SHARE:.0%} of {self.free / 1e9:.2f} GB free on {self.device}"
        if how == STREAMED:
            whole = self.needs(FLOAT16) / 1e9
            return f"streamed: {factors} × {self.itemsize} bytes = {whole:.2f} GB, through a buffer of {need}; {free}"
        each = f"({width} + 4) bytes" if how == INT8 else f"{width} × {self.itemsize} bytes"
        return f"{how}: {images:,} images × {variants} variants × {each} = {need}; {free}"


def free_bytes(device: torch.device) -> int:
    """Free bytes: on a GPU those of the driver and of torch's cache, else available host memory."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    free += [int(line.split()[1]) << 10 for line in _lines(_MEMINFO) if line.startswith("MemAvailable:")]
    most = _lines(_CGROUP / "memory.max")
    if most and most[0].isdigit():  # container limit; page cache is reclaimable
        used = [
            int(line.split()[1]) for line in _lines(_CGROUP / "memory.stat") if line.startswith(("anon ", "shmem "))
        ]
        free.append(max(int(most[0]) - sum(used), 0))
    return min(free)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


SAMPLE = 65_536  # rows: means and standard deviations are accurate to 0.4 % of a standard deviation
_CHUNK, _WIDE = 8_192, 1 << 26  # rows and numbers at once


@dataclass(frozen=True)
class Standardizer:
    """``(x - mean) * scale``, with scale 0 for constant features. Shapes: (D,) float32 each."""

    mean_D: NDArray[np.float32]
    scale_D: NDArray[np.float32]


def standard_of(table: EmbeddingTable, task: Task, seed: int) -> Standardizer:
    """Mean and 1 / standard deviation of stored embeddings over a task's training rows.

    These are a fixed sample of 65,536.

    Raises:
        SubstyleError: an embedding is not finite.
    """
    return over(table, *task.sample(task.train_N, SAMPLE, np.random.default_rng([seed, 0x737464])))


def over(table: EmbeddingTable, t_B: I64, n_B: I64, *, parts: int = 1) -> Standardizer:
    """Mean and 1 / standard deviation over rows. Raises SubstyleError if an embedding is not finite.

    Args:
        parts: number of equally long parts of a row that share mean and scale.
    """
    width = table.width // parts
    shift = table.take(t_B[:1], n_B[:1])[0, :width].astype(np.float32)  # subtracted to avoid cancellation in the sums
    mean_D, ones = torch.from_numpy(np.tile(shift, parts)), torch.ones(table.width)
    total, squares = np.zeros(width), np.zeros(width)
    size = max(1, min(_CHUNK, _WIDE // table.width))
    for start in range(0, len(t_B), size):
        here = slice(start, start + size)
        x_RD, row_B = raw(table, t_B[here], n_B[here])
        rows = torch.from_numpy(row_B)
        part = gather(x_RD, rows, mean_D, ones, torch.empty(len(rows), table.width)).numpy().reshape(-1, width)
        total += part.sum(axis=0, dtype=np.float64)
        squares += np.einsum("nd,nd->d", part, part, dtype=np.float64)
    count = len(t_B) * parts
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    mean += shift
    if not np.isfinite(mean).all() or not np.isfinite(deviation).all():
        raise table.not_finite()
    varies = deviation > 1e-5 * np.maximum(np.abs(mean), 1e-3)
    scale = np.divide(1.0, deviation, out=np.zeros(width), where=varies)
    return Standardizer(*(np.tile(v.astype(np.float32), parts) for v in (mean, scale)))


def raw(table: EmbeddingTable, t_B: I64, n_B: I64) -> tuple[torch.Tensor, I64]:
    """Rows on the CPU as an array and indices into it; the array is the whole table if that is in memory."""
    if isinstance(table.x_TND, np.ndarray) and table.x_TND.flags.c_contiguous:
        return torch.from_numpy(table.x_TND.reshape(-1, table.width)), t_B * table.x_TND.shape[1] + n_B
    return torch.from_numpy(np.ascontiguousarray(table.take(t_B, n_B))), np.arange(len(t_B))


class Resident:
    """Embeddings held entirely on the device.

    Attributes:
        how: float16 or int8.
        device: device of the rows.
        drawn_on: device on which steps are drawn.
        centre: standardisation of int8 embeddings before rounding, else None.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        x_RD: torch.Tensor,
        scale_R: torch.Tensor | None = None,
        centre: Standardizer | None = None,
    ) -> None:
        self.table, self.x_RD, self.scale_R, self.centre = table, x_RD, scale_R, centre
        self.how = FLOAT16 if scale_R is None else INT8
        self.device = self.drawn_on = x_RD.device

    @classmethod
    def of(cls, table: EmbeddingTable, device: torch.device) -> Resident:
        """Load a table to the device; an array on the CPU is not copied."""
        x_TND = np.ascontiguousarray(table.in_memory().x_TND)
        return cls(table, torch.from_numpy(x_TND.reshape(-1, table.width)).to(device))

    def rows(self, t_B: I64, n_B: I64) -> Placed:
        """Return rows (transformation t of image n)."""
        return Placed(self.x_RD, upload(t_B * self.table.x_TND.shape[1] + n_B, self.device), self.scale_R)

    def feed(self, draw: Draw, size: int, steps: int) -> Loader:
        """Create a loader of ``steps`` steps of ``size`` rows each, which ``draw`` draws on ``drawn_on``."""

        def place(drawn: Drawn) -> Placed:
            return Placed(self.x_RD, drawn.t_nB * self.table.x_TND.shape[1] + drawn.n_nB, self.scale_R)

        return Straight(place, draw)


class Streamed:
    """Embeddings streamed from the store, or from host memory: rows of the next steps are read during training.

    Rows of several steps are read in file order, then returned in the order in which they were drawn, so training is
    identical to that on resident embeddings.

    Args:
        buffer: bytes of host memory; a GPU uses as many again.
    """

    def __init__(self, table: EmbeddingTable, device: torch.device, buffer: int) -> None:
        self.table, self.device, self.buffer, self.how = table, device, buffer, STREAMED
        self.drawn_on = CPU
        self.centre: Standardizer | None = None

    def rows(self, t_B: I64, n_B: I64) -> Placed:
        """Read rows (transformation t of image n)."""
        x_RD, row_B = raw(self.table, t_B, n_B)
        if self.device.type == "cpu":
            return Placed(x_RD, torch.from_numpy(row_B))
        x_BD = x_RD[torch.from_numpy(row_B)].to(self.device)
        return Placed(x_BD, torch.arange(len(x_BD), device=self.device))

    def feed(self, draw: Draw, size: int, steps: int) -> Loader:
        """Create a loader that reads as many steps at once as fit into half of the buffer.

        Raises:
            ConfigError: one step does not fit into half of the buffer.
        """
        each = size * self.table.width * self.table.x_TND.dtype.itemsize
        at_once = min(rows_of_half(self.buffer, each), steps)
        if at_once < 1:
            allowed = f"a batch of which two fit into {self.buffer} bytes, unlike rows of width {self.table.width}"
            raise ConfigError("probes.expert.batch", size, allowed)
        return ReadAhead(self.table, self.device, draw, size=size, steps=steps, at_once=at_once)


Dataset = Resident | Streamed


def hold(table: EmbeddingTable, config: ProbeConfig, device: torch.device, *, quiet: bool = True) -> Dataset:
    """Load embeddings for a device in the configured format, or the first that fits; prints it to stderr.

    Raises:
        ConfigError: the embeddings do not fit; the message states the sizes.
        SubstyleError: embeddings are not finite.
    """
    in_memory = isinstance(table.x_TND, np.ndarray)
    if in_memory and device.type == "cpu" and config.expert.table in ("auto", FLOAT16):
        return Resident.of(table, device)  # no copy needed
    itemsize = table.x_TND.dtype.itemsize
    room = MemoryBudget(table.x_TND.shape, itemsize, free_bytes(device), config.stream_buffer, str(device))
    how = room.choose(config.expert.table)
    beside = how == STREAMED and config.expert.table == "auto" and room.needs(FLOAT16) <= SHARE * free_bytes(CPU)
    if not quiet:
        source = " from host memory" if beside else ""
        print(f"probes {table.backbone}: embeddings {room.words(how)}{source}", file=sys.stderr, flush=True)
    if how == STREAMED:
        # a copy in the memory beside a GPU is several times as fast as a disk in every pass
        return Streamed(table.in_memory() if beside else table, device, config.stream_buffer)
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
        raise table.not_finite()
    return Resident(table, x_RD, scale_R, centre)


def _on_device(table: EmbeddingTable, device: torch.device, buffer: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Copy all embeddings to the device in pieces, through a buffer of the given bytes. Yields rows and piece."""
    _, images, width = table.x_TND.shape
    rows = min(max(rows_of_half(buffer, row_bytes(FLOAT16, width, table.x_TND.dtype.itemsize)), 1), images)
    window = DoubleBuffer[int](rows, width, as_torch(table.x_TND.dtype), device)
    for first, count, start in window.through(_pieces(table, rows)):
        yield slice(start, start + count), window.x_RD[first : first + count]


def _pieces(table: EmbeddingTable, rows: int) -> Iterator[Job[int]]:
    variants, images, _ = table.x_TND.shape

    def read(t: int, first: int, out_RD: NDArray[Any]) -> tuple[int, int]:
        count = min(rows, images - first)
        if isinstance(table.x_TND, np.ndarray):  # without a copy in between
            out_RD[:count] = table.x_TND[t, first : first + count]
        else:
            table.take(t, np.arange(first, first + count), out_RD[:count])
        return count, t * images + first

    for t in range(variants):
        for first in range(0, images, rows):
            yield lambda out_RD, t=t, first=first: read(t, first, out_RD)  # type: ignore[misc]


def _centre(table: EmbeddingTable, seed: int) -> Standardizer:
    """Standardisation before rounding, from a sample of variants of training images."""
    images, variants = table.rows(TRAIN), len(table.transformations)
    cells = np.random.default_rng([seed, 0x696E7438]).choice(
        len(images) * variants, min(SAMPLE, len(images) * variants), replace=False
    )
    cells.sort()
    t_B, place = np.divmod(cells, len(images))
    return over(table, t_B, images[place])
