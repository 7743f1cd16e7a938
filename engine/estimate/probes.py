"""Work of the probes of one backbone: passes of the linear solver and training steps, run on tensors without memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from substyle.engine.estimate import stages
from substyle.engine.estimate.counting import META, Counter
from substyle.engine.estimate.roofline import DISK, HOST, LAUNCHES, PCIE, Busy, Device, Efficiency, Work, total
from substyle.engine.probes import batches, mlp, objective, solver, training_rows
from substyle.engine.probes.batches import BatchPart, Features, Queue, StepSchedule
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import FLOAT16, INT8, STREAMED, Resident, Standardizer
from substyle.engine.probes.heads import Dropout, Setting, StepSpec, _Step, grid, initial
from substyle.engine.probes.preconditioner import CovarianceBasis, CovarianceMetric
from substyle.engine.probes.resampling import KEPT_DRAWS
from substyle.engine.probes.tasks import Task
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import dispatch, split_products
from substyle.pipelines.transforms.base import get
from substyle.pipelines.transforms.names import count_families, family
from substyle.pipelines.transforms.style import by_generator

Parts = tuple[tuple[int, int], ...]  # number of classes, and rows of a batch, of each task


@dataclass(frozen=True)
class Fits:
    """Fits of linear heads of one kind.

    Attributes:
        fits: their number.
        gathered: passes of all of these, if rows are gathered.
        stored, after: passes over rows as stored and then in float32, if the table is in float16.
        heads: mean fraction of the heads that are left in a pass, since converged ones are removed.
    """

    fits: float
    gathered: float
    stored: float
    after: float
    heads: float


# Means over networks and control:pixels of 272 photographs, benchmarks/results/passes.json; the narrow features of
# control:statistics, which are worse conditioned, take up to 76 times as many. A grid has a head for each C; single
# heads extend it or have smaller tolerances. In kept studies, last fits to 1,600 photographs take 1.7 to 3.5 times as
# many passes as to 440.
GRID, SINGLE, RESAMPLES, ROTATION = "grid", "single", "resamples", "rotation"
PASSES = {  # by task and kind
    ("fine", GRID): Fits(1, 70.67, 74.33, 1, 0.5755),
    ("fine", SINGLE): Fits(1.333, 23.67, 25, 1.333, 1),
    ("fine", RESAMPLES): Fits(1, 38.67, 38.67, 1, 0.9172),
    ("equal_fine", GRID): Fits(1, 38.67, 38.67, 1, 0.5891),
    ("equal_fine", SINGLE): Fits(1.667, 63, 56, 1.667, 1),
    ("equal_fine", RESAMPLES): Fits(1, 33.33, 33.33, 1, 0.892),
    ("coarse", GRID): Fits(1, 55.33, 56.67, 1, 0.5944),
    ("coarse", SINGLE): Fits(1, 13.67, 13.67, 1, 1),
    ("coarse", RESAMPLES): Fits(1, 36.67, 37.33, 1, 0.9691),
    ("coarse", ROTATION): Fits(2, 56.67, 67, 3.333, 0.8076),
    ("equal_coarse", ROTATION): Fits(2, 31.33, 31, 2, 0.8078),
    ("semantic", GRID): Fits(1, 36.33, 36.33, 1, 0.5994),
    ("semantic", SINGLE): Fits(1.667, 28, 29, 1.667, 1),
    ("semantic", RESAMPLES): Fits(1, 24.67, 24.67, 1, 0.9649),
}
DOUBLINGS = 1  # of the steps of MLPs: the fewest; kept studies, whose first training has 150 steps, double 1 to 5 times
# Host seconds, measured on one Xeon core in 2026-11: per training row of a fit (listing and weighting rows), per row
# and head that is scored, and per photograph and bootstrap resample: of the draws, of scores of 31 transformations
_ROW, _SCORE, _DRAW, _RESAMPLE = 60e-9, 0.4e-6, 16e-9, 3e-9
_READ = 1.98e9  # bytes per second of a full read as a table from page cache, benchmarks/results/store.json

LOADING, MLPS, MULTITASK, SCORES = "loading", "MLPs", "multi-task", "rows, scores, intervals"
LINEAR = {
    GRID: "linear: grid of C",
    SINGLE: "linear: larger grid, tolerance",
    RESAMPLES: "linear: resamples",
    ROTATION: "linear: rotation",
}
EQUAL = "linear: equal width"


@dataclass(frozen=True)
class ProbedTable:
    """Embeddings of a backbone.

    Attributes:
        width: D; itemsize: bytes of a number; how: storage on the GPU, see `ProbeConfig.table`.
        photographs: N, with so many classes; train, test: fractions of them.
        size: bytes in the store.
    """

    width: int
    itemsize: int
    how: str
    transformations: tuple[str, ...]
    photographs: int
    classes: int
    train: float
    test: float
    size: float

    @property
    def held(self) -> torch.dtype:
        """Type of the rows on the GPU."""
        return torch.int8 if self.how == INT8 else torch.float32 if self.itemsize == 4 else torch.float16

    def trained(self, transformations: int) -> int:
        """Number of training rows of so many transformations."""
        return max(1, round(self.train * self.photographs * transformations))

    def span(self, transformations: int, config: ProbeConfig) -> int:
        """Number of rows that are read as stored in a pass over so many transformations; 0 if rows are gathered."""
        several = 1 if transformations == 1 else len(self.transformations)
        dense = self.train * transformations >= objective.DENSE * several
        stored = self.how == FLOAT16 and self.held == torch.float16 and half(config) != torch.float32
        stored = stored and split_products.supported()
        return self.photographs * several if dense and stored else 0

    def tasks(self) -> dict[str, tuple[int, int]]:
        """Numbers of classes and of training transformations of each task."""
        seen = [get(name) for name in self.transformations if get(name).role == "train"]
        families = count_families(self.transformations)
        return {
            "fine": (families, len(self.transformations)),
            "coarse": (len({each.coarse for each in seen}), len(seen)),
            "semantic": (self.classes, 1),
        }

    def held_out(self, redraws: int) -> list[int]:
        """Numbers of variants that each head of the rotation has not seen, as `leave_one_out.rotate` draws."""
        made = [get(name) for name in self.transformations]
        classes: dict[str, dict[str, list[str]]] = {}  # roles of all severities, by coarse class and transformation
        for each in made:
            classes.setdefault(each.coarse, {}).setdefault(family(each.name), []).append(each.role)
        several = [list(own.values()) for own in classes.values() if len(own) > 1]
        none = all(each.role == "train" for each in made)
        drawn = 0.0
        for own in several:
            wanted = 1 if none else sum("held_out" in roles for roles in own)
            drawn += min(wanted, len(own) - 1) * sum(map(len, own)) / len(own)
        generators = [len(styles) for styles in by_generator(self.transformations).values()]
        return [len(roles) for own in several for roles in own] + generators + [round(drawn)] * redraws


def parts(
    table: ProbedTable,
    config: ProbeConfig,
    device: Device,
    reached: Efficiency,
    disk: float,
    *,
    backbone: str,
    others: int,
) -> Iterator[tuple[str, Busy]]:
    """Seconds by resource of each part of the probes of a backbone, on one GPU.

    Args:
        disk: bytes per second of the disk.
        backbone: its name; controls have no multi-task probe.
        others: number of other backbones, with which scores are compared.
    """
    control = backbone.startswith("control:")
    if table.how != STREAMED:
        yield LOADING, {DISK: table.size / disk, HOST: table.size / _READ, PCIE: table.size / device.copies}
    known = {name: sizes for name, sizes in table.tasks().items() if sizes[0] > 1}
    tasks = {name: sizes for name, sizes in known.items() if name in config.tasks}
    rotated = config.rotate and not (control and not config.rotate_controls)
    tested, variants = table.test * table.photographs, len(table.transformations)
    host, scored, reports = 0.0, 0.0, 0.0  # seconds; rows and heads; bootstraps of scores

    def streamed(rows: float) -> Busy:
        moved = rows * table.width * table.itemsize if table.how == STREAMED else 0.0
        return {DISK: moved / disk, HOST: moved / _READ, PCIE: moved / device.copies}

    for (task, kind), fits in PASSES.items() if "linear" in config.heads else ():
        name, narrow = task.removeprefix("equal_"), task != task.removeprefix("equal_")
        held_out = table.held_out(0 if narrow else config.redraws) if rotated else []
        count = {GRID: len(config.Cs), SINGLE: 1, RESAMPLES: config.resamples, ROTATION: len(held_out)}[kind]
        if name not in tasks or not count or (narrow and not 0 < config.equal_width < table.width):
            continue
        classes, seen = (tasks[name][0], variants) if kind == ROTATION else tasks[name]
        rows, span = table.trained(seen), table.span(seen, config)
        width = config.equal_width if narrow else table.width
        busy = streamed(fits.gathered * rows)
        stored = ((fits.stored, torch.float16, span), (fits.after, torch.float32, rows))
        for times, dtype, count_R in stored if span else ((fits.gathered, torch.float32, rows),):
            own = linear_pass(count_R, width, count, fits.heads, classes, dtype, table, resampled=kind == RESAMPLES)
            busy = total((1.0, busy), *((times * weight, seconds(work, device, reached)) for weight, work in own))
        yield EQUAL if narrow else LINEAR[kind], busy
        host += fits.fits * rows * _ROW
        scored += tested * {SINGLE: 0, ROTATION: sum(held_out)}.get(kind, variants * (1 if kind == GRID else count))
        reports += {GRID: 1 + others / 2, ROTATION: 2 + others / 2}.get(kind, 0)

    def training(settings: Sequence[Setting], steps: int, parts: Parts) -> Busy:
        """All settings, then the best of each group with twice the steps, as often as `DOUBLINGS`."""
        best = list({setting.group: setting for setting in settings}.values())
        more = steps * sum(2**i for i in range(1, DOUBLINGS + 1))
        works = [(n, step(tuple(own), parts, config, table)) for n, own in ((steps, settings), (more, best))]
        batches = streamed((steps + more) * sum(count for _, count in parts))
        return total((1.0, batches), *((n, seconds(work, device, reached, captured=True)) for n, work in works))

    for classes, seen in tasks.values() if "mlp" in config.heads else ():
        batch = mlp.batch_size(table.trained(seen), config.batch)
        busy = training(grid(config), config.mlp_steps, ((classes, batch),))
        again = seconds(step((grid(config)[0],), ((classes, batch),), config, table), device, reached, captured=True)
        resampled = config.mlp_resamples * config.mlp_steps * 2**DOUBLINGS
        yield MLPS, total((1.0, busy), (resampled, again), (resampled * batch, streamed(1)))
        scored += tested * variants * (1 + config.mlp_resamples)
        reports += 1 + others / 2
    if "multitask" in config.tasks and not control and {"fine", "semantic"} <= known.keys():
        fine, semantic = (_task(name, known[name][0], 1) for name in ("fine", "semantic"))
        share = mlp.batch_size(table.trained(variants), config.batch) // 2
        both = ((len(fine.labels), share), (len(semantic.labels), share))
        yield MULTITASK, training(mlp.settings_of(fine, semantic, config), config.multitask_steps, both)
        scored += 4 * tested * variants
        reports += 6 + others
    resamples = tested * config.bootstrap
    draws = min(reports, 1) if resamples <= KEPT_DRAWS else reports
    yield SCORES, {HOST: host + scored * _SCORE + resamples * (draws * _DRAW + reports * _RESAMPLE)}


def half(config: ProbeConfig) -> torch.dtype:
    """Type of products of MLPs on a GPU; where it is not float32, linear heads read rows as stored."""
    return torch.float32 if config.precision == "fp32" else torch.bfloat16


def seconds(work: Work, device: Device, reached: Efficiency, *, captured: bool = False) -> Busy:
    """Seconds by resource, with those in which kernels are launched: by the host, or captured in a CUDA graph."""
    each = reached.replay if captured else reached.launch
    return work.busy(device, reached) | {LAUNCHES: len(work.launches) * each}


def linear_pass(
    rows: int,
    width: int,
    count: int,
    left: float,
    classes: int,
    dtype: torch.dtype,
    table: ProbedTable,
    *,
    resampled: bool,
) -> list[tuple[float, Work]]:
    """A pass of the linear solver over all rows, as a sum of factors times work.

    Args:
        rows: R; width: of the features, after a projection.
        count: number of heads K; left: fraction of them that have not converged.
        dtype: of products, float16 for rows as stored; resampled: whether photographs have weights.
    """
    stored, outputs = dtype == torch.float16, count * classes
    size = min(
        rows,
        training_rows.stored_rows(outputs, META) if stored else training_rows.block_rows(table.width, outputs, META),
    )
    blocks, heads = -(-rows // size), max(1.0, count * left)
    keeps = not stored and rows * width * torch.float32.itemsize <= batches.KEPT
    found: list[tuple[float, Work]] = []
    for n in {math.floor(heads), math.ceil(heads)}:
        weight = 1.0 - abs(heads - n)
        around, block = _pass(size, width, n, classes, dtype, table.width, table.held, resampled, keeps)
        found += [(weight, around), (weight * blocks, block), (weight, _search(n, classes * (width + 1)))]
    return found


@cache
def _pass(
    size: int, width: int, heads: int, classes: int, dtype: torch.dtype, wide: int, held: torch.dtype, resampled: bool,
    keeps: bool,
) -> tuple[Work, Work]:  # fmt: skip
    """A pass of the solver without its blocks, and a block of it."""
    stored = dtype == torch.float16
    # a kernel that gathers counts all rows of its table
    features = _features(2 * size if stored else size, wide, held, torch.float32)
    if width != wide:
        features = features.projected(width, 0)
    image_KN = np.ones((heads, 2 * size)) if resampled else None
    rows = training_rows.TrainingRows(features, _task("semantic", classes, 2 * size), np.ones((heads, 1)), image_KN)
    vars(rows)["x_RD"] = torch.empty(2 * size, width, device=META) if keeps else None  # for any number of rows
    basis = CovarianceBasis(torch.empty(width, width, device=META), torch.empty(width, device=META))
    kind = objective.StoredObjective if stored else objective.Objective
    a_pass = kind(rows, features, CovarianceMetric.of(basis, classes, np.ones(heads)))
    a_pass.size = size
    blocks, marks = a_pass._blocks, list[int]()

    def watched() -> Iterator[tuple[torch.Tensor, ...]]:
        marks.append(len(counter.launches))
        for block in blocks():
            marks.append(len(counter.launches))
            yield block
        marks.append(len(counter.launches))

    u_KP, every = torch.empty(heads, classes * (width + 1), device=META), torch.arange(heads, device=META)
    with torch.no_grad():
        a_pass._blocks = watched  # type: ignore[method-assign]
        with Counter(typed=True) as counter, dispatch.watched(counter.triton):
            a_pass(u_KP, every)
    before, first, second, after = marks
    # between two blocks: products with the first, and the rows of the second
    return Work(counter.launches[:before] + counter.launches[after:]), Work(counter.launches[first:second])


@cache
def _search(heads: int, parameters: int) -> Work:
    """The next direction of the search."""
    u_KP, good_K = torch.empty(heads, parameters, device=META), torch.empty(heads, dtype=torch.bool, device=META)
    with Counter(typed=True) as counter:
        pairs = solver._Pairs(u_KP)
        counter.launches.clear()
        pairs.add(good_K, u_KP, u_KP)
        pairs.count = solver.MEMORY
        pairs.direction(u_KP)
    return Work(counter.launches)


def step(settings: tuple[Setting, ...], parts: Parts, config: ProbeConfig, table: ProbedTable) -> Work:
    """A training step of MLPs on a GPU.

    Args:
        settings: the heads, of one shape.
        parts: number of classes, and rows of a batch, of each task.
    """
    return _step(settings, parts, config.dropout, half(config), table.width, table.held)


@cache
def _step(
    settings: tuple[Setting, ...], parts: Parts, dropout: float, dtype: torch.dtype, width: int, held: torch.dtype
) -> Work:
    ends = np.cumsum([count for _, count in parts]).tolist()
    rows = [slice(end - count, end) for end, (_, count) in zip(ends, parts, strict=True)]
    outputs, own = 0, list[BatchPart]()
    for classes, count in parts:
        task: Any = SimpleNamespace(outputs=slice(outputs, outputs + classes))  # no rows are drawn
        own.append(BatchPart(task, task, count))
        outputs += classes
    features = _features(ends[-1], width, held, dtype)
    heads = initial(settings[0].width, width, outputs, len(settings), [0], META, settings[0].depth)
    held_rows = features.held.rows(np.empty(0, np.int64), np.empty(0, np.int64))
    queue = Queue(StepSchedule.of(1, rows, META), 1, features, held_rows.x_RD, held_rows.scale_R)
    work = _Step(heads, StepSpec(settings, rows, own, META), queue, [0], Dropout(dropout, [0]).threshold)
    with torch.no_grad():
        work()  # copies weights to 16 bits, which later steps update
        with Counter(typed=True) as counter, dispatch.watched(counter.triton):
            work()
    return Work(counter.launches)


def _features(rows: int, width: int, held: torch.dtype, dtype: torch.dtype) -> Features:
    """Features of a resident table; streamed rows are in a buffer as they are stored."""
    stages.import_kernels()
    x_TND = np.broadcast_to(np.float16(0), (1, rows, width))
    every = np.ones((1, rows), np.bool_)
    names = ("identity",)
    table = EmbeddingTable(
        "", x_TND, names, names, ("train",), (), np.empty(0, np.int64), (), np.empty(0, np.int8), every
    )
    scale_R = torch.empty(rows, device=META) if held == torch.int8 else None
    resident = Resident(table, torch.empty(rows, width, dtype=held, device=META), scale_R)
    return Features(resident, Standardizer(np.zeros(width, np.float32), np.ones(width, np.float32)), META, dtype)


def _task(name: str, classes: int, rows: int) -> Task:
    """A task on one transformation of as many photographs as rows."""
    every, none = np.arange(rows), np.empty(0, np.int64)
    labels = tuple(map(str, range(classes)))
    distinct = np.ones((1, rows), np.bool_)
    answer = np.zeros(rows, np.int64)
    return Task(name, labels, True, answer, np.zeros(1, np.int64), none, every, none, none, distinct, every)
