"""Estimate the time, memory and disk space of a study on given GPUs: work of each photograph at the GPU's rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from substyle.engine.config import Study
from substyle.engine.estimate import analysis, networks
from substyle.engine.estimate import probes as probing
from substyle.engine.estimate.roofline import DECODER, DEVICES, DISK, GPU, HOST, Busy, Device, slowest
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import HOW, STREAMED, MemoryBudget
from substyle.engine.store.layout import rows_of_shards
from substyle.pipelines.transforms.base import Transformation, get, real

# Host seconds, measured on one Xeon core in 2026-11, in batches of 256. Python: per photograph headers (98 µs) and
# feeding the decoder (30); per variant parameters (3.0) and launches (2.3); per embedding its copy to the host (1.9).
# Other threads write, per byte of the store (cast, checksum, fsync on four threads of two cores: 0.41 GB/s, the row
# "write" of benchmarks/store.py).
_PHOTOGRAPH, _VARIANT, _EMBEDDING, _WRITE = 128e-6, 5.3e-6, 1.9e-6, 1 / 0.41e9
_FILE = 110e3  # bytes of a photograph, the mean of ImageNet's
_DISK = 1e9  # bytes per second of the one disk, assumed
_DALI = 21_567  # photographs per second on an H100
# A variant takes as long on a GPU as moving so many canvases. Of substance31, the mean of benchmarks/operators.py, with
# the multiplications of filters. Of others, counted on tensors without memory in 2026-11: more where torch runs
# operations one by one. A style takes so many operations and bytes at 224 pixels, if torch.compile fuses its network.
_SUBSTANCE = 31
_CANVASES = {"imagenet_c": 170, "obfuscation": 66, "traces": 533, "lighting": 112, "viewpoint": 112, "sensor": 112}
_STYLE = 1.05e9, 25.5e6
SOURCES = {
    "decoding": f"published: NVIDIA DALI's continuous integration, {_DALI:,} photographs/s on an H100, 70 CPU threads; "
    "other GPUs as their bandwidth",
    "bandwidth": "assumed: 0.8 of the peak; copies reach 0.9, other kernels somewhat less",
    "variants": "counted: bytes by suite; backbones: counted: products, between which all is fused",
    "host": "measured: one Xeon core",
    "disk": "assumed: one of 1 GB/s",
    "linear probes": "counted: products and bytes; measured: passes of 272 photographs",
    "MLPs": "counted: products and bytes; assumed: steps doubled once",
}
"""Where the numbers of a plan are from; see also `Device.source`."""

EMBEDDING, PROBES, ANALYSIS = ("embedding", "probes", "analysis")
CLASSES = 1000  # ImageNet's, where photographs are not listed
BATCH = 256  # images per batch of a GPU engine
_Spent = dict[tuple[str, str], dict[str, Busy]]  # by stage and part: seconds by backbone and resource


@dataclass(frozen=True)
class BackboneCost:
    """One backbone: size D of its embeddings and cost.

    Attributes:
        store_bytes: size in the store.
        held: storage on an otherwise empty GPU during probe training, `[probes] table = "auto"`.
        embeddings_per_s: on one GPU; None for a control, and for a layer computed in the pass of a deeper one.
        gpu_hours: of this backbone alone.
    """

    backbone: str
    dim: int
    store_bytes: float
    held: str
    embeddings_per_s: float | None
    gpu_hours: float


@dataclass(frozen=True)
class StudyPart:
    """A part of the study, over all backbones.

    Attributes:
        stage: ``embedding``, ``probes`` or ``analysis``.
        hours: wall time; parts follow one another, so their hours add up.
        limited_by: the resource that is busy longest.
        busy: hours of each resource; all are busy at the same time.
    """

    stage: str
    name: str
    hours: float
    limited_by: str
    busy: Busy


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a study.

    Attributes:
        gpu, count: GPU model and number of GPUs.
        photographs, variants: N and T.
        hours: wall time of embedding, without startup; total_hours: of the whole study.
        variant_hours: GPU hours of decoding and variants.
        store_bytes, files: of the store.
        memory_bytes: per GPU during embedding, of memory_available_bytes.
        backbones: costs of each.
        parts: the whole study. Probes and analysis of a backbone run on one GPU.
        not_counted: transformations of other libraries, which processes on the host compute at rates of their own.
    """

    gpu: str
    count: int
    photographs: int
    variants: int
    hours: float
    total_hours: float
    variant_hours: float
    store_bytes: float
    files: int
    memory_bytes: float
    memory_available_bytes: float
    backbones: list[BackboneCost]
    parts: list[StudyPart]
    not_counted: list[str]


