"""Embeddings for training: on the device or in host memory, in float16 (as stored) or int8, or in the store."""

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
    Read,
    ReadAhead,
    Straight,
    as_torch,
    rows_of_half,
)
from substyle.engine.probes.tasks import I64, Task
from substyle.engine.store.layout import TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError
from substyle.kernels import dispatch
from substyle.kernels.dispatch import CPU, upload
from substyle.kernels.probe_data import gather, quantise

FLOAT16: Final = "float16"  # the dtype of the store, which may be float32
INT8: Final = "int8"
STREAMED: Final = "streamed"
HOW: tuple[Literal["float16", "int8", "streamed"], ...] = (FLOAT16, INT8, STREAMED)  # in order of preference
SHARE = 0.8  # fraction of memory for embeddings; the rest is for heads, activations and batches
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def row_bytes(how: str, width: int, itemsize: int = 2) -> int:
    """Bytes of one row in memory."""
    return width + 4 if how == INT8 else width * itemsize


@dataclass(frozen=True)
class Memory:
    """Memory of a device, or of the host: its size and the part that is free, in bytes."""

    total: int
    free: int
    name: str

    @classmethod
    def of(cls, device: torch.device) -> Memory:
        """The memory of a device of this machine."""
        return cls(total_bytes(device), free_bytes(device), str(device))

    def fits(self, need: int) -> bool:
        """Whether embeddings of so many bytes fit into what is free."""
        return need <= SHARE * self.free


@dataclass(frozen=True)
class MemoryBudget:
    """Size of embeddings, and the memory that can hold them.

    Attributes:
        shape: (T, N, D).
        itemsize: bytes per stored number.
        buffer: buffer size for streaming, in bytes.
        device: memory of the training device; host: of the host, the same on a CPU.
    """

    shape: tuple[int, ...]
    itemsize: int
    buffer: int
    device: Memory
    host: Memory

    def needs(self, how: str) -> int:
        """Bytes of the embeddings, or of the buffer."""
        variants, images, width = self.shape
        return self.buffer if how == STREAMED else variants * images * row_bytes(how, width, self.itemsize)

    def choose(self, requested: str) -> str:
        """Resolve ``auto``.

        Only sizes decide whether embeddings are rounded to int8, not what is free at the moment, so that a study has
        the same results each time.
        """
        if requested != "auto":
            return requested
        if self.needs(FLOAT16) <= SHARE * self.device.total:
            return FLOAT16
        return INT8 if self.needs(INT8) <= SHARE * max(self.device.total, self.host.total) else STREAMED

    @property
    def rounds(self) -> bool:
        """Whether ``auto`` is int8."""
        return self.choose("auto") == INT8

    def place(self, requested: str) -> tuple[str, Memory | None]:
        """Resolve ``auto``, and where the rows are held; None: in the store.

        Raises:
            ConfigError: rows that are asked for in memory, or the buffer, do not fit; the message states the sizes.
        """
        how, auto = self.choose(requested), requested == "auto"
        memories = [self.device, *([self.host] if auto or how == INT8 else [])] if how != STREAMED else []
        held = next((memory for memory in memories if memory.fits(self.needs(how))), None)
        if held is None and how != STREAMED and not auto:
            raise self._refused(requested, how)
        if held is not self.device and not self.device.fits(self.buffer):
            raise self._refused(requested, STREAMED)
        return how, held

    def _refused(self, requested: str, how: str) -> ConfigError:
        fits = [each for each in HOW if self.device.fits(self.needs(each))]
        if INT8 not in fits and self.host.fits(self.needs(INT8)) and self.device.fits(self.buffer):
            fits.append(INT8)
        allowed = ", ".join(each for each in HOW if each in fits) or "nothing fits"
        return ConfigError("probes.expert.table", requested, f"{allowed} ({self.words(how, self.device)})")

    def words(self, how: str, held: Memory | None) -> str:
        """Describe the embeddings, and the required and free memory."""
        variants, images, width = self.shape
        factors = f"{images:,} images × {variants} variants ×"
        number = f"({width} + 4) bytes" if how == INT8 else f"{width} × {self.itemsize} bytes"
        size = self.needs(INT8 if how == INT8 else FLOAT16) / 1e9
        text = f"{how}: {factors} {number} = {size:.2f} GB"
        if how == STREAMED or held is not self.device:
            text += f", through a buffer of {self.buffer / 1e9:.2f} GB"
        shown = {each.name: each for each in (self.device, self.host)}.values()
        return f"{text}; {', '.join(f'{SHARE:.0%} of {each.free / 1e9:.2f} GB free on {each.name}' for each in shown)}"


