"""Estimate the time and disk space of a study on given GPUs: work of each photograph at the GPU's rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from substyle.engine.config import BackboneChoice, Study
from substyle.engine.devices import FP8
from substyle.engine.estimate import analysis, probes, roofline
from substyle.engine.estimate.networks import backbones
from substyle.engine.estimate.probes import ProbedTable
from substyle.engine.estimate.roofline import DECODER, GPU, HOST, STORAGE, Busy, Cluster, Device, Parts, slowest
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import Memory, MemoryBudget
from substyle.engine.store.layout import rows_of_shards
from substyle.errors import ConfigError
from substyle.pipelines.sources.tar_files import WINDOW
from substyle.pipelines.transforms.base import Transformation, get, real

# Host seconds, measured on one Xeon core in 2026-11, in batches of 256. Python: per photograph headers (98 µs) and
# feeding the decoder (30); per variant parameters (3.0) and launches (2.3); per embedding its copy to the host (1.9).
# Other threads write, per byte of the store (cast, checksum, fsync on four threads of two cores: 0.41 GB/s, the row
# "write" of benchmarks/store.py).
_PHOTOGRAPH, _VARIANT, _EMBEDDING, _WRITE = 128e-6, 5.3e-6, 1.9e-6, 1 / 0.41e9
_FILE = 110e3  # bytes of a photograph, the mean of ImageNet's
_DALI = 21_567  # photographs per second on an H100
# A variant takes as long on a GPU as moving so many canvases. Of substance31, the mean of benchmarks/operators.py, with
# the multiplications of filters. Of others, counted on tensors without memory in 2026-11: more where torch runs
# operations one by one. A style takes so many operations and bytes at 224 pixels, if torch.compile fuses its network.
_SUBSTANCE = 31
_CANVASES = {"imagenet_c": 170, "obfuscation": 66, "traces": 533, "lighting": 112, "viewpoint": 112, "sensor": 112}
_STYLE = 1.05e9, 25.5e6
_NOT_ON_GPU = ("identity", "library")  # the decoder makes the one, processes on the host the others
SOURCES = {
    "decoding": f"published: NVIDIA DALI's CI, {_DALI:,} photographs/s on an H100, 70 CPU threads; others by bandwidth",
    "bandwidth": "assumed: 0.8 of the peak; copies reach 0.9, other kernels somewhat less",
    "variants": "counted: bytes by suite; backbones: counted: products, and bytes by timm's published rates",
    "fp8": "assumed: 1.6 times the rate of bf16, for layers of matrix products",
    "host": "measured: one Xeon core; assumed: eight for each GPU, for products and to select rows, and 128 GB",
    "storage": "assumed: 1 GB/s a machine, unless given; requests: counted",
    "linear probes": "counted: products and bytes; measured: passes of 272 photographs",
    "MLPs": "counted: products and bytes; assumed: steps doubled once",
}
"""Where the numbers of a plan are from; see also `Device.source`."""

EMBEDDING, PROBES, ANALYSIS = ("embedding", "probes", "analysis")
CLASSES = 1000  # ImageNet's, where photographs are not listed
BATCH = 256  # images per batch of a GPU engine


@dataclass(frozen=True)
class BackboneCost:
    """One backbone: size D of its embeddings and cost.

    Attributes:
        store_bytes: size in the store.
        held: storage during probe training with an otherwise empty GPU, `[probes.expert] table = "auto"`.
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
        gpu, count: GPU model and number of GPUs; machines: that they are in.
        photographs, variants: N and T.
        hours: wall time of embedding on all machines, without startup; total_hours: of the whole study, of which all
            else runs on one.
        paid_gpu_hours: of the GPUs of all machines while they embed, then of one machine.
        variant_hours: GPU hours of decoding and variants.
        store_bytes: size of the store; shards: number of its files of embeddings.
        gets, puts: requests of embedding, if photographs are tar shards in a bucket and the store is in one.
        backbones: costs of each.
        parts: the whole study. Probes and analysis of a backbone run on one GPU.
        not_counted: transformations of other libraries, which processes on the host compute at rates of their own.
    """

    gpu: str
    count: int
    machines: int
    photographs: int
    variants: int
    hours: float
    total_hours: float
    paid_gpu_hours: float
    variant_hours: float
    store_bytes: float
    shards: int
    gets: int
    puts: int
    backbones: list[BackboneCost]
    parts: list[StudyPart]
    not_counted: list[str]


ONE = Cluster()  # a GPU


def plan(study: Study, photographs: int, device: Device, cluster: Cluster = ONE, *, classes: int = CLASSES) -> Plan:
    """Estimate the cost of a study.

    Args:
        study: of its stages, embedding, probes and analysis are counted.
        photographs: N, with so many classes.
        cluster: how many of the device, and on which machines.

    Raises:
        ConfigError: a backbone cannot be estimated.
    """
    settings, splits, itemsize = study.settings(), study.splits, np.dtype(study.embed.dtype).itemsize
    transformations, variants = settings.transformations, len(settings.transformations)
    counted = {name: facts for choice in study.backbones for name, facts in backbones(choice.name, BATCH).items()}
    eight = {name for choice in study.backbones if _in_fp8(choice, study, device) for name in choice.names}
    costs, tables, probed, analysed = list[BackboneCost](), list[ProbedTable](), list[Parts](), list[Parts]()
    memories = [Memory(int(size), int(size), name) for size, name in ((device.memory, GPU), (roofline.MEMORY, HOST))]
    for name, facts in counted.items():
        shape = variants, photographs, facts.dim
        how, memory = MemoryBudget(shape, itemsize, ProbeConfig.stream_buffer, *memories).place("auto")
        held = STORAGE if memory is None else memory.name
        table = ProbedTable(
            facts.dim, itemsize, how, held, transformations, photographs, classes, splits.train, splits.test
        )
        seconds = variants * facts.work.seconds(device, fp8=name in eight)  # of a photograph
        per_s = variants / seconds if facts.parameters else None
        where = how if held in (GPU, STORAGE) else f"{how}, in host memory"
        costs.append(BackboneCost(name, facts.dim, table.size, where, per_s, photographs * seconds / 3600))
        tables.append(table)
        rate = cluster.alone.rate
        probed.append(probes.parts(table, study.probes, device, backbone=name, others=len(counted) - 1, rate=rate))
        analysed.append(analysis.parts(table, study.analysis, device, rate=rate))
    variant_hours = photographs * sum(_variant(get(name), settings.canvas, device) for name in transformations) / 3600
    gpu_hours = variant_hours + sum(cost.gpu_hours for cost in costs)
    embedding, alone = _embedding(tables, gpu_hours, device, cluster), cluster.alone.gpus
    parts = [embedding, *_stage(PROBES, probed, alone), *_stage(ANALYSIS, analysed, alone)]
    total = sum(part.hours for part in parts)
    row_bytes = max(table.size for table in tables) / photographs
    rows = study.embed.shard_rows or max(rows_of_shards(photographs, row_bytes, 3600 * gpu_hours / photographs), BATCH)
    shards, files = -(-photographs // rows) * len(tables), photographs * (1 + len(real(transformations)))
    return Plan(
        gpu=device.name,
        count=cluster.gpus,
        machines=cluster.machines,
        photographs=photographs,
        variants=variants,
        hours=embedding.hours,
        total_hours=total,
        paid_gpu_hours=cluster.gpus * embedding.hours + alone * (total - embedding.hours),
        variant_hours=variant_hours,
        store_bytes=sum(table.size for table in tables),
        shards=shards,
        gets=files + math.ceil(photographs * _FILE / WINDOW) + shards,
        puts=2 * shards,
        backbones=costs,
        parts=parts,
        not_counted=[name for name in transformations if get(name).made_by == "library"],
    )


def _in_fp8(choice: BackboneChoice, study: Study, device: Device) -> bool:
    """Whether a backbone is computed in fp8. Raises ConfigError if the GPU has none."""
    wanted = (choice.precision or study.embed.precision) == FP8
    if wanted and not device.fp8:
        field = f"precision of {choice.name}" if choice.precision else "embed.precision"
        raise ConfigError(field, FP8, f"another precision: {device.name} has no fp8")
    return wanted


def _variant(transformation: Transformation, canvas: int, device: Device) -> float:
    """Seconds that a variant of a photograph takes on a GPU."""
    if transformation.made_by in _NOT_ON_GPU:
        return 0.0
    if transformation.made_by == "network":
        flop, moved = (each * canvas**2 / 224**2 for each in _STYLE)
        return device.seconds(flop, moved)
    function = getattr(transformation.function, "func", transformation.function)
    module = getattr(function, "__module__", "").rpartition(".")[2]
    return device.seconds(0.0, _CANVASES.get(module, _SUBSTANCE) * 3.0 * canvas**2)


def _embedding(tables: Sequence[ProbedTable], gpu_hours: float, device: Device, cluster: Cluster) -> StudyPart:
    """From files to embeddings in a store: each GPU takes a share of the photographs.

    Args:
        gpu_hours: of variants and backbones.
    """
    transformations, photographs = tables[0].transformations, tables[0].photographs
    files = photographs * (1 + len(real(transformations)))  # which are read and decoded
    stored = sum(table.size for table in tables)
    generated = sum(get(name).made_by not in _NOT_ON_GPU for name in transformations)
    python = _PHOTOGRAPH + generated * _VARIANT + len(transformations) * len(tables) * _EMBEDDING
    busy = {
        GPU: 3600 * gpu_hours / cluster.gpus,
        DECODER: files / (_DALI * device.bandwidth / roofline.DEVICES["h100"].bandwidth) / cluster.gpus,
        HOST: max(photographs * python, stored * _WRITE) / cluster.gpus,  # on threads of their own
        STORAGE: (files * _FILE + stored) / cluster.rate,
    }
    return _part(EMBEDDING, "decoding to embeddings", [busy])


def _stage(stage: str, work: Sequence[Parts], count: int) -> Iterator[StudyPart]:
    """The parts of a stage, of several backbones: each GPU computes one at a time, those that take longest first."""
    gpus = [0.0] * count
    for seconds in sorted((sum(slowest(busy)[1] for busy in parts.values()) for parts in work), reverse=True):
        gpus[gpus.index(min(gpus))] += seconds
    share = max(gpus) / sum(gpus) if sum(gpus) else 1.0  # wall time, as a fraction of the sum over backbones
    for name in dict.fromkeys(chain(*work)):
        yield _part(stage, name, [parts[name] for parts in work if name in parts], share)


def _part(stage: str, name: str, work: Sequence[Busy], share: float = 1.0) -> StudyPart:
    """A part of several backbones: a share of their seconds, unless they wait for storage, of which there is one."""
    busy = {key: sum(seconds.get(key, 0.0) for seconds in work) / 3600 for key in dict.fromkeys(chain(*work))}
    limited_by, hours = slowest(busy)[0], sum(slowest(seconds)[1] for seconds in work) / 3600
    return StudyPart(stage, name, hours if limited_by == STORAGE else hours * share, limited_by, busy)