def plan(study: Study, photographs: int, device: Device, *, count: int = 1, classes: int = CLASSES) -> Plan:
    """Estimate the cost of a study.

    Args:
        study: its stages that are off by default are not counted.
        photographs: N, with so many classes; count: number of GPUs.

    Raises:
        ConfigError: a backbone cannot be estimated.
    """
    settings, itemsize = study.settings(), np.dtype(study.embed.dtype).itemsize
    transformations, canvas = settings.transformations, settings.canvas
    times, (train, _, test) = len(transformations), study.splits.fractions
    facts = {name: own for given in study.backbones for name, own in networks.backbones(given.name, BATCH).items()}
    made = [get(name) for name in transformations if get(name).made_by not in ("identity", "library")]
    variants = sum(_variant(each, canvas, device) for each in made)
    costs, spent = list[BackboneCost](), _Spent()
    for name, own in facts.items():
        seconds = times * own.work.seconds(device)
        rate, held = times / seconds if own.parameters else None, _held((times, photographs, own.dim), itemsize, device)
        stored = float(times * photographs * own.dim * itemsize)
        costs.append(BackboneCost(name, own.dim, stored, held, rate, photographs * seconds / 3600))
        table = probing.ProbedTable(own.dim, itemsize, held, transformations, photographs, classes, train, test, stored)
        parts = {PROBES: dict(probing.parts(table, study.probes, device, _DISK, backbone=name, others=len(facts) - 1))}
        parts[ANALYSIS] = dict(analysis.parts(table, study.analysis, device, _DISK))
        for stage, own_parts in parts.items():
            for part, busy in own_parts.items():
                spent.setdefault((stage, part), {})[name] = busy
    store = sum(cost.store_bytes for cost in costs)
    python = photographs * (_PHOTOGRAPH + len(made) * _VARIANT + times * len(costs) * _EMBEDDING)
    files = 1 + len(real(transformations))  # of a photograph, which are read and decoded
    embedding = {
        GPU: (photographs * variants + 3600 * sum(cost.gpu_hours for cost in costs)) / count,
        DECODER: photographs * files / (_DALI * device.bandwidth / DEVICES["h100"].bandwidth) / count,
        HOST: max(python, store * _WRITE) / count,  # on threads of their own
        DISK: (photographs * files * _FILE + store) / _DISK,  # all processes share one
    }
    whole = [_part(EMBEDDING, "decoding to embeddings", {"": embedding}, 1.0)]
    whole += [
        _part(*key, each, _share(spent, key[0], count))
        for key, each in sorted(spent.items(), key=lambda item: item[0][0] == ANALYSIS)
    ]
    seconds = 3600 * count * whole[0].hours / photographs
    rows = max(rows_of_shards(photographs, 2 * times * max(cost.dim for cost in costs), seconds), BATCH)
    activations = max((moved for own in facts.values() for _, moved in own.work.products), default=0.0)
    weights = 2.0 * sum(own.parameters for own in facts.values())
    return Plan(
        device.name,
        count,
        photographs,
        times,
        hours=whole[0].hours,
        total_hours=sum(part.hours for part in whole),
        variant_hours=photographs * variants / 3600,
        store_bytes=store,
        files=math.ceil(photographs / rows) * len(costs),
        # at most two batches in flight, each with canvases and all variants
        memory_bytes=weights + activations + 2.0 * BATCH * 3 * canvas**2 * (1 + times),
        memory_available_bytes=device.memory,
        backbones=costs,
        parts=whole,
        not_counted=[name for name in transformations if get(name).made_by == "library"],
    )


def _variant(transformation: Transformation, canvas: int, device: Device) -> float:
    """Seconds that a variant of a photograph takes on a GPU."""
    if transformation.made_by == "network":
        flop, moved = (each * canvas**2 / 224**2 for each in _STYLE)
        return device.seconds(flop, moved)
    function = getattr(transformation.function, "func", transformation.function)
    module = getattr(function, "__module__", "").rpartition(".")[2]
    return device.seconds(0.0, _CANVASES.get(module, _SUBSTANCE) * 3.0 * canvas**2)


def _share(spent: _Spent, stage: str, count: int) -> float:
    """Fraction of the seconds of all backbones that a stage takes, if each GPU computes one backbone at a time."""
    seconds = dict[str, float]()
    for (own, _), each in spent.items():
        for name, busy in each.items() if own == stage else ():
            seconds[name] = seconds.get(name, 0.0) + slowest(busy)[1]
    gpus = [0.0] * count
    for longest in sorted(seconds.values(), reverse=True):
        gpus[gpus.index(min(gpus))] += longest
    return max(gpus) / sum(gpus) if sum(gpus) else 1.0


def _part(stage: str, name: str, each: dict[str, Busy], share: float) -> StudyPart:
    """A part of several backbones. The processes share one disk."""
    busy: Busy = {}
    for own in each.values():
        for resource, seconds in own.items():
            busy[resource] = busy.get(resource, 0.0) + seconds / 3600
    limited, hours = slowest(busy)[0], sum(slowest(own)[1] for own in each.values()) / 3600
    return StudyPart(stage, name, hours * (1.0 if limited == DISK else share), limited, busy)


def _held(shape: tuple[int, ...], itemsize: int, device: Device) -> str:
    """How a table is held for probes on an otherwise empty GPU."""
    room = MemoryBudget(shape, itemsize, int(device.memory), ProbeConfig.stream_buffer, device.name)
    return next((how for how in HOW if room.fits(how)), STREAMED)