def total_bytes(device: torch.device) -> int:
    """Size of a device's memory; of the host that of the container, if it has a limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    most = _lines(_CGROUP / "memory.max")
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(size, int(most[0])) if most and most[0].isdigit() else size


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
    """Embeddings streamed to the device during training, ahead of the steps, from host memory or the store.

    Rows of several steps are read together, then returned in the order in which they were drawn, so training is
    identical to that on resident embeddings.

    Args:
        buffer: bytes of host memory; a GPU uses as many again.
        beside: all rows in host memory, as stored or int8; None: they are read from the store.
        centre: standardisation of rows that are rounded to int8; None: they are not.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        device: torch.device,
        buffer: int,
        beside: Resident | None = None,
        centre: Standardizer | None = None,
    ) -> None:
        self.table, self.device, self.buffer, self.beside = table, device, buffer, beside
        self.drawn_on = CPU
        self.centre = centre if beside is None else beside.centre
        self.how = STREAMED if self.centre is None else INT8
        self.dtype = as_torch(table.x_TND.dtype) if self.centre is None else torch.int8

    def read(self, t_R: I64, n_R: I64, out_RD: NDArray[Any]) -> torch.Tensor | None:
        """Read rows (transformation t of image n). Returns the scales (R,) of int8 rows."""
        if self.beside is None:
            if self.centre is None:
                self.table.take(t_R, n_R, out_RD)
                return None
            return self._round(self.centre, t_R, n_R, torch.from_numpy(out_RD))
        row_R = torch.from_numpy(t_R * self.table.x_TND.shape[1] + n_R)
        torch.index_select(self.beside.x_RD, 0, row_R, out=torch.from_numpy(out_RD))
        return None if self.beside.scale_R is None else self.beside.scale_R[row_R]

    def _round(self, centre: Standardizer, t_R: I64, n_R: I64, out_RD: torch.Tensor) -> torch.Tensor:
        mean_D, scale_D = torch.from_numpy(centre.mean_D), torch.from_numpy(centre.scale_D)
        scale_R = torch.empty(len(out_RD))
        for start in range(0, len(out_RD), _CHUNK):
            own = slice(start, start + _CHUNK)
            x_BD = torch.from_numpy(self.table.take(t_R[own], n_R[own]))
            out_RD[own], scale_R[own] = quantise(x_BD, mean_D, scale_D)
        if not bool(torch.isfinite(scale_R).all()):
            raise self.table.not_finite()
        return scale_R

    def rows(self, t_B: I64, n_B: I64) -> Placed:
        """Read rows (transformation t of image n)."""
        if self.device.type == "cpu" and self.how == STREAMED and self.beside is None:
            x_RD, place_B = raw(self.table, t_B, n_B)
            return Placed(x_RD, torch.from_numpy(place_B))
        x_BD = torch.empty(len(t_B), self.table.width, dtype=self.dtype)
        scale_B = self.read(t_B, n_B, x_BD.numpy())
        row_B = torch.arange(len(x_BD), device=self.device)
        return Placed(x_BD.to(self.device), row_B, None if scale_B is None else scale_B.to(self.device))

    def feed(self, draw: Draw, size: int, steps: int) -> Loader:
        """Create a loader that reads as many steps at once as fit into half of the buffer.

        Raises:
            ConfigError: one step does not fit into half of the buffer.
        """
        width = self.table.width
        at_once = min(rows_of_half(self.buffer, size * width * self.dtype.itemsize), steps)
        if at_once < 1:
            allowed = f"a batch of which two fit into {self.buffer} bytes, unlike rows of width {width}"
            raise ConfigError("probes.expert.batch", size, allowed)
        window = DoubleBuffer[Read](at_once * size, width, self.dtype, self.device)
        return ReadAhead(window, self.read, draw, size=size, steps=steps, at_once=at_once)


Dataset = Resident | Streamed


def budget_of(table: EmbeddingTable, device: torch.device, buffer: int = ProbeConfig.stream_buffer) -> MemoryBudget:
    """Size of embeddings, and the memory of this machine."""
    memory = Memory.of(device)
    host = memory if device.type == "cpu" else Memory.of(CPU)
    return MemoryBudget(table.x_TND.shape, table.x_TND.dtype.itemsize, buffer, memory, host)


def hold(table: EmbeddingTable, config: ProbeConfig, device: torch.device, *, quiet: bool = True) -> Dataset:
    """Load embeddings for a device in the configured format, or the first that fits; prints it to stderr.

    Raises:
        ConfigError: the embeddings do not fit; the message states the sizes.
        SubstyleError: embeddings are not finite.
    """
    in_memory = isinstance(table.x_TND, np.ndarray)
    if in_memory and device.type == "cpu" and config.expert.table in ("auto", FLOAT16):
        return Resident.of(table, device)  # no copy needed
    budget = budget_of(table, device, config.stream_buffer)
    how, held = budget.place(config.expert.table)
    if not quiet and (how != FLOAT16 or held is not budget.device):
        where = {id(budget.host): " from host memory", id(budget.device): ""}.get(id(held), " from the store")
        print(f"probes {table.backbone}: embeddings {budget.words(how, held)}{where}", file=sys.stderr, flush=True)
    if held is None:
        return Streamed(table, device, config.stream_buffer, None, _centre(table, config.seed) if how == INT8 else None)
    if held is not budget.device:  # several times as fast as a disk in every pass
        beside = _rounded(table, device, config, CPU) if how == INT8 else Resident.of(table, CPU)
        return Streamed(table, device, config.stream_buffer, beside)
    if how == INT8:
        return _rounded(table, device, config, device)
    return Resident.of(table, device) if device.type == "cpu" else _as_stored(table, device, config)


def _as_stored(table: EmbeddingTable, device: torch.device, config: ProbeConfig) -> Resident:
    rows = len(table.keys) * len(table.transformations)
    x_RD = torch.empty(rows, table.width, dtype=as_torch(table.x_TND.dtype), device=device)
    for own, piece_BD in _on_device(table, device, config.stream_buffer):
        x_RD[own].copy_(piece_BD)
    return Resident(table, x_RD)


def _rounded(table: EmbeddingTable, device: torch.device, config: ProbeConfig, held: torch.device) -> Resident:
    """Round on the training device, and hold the rows on this or another one."""
    rows, centre = len(table.keys) * len(table.transformations), _centre(table, config.seed)
    x_RD = dispatch.empty((rows, table.width), torch.int8, held)
    scale_R = torch.empty(rows, device=held)
    mean_D, scale_D = (torch.from_numpy(v).to(device) for v in (centre.mean_D, centre.scale_D))
    for own, piece_BD in _on_device(table, device, config.stream_buffer):
        rounded_BD, scale_B = quantise(piece_BD, mean_D, scale_D)
        x_RD[own].copy_(rounded_BD)
        scale_R[own].copy_(scale_B)
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
