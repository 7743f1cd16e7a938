"""A study's time, memory and disk on some GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from substyle.engine.estimate import networks
from substyle.engine.estimate.devices import Device, Efficiency
from substyle.engine.estimate.variants import variant_bytes
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.room import HOW, STREAMED, Room

BATCH = 256  # of a GPU's engines
HOURS_OF = "embedding alone: decode, variants, styles, backbones; no start-up, probes, analysis or report"


@dataclass(frozen=True)
class Stage:
    """One stage for one photograph.

    Attributes:
        name: decode, variants, styles, or a backbone's.
        flop: operations; traffic: bytes to and from the GPU's memory; of decoding neither was counted.
        seconds: on one GPU.
    """

    name: str
    flop: float
    traffic: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """All embeddings of a backbone: their size in the store, and how they are held on a GPU while probes train."""

    backbone: str
    dim: int
    store_bytes: float
    held: str  # as `[probes] table = "auto"` chooses on an otherwise empty GPU
    held_bytes: float


@dataclass(frozen=True)
class Plan:
    """What a study takes.

    Attributes:
        device, count: the GPU and how many of them.
        photographs, variants: N and T.
        stages: for one photograph; they share the GPU, so their times add up.
        tables: of each backbone.
        memory: bytes on a GPU while embeddings are made.
    """

    device: Device
    count: int
    photographs: int
    variants: int
    stages: tuple[Stage, ...]
    tables: tuple[Table, ...]
    memory: float

    @property
    def seconds(self) -> float:
        """Wall time of embedding everything: no start-up, probes, analysis or report."""
        return self.photographs * sum(stage.seconds for stage in self.stages) / self.count

    @property
    def limiting(self) -> Stage:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def backbone_share(self) -> float:
        """Time of the backbones alone to that of everything."""
        names = {table.backbone for table in self.tables}
        total = sum(stage.seconds for stage in self.stages)
        return sum(stage.seconds for stage in self.stages if stage.name in names) / total

    def hours(self, stage: Stage) -> float:
        """GPU hours of a stage for all photographs."""
        return self.photographs * stage.seconds / 3600

    def costs(self) -> list[dict[str, Any]]:
        """What each backbone takes, alone: embeddings a second on one GPU, GPU hours, and its part of the store.

        A control takes no time that is planned for, and has no rate: None.
        """
        by_name = {stage.name: stage for stage in self.stages}
        costs = []
        for table in self.tables:
            stage = by_name[table.backbone]
            rate = self.variants / stage.seconds if stage.seconds else None
            costs.append({**vars(table), "embeddings_per_s": rate, "gpu_hours": self.hours(stage)})
        return costs

    def describe(self) -> dict[str, Any]:
        """In plain JSON."""
        hours = self.seconds / 3600
        each = self.photographs * self.variants
        free = sum(cost["embeddings_per_s"] is None for cost in self.costs())
        computed = each * (len(self.tables) - free)
        store = sum(table.store_bytes for table in self.tables)
        return {
            "gpu": self.device.name,
            "count": self.count,
            "photographs": self.photographs,
            "variants": self.variants,
            "embeddings": each * len(self.tables),
            "hours": hours,
            "hours_of": HOURS_OF,
            "gpu_hours": hours * self.count,
            "embeddings_per_s": computed / self.seconds if computed else None,  # of backbones that take time
            "of_backbone_rate": self.backbone_share,
            "limiting": self.limiting.name,
            "store_bytes": store,
            "store_bytes_per_s": store / self.seconds,
            "memory_bytes": self.memory,
            "memory_available_bytes": self.device.memory,
            "stages": [{**vars(stage), "gpu_hours": self.hours(stage)} for stage in self.stages],
            "tables": self.costs(),
        }


def plan(
    backbones: Sequence[str],
    transformations: tuple[str, ...],
    photographs: int,
    device: Device,
    *,
    count: int = 1,
    canvas: int = 224,
    dtype: str = "float16",
    efficiency: Efficiency | None = None,
) -> Plan:
    """Plan a study.

    Args:
        backbones: names; transformations: of the suite; photographs: N; count: GPUs.
        canvas: side S in pixels; dtype: of the store.
        efficiency: how much of the GPU's peaks is reached.

    Raises:
        ConfigError: a backbone that cannot be planned for.
    """
    efficiency = efficiency or Efficiency()
    pixels = canvas * canvas * 3
    plain_bytes = variant_bytes(transformations, canvas)
    plain_rate = device.bandwidth * (efficiency.variants or efficiency.bandwidth)
    styles = networks.styles(transformations, canvas)
    stages = [
        Stage("decode", 0.0, 0.0, efficiency.decode_bytes / device.bandwidth),
        Stage("variants", 0.0, plain_bytes, plain_bytes / plain_rate),
        Stage("styles", styles.flop, styles.traffic, styles.seconds(device, efficiency.of(efficiency.styles))),
    ]
    tables, weights, activations = [], 0.0, 0.0
    for name in backbones:
        facts = networks.backbone(name, BATCH)
        times = len(transformations)
        seconds = times * facts.work.seconds(device, efficiency.of(efficiency.backbones))
        stages.append(Stage(name, times * facts.work.flop, times * facts.work.traffic, seconds))
        weights += 2.0 * facts.parameters
        activations = max(activations, max((moved for _, moved in facts.work.products), default=0.0))
        tables.append(_table(name, (len(transformations), photographs, facts.dim), np.dtype(dtype).itemsize, device))
    # two batches of canvases and of every variant under way, in the largest case
    buffers = 2.0 * BATCH * pixels * (1 + len(transformations))
    return Plan(
        device, count, photographs, len(transformations), tuple(stages), tuple(tables), weights + activations + buffers
    )


def _table(name: str, shape: tuple[int, int, int], itemsize: int, device: Device) -> Table:
    buffer = ProbeConfig.stream_buffer
    room = Room(shape, itemsize, int(device.memory), buffer, device.name)
    held = next((how for how in HOW if room.fits(how)), STREAMED)
    return Table(name, shape[2], float(math.prod(shape) * itemsize), held, float(room.needs(held)))
