"""Estimate the time, memory and disk space of a study on given GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from substyle.engine.config import AnalysisConfig
from substyle.engine.estimate import analysis, stages
from substyle.engine.estimate import probes as probing
from substyle.engine.estimate.roofline import DISK, Busy, Device, Efficiency, Work, slowest, total
from substyle.engine.estimate.stages import BATCH
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import HOW, STREAMED, MemoryBudget
from substyle.engine.store.layout import DEFAULT_FRACTIONS, Fractions
from substyle.pipelines.transforms.base import get, real

# Host seconds, measured on one Xeon core in 2026-11, in batches of 256. Python: per photograph headers (98 µs) and
# feeding the decoder (30); per variant parameters (3.0) and launches (2.3); per embedding its copy to the host (1.9).
# Other threads: reading a file (100 µs, on 4 threads); writing, per byte of the store (cast, checksum, fsync on four
# threads of two cores: 0.41 GB/s, the row "write" of benchmarks/store.py).
_PHOTOGRAPH, _VARIANT, _EMBEDDING, _READ, _WRITE = 128e-6, 5.3e-6, 1.9e-6, 100e-6 / 4, 1 / 0.41e9
_FILE = 110e3  # bytes of a photograph, the mean of ImageNet's
_DISK = 1e9  # bytes per second of the one disk, assumed

EMBEDDING, PROBES, ANALYSIS = STAGES = ("embedding", "probes", "analysis")
SHARED, NETWORKS, CONTROLS, MEANWHILE = "decode, variants, styles", "backbones", "controls", "host and disk"
_Spent = dict[tuple[str, str], list[tuple[str, Busy]]]  # by stage and part: a backbone and seconds by resource
ROOFLINE, _CORE, _ONE_DISK = "counted: roofline", "measured: one Xeon core", "assumed: disk of 1 GB/s"
SOURCES = {
    MEANWHILE: f"{_CORE}; {_ONE_DISK}",
    probing.LOADING: f"counted: bytes; {_ONE_DISK}",
    **dict.fromkeys((*probing.LINEAR.values(), probing.EQUAL), "counted: solver; measured: passes of 272 photographs"),
    **dict.fromkeys((probing.MLPS, probing.MULTITASK), "counted: step; assumed: steps doubled once"),
    probing.SCORES: _CORE,
    analysis.NEIGHBOURS: f"counted: products; {_CORE}",
    analysis.CLUSTERS: f"counted: products; {_CORE}",
    analysis.GEOMETRY: _CORE,
}
"""Where the hours of each part are from, if not from the roofline."""

CLASSES = 1000  # ImageNet's, where photographs are not listed

# How the work of a stage is counted
OPERATORS, AS_RUN = "DALI's operators", "every operation moves its tensors"
FUSED, PRODUCTS = "fused as by torch.compile", "products; all else is fused"


@dataclass(frozen=True)
class StageEstimate:
    """Cost of one stage per photograph.

    Attributes:
        name: ``decode``, ``variants``, ``styles``, or the name of a backbone; counted: how its work is counted.
        flop: operations; traffic: bytes to and from GPU memory; launches: kernels per batch of 256 images.
        compute, bandwidth: seconds on one GPU in kernels limited by arithmetic, and by memory; seconds: their sum.
    """

    name: str
    counted: str
    flop: float
    traffic: float
    launches: float
    compute: float
    bandwidth: float
    seconds: float


@dataclass(frozen=True)
class DatasetEstimate:
    """One backbone: size D of its embeddings and cost.

    Attributes:
        store_bytes: size in the store.
        held, held_bytes: storage on an otherwise empty GPU during probe training, `[probes] table = "auto"`.
        embeddings_per_s: on one GPU; None for a control, and for a layer computed in the pass of a deeper one.
        gpu_hours: of this backbone alone.
    """

    backbone: str
    dim: int
    store_bytes: float
    held: str
    held_bytes: float
    embeddings_per_s: float | None
    gpu_hours: float


@dataclass(frozen=True)
class StudyPart:
    """A part of the study, over all backbones.

    Attributes:
        stage: ``embedding``, ``probes`` or ``analysis``.
        hours: wall time; parts follow one another, so their hours add up.
        limited_by: the resource that is busy longest.
        busy: hours of each resource. The units of a GPU work in turn, other resources at the same time.
        source: what was counted, measured or assumed.
    """

    stage: str
    name: str
    hours: float
    limited_by: str
    busy: dict[str, float]
    source: str


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a study.

    Attributes:
        gpu, count: GPU model and number of GPUs.
        photographs, variants: N and T.
        hours: wall time of decode, variants, styles and backbones; startup is left out.
        embeddings_per_s: without controls; None if all are.
        of_backbone_rate: rate as a fraction of that of the backbones alone.
        mean_variant_us: mean GPU time of a variant other than the identity; 0 without any.
        limiting: the resource that limits the rate.
        busy: seconds per photograph for which each resource of one GPU's process is busy. All work at the same time.
        store_bytes: size of the store; memory_bytes: per GPU during embedding, of memory_available_bytes.
        stages: costs per photograph. Stages share the GPU, so their times add up.
        tables: backbones.
        parts: the whole study; total_hours: of it. Probes and analysis of a backbone run on one GPU.
        not_counted: transformations of other libraries, which processes on the host compute at rates of their own.
    """

    gpu: str
    count: int
    photographs: int
    variants: int
    hours: float
    total_hours: float
    embeddings_per_s: float | None
    of_backbone_rate: float
    mean_variant_us: float
    limiting: str
    busy: dict[str, float]
    store_bytes: float
    memory_bytes: float
    memory_available_bytes: float
    stages: list[StageEstimate]
    tables: list[DatasetEstimate]
    parts: list[StudyPart]
    not_counted: list[str]

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain JSON."""
        return asdict(self)


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
    probes: ProbeConfig | None = None,
    analyzed: AnalysisConfig | None = None,
    classes: int = CLASSES,
    fractions: Fractions = DEFAULT_FRACTIONS,
) -> Plan:
    """Estimate the cost of a study.

    Args:
        backbones: names of backbones, also of several layers.
        transformations: names of the suite's transformations.
        photographs: N; count: number of GPUs.
        canvas: side S in pixels; dtype: type of the stored embeddings.
        efficiency: achieved fractions of the GPU's peak rates.
        probes, analyzed: settings of probes and of the analysis.
        classes: number of classes C of the photographs.
        fractions: of training, validation and test photographs.

    Raises:
        ConfigError: a backbone cannot be estimated.
    """
    config = probes or ProbeConfig()
    reached = efficiency or Efficiency(device.reached)

    spent: _Spent = {}

    def stage(name: str, counted: str, work: Work, measured: float | None, times: int = 1) -> StageEstimate:
        compute, bandwidth = (times * seconds for seconds in work.times(device, reached.of(measured)))
        part = SHARED if name in SHARED.split(", ") else CONTROLS if name.startswith("control:") else NETWORKS
        of_one = total((times * photographs / count, work.busy(device, reached.of(measured))))
        spent.setdefault((EMBEDDING, part), []).append((name, of_one))
        counts = (times * work.flop, times * work.traffic, times * len(work.launches) * BATCH / work.images)
        return StageEstimate(name, counted, *counts, compute, bandwidth, compute + bandwidth)

    files = 1 + len(real(transformations))  # of a photograph, which are read and decoded
    shared = [
        stage("decode", OPERATORS, stages.decode(canvas), None, files),
        stage("variants", AS_RUN, stages.variants(transformations, canvas), reached.variants),
        stage("styles", FUSED, stages.styles(transformations, canvas), reached.styles),
    ]
    networks, tables, times = list[StageEstimate](), list[DatasetEstimate](), len(transformations)
    weights, activations = 0.0, 0.0
    found = [stages.backbones(name, BATCH) for name in backbones]
    for name, facts in (pair for layers in found for pair in layers.items()):
        counted = PRODUCTS if facts.parameters or not facts.work.launches else AS_RUN
        networks.append(stage(name, counted, facts.work, reached.backbones, times))
        weights += 2.0 * facts.parameters
        activations = max(activations, max((launch.moved for launch in facts.work.launches), default=0.0))
        shape, itemsize, seconds = (times, photographs, facts.dim), np.dtype(dtype).itemsize, networks[-1].seconds
        held, room = _held(shape, itemsize, device)
        cost = (times / seconds if facts.parameters else None, photographs * seconds / 3600)
        stored, resident = float(math.prod(shape) * itemsize), float(room.needs(held))
        tables.append(DatasetEstimate(name, facts.dim, stored, held, resident, *cost))
        table = probing.ProbedTable(
            *(facts.dim, itemsize, held, transformations, photographs, classes, fractions[0], fractions[2]), stored
        )
        others = sum(map(len, found)) - 1
        each = probing.parts(table, config, device, reached, _DISK, backbone=name, others=others)
        for part, own in each:
            spent.setdefault((PROBES, part), []).append((name, own))
        for part, own in analysis.parts(table, analyzed or AnalysisConfig(), device, reached, _DISK):
            spent.setdefault((ANALYSIS, part), []).append((name, own))
    compute, bandwidth = (sum(getattr(s, by) for s in (*shared, *networks)) for by in ("compute", "bandwidth"))
    made = sum(get(name).made_by not in ("identity", "library") for name in transformations)
    store = sum(table.store_bytes for table in tables)
    busy = {
        "GPU compute" if compute > bandwidth else "GPU bandwidth": compute + bandwidth,
        "JPEG decoder": files * reached.decode_bytes / device.bandwidth,
        "copy engine": max(files * _FILE, 4.0 * times * sum(table.dim for table in tables))
        / device.copies,  # out in float32
        "host (Python)": _PHOTOGRAPH + made * _VARIANT + times * len(tables) * _EMBEDDING,
        "host (reading)": files * _READ,
        "host (writing)": store / photographs * _WRITE,
        "disk": count * (files * _FILE + store / photographs) / _DISK,  # all processes share one
    }
    longest = max(busy.values())
    waited = max(0.0, longest - compute - bandwidth)
    meanwhile = {name: photographs / count / 3600 * each for name, each in busy.items() if not name.startswith("GPU")}
    behind = max(meanwhile, key=meanwhile.__getitem__)
    parts = [_part(stage, part, each, _share(spent, stage, count)) for (stage, part), each in spent.items()]
    parts.append(
        StudyPart(EMBEDDING, MEANWHILE, photographs * waited / count / 3600, behind, meanwhile, SOURCES[MEANWHILE])
    )
    parts.sort(key=lambda part: STAGES.index(part.stage))
    computed = sum(len(layers) for layers in found if any(facts.parameters for facts in layers.values()))
    return Plan(
        device.name,
        count,
        photographs,
        times,
        hours=photographs * longest / count / 3600,
        total_hours=sum(part.hours for part in parts),
        embeddings_per_s=computed * times * count / longest if computed else None,
        of_backbone_rate=sum(network.seconds for network in networks) / longest,
        mean_variant_us=1e6 * (shared[1].seconds + shared[2].seconds) / max(made, 1),
        limiting=max(busy, key=busy.__getitem__),
        busy=busy,
        store_bytes=store,
        # at most two batches in flight, each with canvases and all variants
        memory_bytes=weights + activations + 2.0 * BATCH * 3 * canvas**2 * (1 + times),
        memory_available_bytes=device.memory,
        stages=[*shared, *networks],
        tables=tables,
        parts=parts,
        not_counted=[name for name in transformations if get(name).made_by == "library"],
    )


def _share(spent: _Spent, stage: str, count: int) -> float:
    """Fraction of the seconds of all backbones that a stage takes, if each GPU computes one backbone at a time.

    Those of embedding are already divided among the GPUs.
    """
    if stage == EMBEDDING:
        return 1.0
    seconds = dict[str, float]()
    for (own, _), each in spent.items():
        for name, busy in each if own == stage else ():
            seconds[name] = seconds.get(name, 0.0) + slowest(busy)[1]
    gpus = [0.0] * count
    for longest in sorted(seconds.values(), reverse=True):
        gpus[gpus.index(min(gpus))] += longest
    return max(gpus) / sum(gpus) if sum(gpus) else 1.0


def _part(stage: str, name: str, each: Sequence[tuple[str, Busy]], share: float) -> StudyPart:
    """A part of several backbones. The processes share one disk."""
    busy = {resource: hours for resource, hours in total(*((1 / 3600, own) for _, own in each)).items() if hours}
    limited, hours = slowest(busy)[0], sum(slowest(own)[1] for _, own in each) / 3600
    return StudyPart(
        stage, name, hours * (1.0 if limited == DISK else share), limited, busy, SOURCES.get(name, ROOFLINE)
    )


def _held(shape: tuple[int, ...], itemsize: int, device: Device) -> tuple[str, MemoryBudget]:
    """How a table is held for probes on an otherwise empty GPU."""
    room = MemoryBudget(shape, itemsize, int(device.memory), ProbeConfig.stream_buffer, device.name)
    return next((how for how in HOW if room.fits(how)), STREAMED), room
