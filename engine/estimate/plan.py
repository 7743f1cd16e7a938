"""Estimate the time, memory and disk space of a study on given GPUs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine.estimate import roofline
from substyle.engine.estimate.roofline import DEVICES, Device, Efficiency, variant_bytes
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import HOW, STREAMED, MemoryBudget
from substyle.kernels.errors import SubstyleError
from substyle.pipelines.transforms.registry import suite

BATCH = 256  # images per batch of a GPU engine
HOURS_OF = "decode, variants, styles and backbones, but not startup, probes, analysis or report"


@dataclass(frozen=True)
class StageEstimate:
    """Cost of one stage per photograph.

    Attributes:
        name: ``decode``, ``variants``, ``styles``, or the name of a backbone.
        flop: operations; traffic: bytes to and from GPU memory. Not counted, and 0, for decode.
        seconds: time on one GPU.
    """

    name: str
    flop: float
    traffic: float
    seconds: float


@dataclass(frozen=True)
class DatasetEstimate:
    """Embeddings of one backbone: size in the store, and storage on a GPU during probe training."""

    backbone: str
    dim: int
    store_bytes: float
    held: str  # choice of `[probes] table = "auto"` on an otherwise empty GPU
    held_bytes: float


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a study.

    Attributes:
        device, count: GPU model and number of GPUs.
        photographs, variants: N and T.
        stages: costs per photograph. Stages share the GPU, so their times add up.
        tables: embeddings of each backbone.
        memory: bytes per GPU during embedding.
    """

    device: Device
    count: int
    photographs: int
    variants: int
    stages: tuple[StageEstimate, ...]
    tables: tuple[DatasetEstimate, ...]
    memory: float

    @property
    def seconds(self) -> float:
        """Wall time of embedding, without startup, probes, analysis and report."""
        return self.photographs * sum(stage.seconds for stage in self.stages) / self.count

    @property
    def limiting(self) -> StageEstimate:
        """The slowest stage."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def backbone_share(self) -> float:
        """Fraction of the time spent in backbones."""
        names = {table.backbone for table in self.tables}
        total = sum(stage.seconds for stage in self.stages)
        return sum(stage.seconds for stage in self.stages if stage.name in names) / total

    def hours(self, stage: StageEstimate) -> float:
        """Return the GPU hours of a stage for all photographs."""
        return self.photographs * stage.seconds / 3600

    def costs(self) -> list[dict[str, Any]]:
        """Return each backbone's own cost: embeddings/s on one GPU (None for a control), GPU hours, storage."""
        by_name = {stage.name: stage for stage in self.stages}
        costs = []
        for table in self.tables:
            stage = by_name[table.backbone]
            rate = self.variants / stage.seconds if stage.seconds else None
            costs.append({**vars(table), "embeddings_per_s": rate, "gpu_hours": self.hours(stage)})
        return costs

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain JSON."""
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
            "embeddings_per_s": computed / self.seconds if computed else None,  # without controls
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
    """Estimate the cost of a study.

    Args:
        backbones: names of backbones.
        transformations: names of the suite's transformations.
        photographs: N; count: number of GPUs.
        canvas: side S in pixels; dtype: type of the stored embeddings.
        efficiency: achieved fractions of the GPU's peak rates.

    Raises:
        ConfigError: a backbone cannot be estimated.
    """
    efficiency = efficiency or Efficiency()
    pixels = canvas * canvas * 3
    plain_bytes = variant_bytes(transformations, canvas)
    plain_rate = device.bandwidth * (efficiency.variants or efficiency.bandwidth)
    styles = roofline.styles(transformations, canvas)
    stages = [
        StageEstimate("decode", 0.0, 0.0, efficiency.decode_bytes / device.bandwidth),
        StageEstimate("variants", 0.0, plain_bytes, plain_bytes / plain_rate),
        StageEstimate("styles", styles.flop, styles.traffic, styles.seconds(device, efficiency.of(efficiency.styles))),
    ]
    tables, weights, activations = [], 0.0, 0.0
    for name in backbones:
        facts = roofline.backbone(name, BATCH)
        times = len(transformations)
        seconds = times * facts.work.seconds(device, efficiency.of(efficiency.backbones))
        stages.append(StageEstimate(name, times * facts.work.flop, times * facts.work.traffic, seconds))
        weights += 2.0 * facts.parameters
        activations = max(activations, max((moved for _, moved in facts.work.products), default=0.0))
        tables.append(_table(name, (len(transformations), photographs, facts.dim), np.dtype(dtype).itemsize, device))
    # at most two batches in flight, each with canvases and all variants
    buffers = 2.0 * BATCH * pixels * (1 + len(transformations))
    return Plan(
        device, count, photographs, len(transformations), tuple(stages), tuple(tables), weights + activations + buffers
    )


def _table(name: str, shape: tuple[int, int, int], itemsize: int, device: Device) -> DatasetEstimate:
    buffer = ProbeConfig.stream_buffer
    room = MemoryBudget(shape, itemsize, int(device.memory), buffer, device.name)
    held = next((how for how in HOW if room.fits(how)), STREAMED)
    return DatasetEstimate(name, shape[2], float(math.prod(shape) * itemsize), held, float(room.needs(held)))


FIELDS = ("backbones", "styles", "variants", "decode_bytes")  # fields of `Efficiency` measured by gpu-check
GIVEN, MEASURED, ASSUMED = "given", "measured", "assumed"


def fact(field: str) -> str:
    """Return the key of an `Efficiency` field in the rows of gpu-check."""
    return f"plan: {field}"


@dataclass(frozen=True)
class Basis:
    """Efficiencies used by a plan, and their origin.

    Attributes:
        efficiency: the values.
        sources: ``given``, ``measured`` or ``assumed`` for each field that the plan uses.
        measurement: card, time and file of the measurement; "" if nothing was measured.
    """

    efficiency: Efficiency
    sources: dict[str, str]
    measurement: str

    def describe(self) -> dict[str, Any]:
        """Return the basis as plain JSON."""
        values = {name: {"value": getattr(self.efficiency, name), "from": s} for name, s in self.sources.items()}
        return {"efficiency": values, "measurement": self.measurement or None}


def basis(card: str, folder: Path, given: Mapping[str, float]) -> Basis:
    """Return the efficiencies of a card: given, else measured, else assumed.

    Args:
        card: short name, a key of `DEVICES`.
        folder: results of gpu-check; may not exist.
        given: ``compute`` and ``bandwidth``, or empty. They override measurements of the same work.
    """
    found, measurement = newest(card, folder)
    if given:  # these cover networks and variants; only decoding is left
        found = {name: value for name, value in found.items() if name == "decode_bytes"}
    efficiency = replace(Efficiency(**found), **given)
    networks = efficiency.backbones is None or efficiency.styles is None
    used = [*(["compute"] if networks else []), *(["bandwidth"] if networks or efficiency.variants is None else [])]
    sources = {name: GIVEN if name in given else ASSUMED for name in used}
    for name in FIELDS:
        if getattr(efficiency, name) is not None:
            sources[name] = MEASURED if name in found else ASSUMED
    return Basis(efficiency, sources, measurement if found else "")


def newest(card: str, folder: Path) -> tuple[dict[str, float], str]:
    """Return `Efficiency` fields from a card's newest results, and their origin; both empty without results.

    Raises:
        SubstyleError: a results file is invalid.
    """
    kept = [(path, _document(path)) for path in sorted(folder.glob("gpu-*.json"))]
    of_card = [(data["environment"], data["rows"], path) for path, data in kept if data["environment"]["card"] == card]
    if not of_card:
        return {}, ""
    about, rows, path = max(of_card, key=lambda one: str(one[0].get("created", "")))
    return fields(rows), f"{about.get('device', card)}, {about.get('created', 'at an unknown time')}, {path.name}"


def fields(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Extract fields of `Efficiency` from the rows of gpu-check.

    For a network measured in several runtimes, TensorRT counts, as ``runtime = "auto"`` would choose it. ``backbones``
    is the median over networks.
    """
    networks: dict[str, tuple[bool, float]] = {}
    found: dict[str, float] = {}
    for row in rows:
        for name in FIELDS:
            value = row.get("facts", {}).get(fact(name))
            if not isinstance(value, int | float) or not 0.0 < value < math.inf:
                continue
            if name == "backbones":
                network, by_tensorrt = str(row["name"]).partition(",")[0], "TensorRT" in str(row["name"])
                networks[network] = max(networks.get(network, (False, 0.0)), (by_tensorrt, float(value)))
            else:
                found[name] = float(value)
    if networks:
        found["backbones"] = statistics.median(value for _, value in networks.values())
    shares = ("backbones", "styles")
    return {name: min(value, 1.0) if name in shares else value for name, value in found.items()}


def _document(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        good = data["benchmark"] == "gpu_check" and "card" in data["environment"] and isinstance(data["rows"], list)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SubstyleError(f"{path}: not a results file of gpu-check ({type(error).__name__}: {error})") from error
    if not good:
        raise SubstyleError(f"{path}: not a results file of gpu-check")
    return dict(data)


# The performance goal of the engine.
CARD, HOURS = "h100", 1.0
PHOTOGRAPHS = 1_331_167  # of ImageNet: training and validation images
BACKBONE = "timm:vit_base_patch16_224"
WHAT = "ImageNet × 31 embedded with ViT-B/16 on one H100"


def goal(efficiency: Efficiency) -> dict[str, Any]:
    """Return the goal and the estimate for it, in hours."""
    made = plan([BACKBONE], suite("substance31"), PHOTOGRAPHS, DEVICES[CARD], efficiency=efficiency)
    return {"what": WHAT, "hours": HOURS, "planned_hours": made.seconds / 3600}
