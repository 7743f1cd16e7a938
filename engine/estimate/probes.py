"""Work of the probes of one backbone: passes of the linear solver, and training steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from substyle.engine.estimate.roofline import CORES, GPU, HOST, STORAGE, Cluster, Device, Parts
from substyle.engine.probes import mlp, objective
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import FLOAT16, INT8, row_bytes
from substyle.engine.probes.heads import Setting, grid
from substyle.engine.probes.resampling import KEPT_DRAWS
from substyle.pipelines.transforms.base import get
from substyle.pipelines.transforms.names import count_families

GRID, SINGLE, RESAMPLES, ROTATION = "grid", "single", "resamples", "rotation"
# Passes of all fits by task and kind, and the mean fraction of heads left in a pass, since converged ones are removed:
# means over networks and control:pixels of 272 photographs, by benchmarks/passes. The narrow features of
# control:statistics, which are worse conditioned, take up to 76 times as many. A grid has a head for each C; single
# heads extend it or have smaller tolerances. In kept studies, last fits to 1,600 photographs take 1.7 to 3.5 times as
# many passes as to 440.
PASSES = {
    ("transformation", GRID): (74.33, 0.5755),
    ("transformation", SINGLE): (25, 1),
    ("transformation", RESAMPLES): (38.67, 0.9172),
    ("equal_transformation", GRID): (38.67, 0.5891),
    ("equal_transformation", SINGLE): (56, 1),
    ("equal_transformation", RESAMPLES): (33.33, 0.892),
    ("kind", GRID): (56.67, 0.5944),
    ("kind", SINGLE): (13.67, 1),
    ("kind", RESAMPLES): (37.33, 0.9691),
    ("kind", ROTATION): (67, 0.8076),
    ("equal_kind", ROTATION): (31, 0.8078),
    ("class", GRID): (36.33, 0.5994),
    ("class", SINGLE): (29, 1),
    ("class", RESAMPLES): (24.67, 0.9649),
}
_LAST = 1.4  # passes in float32 that end the fits of a kind, where others read rows as stored
_LAUNCHES = 2e-3  # host seconds in which a pass is launched, at least: 280 kernels
# Of the steps of MLPs: the fewest; kept studies, whose first training has 150 steps, double 1 to 5 times
_LONGER = 2
# Host seconds, measured on one Xeon core in 2026-11: per training row of a fit (listing and weighting rows), per row
# and head that is scored, and per photograph and bootstrap resample: of the draws, of scores of 31 transformations
_ROW, _SCORE, _DRAW, _RESAMPLE = 80e-9, 0.4e-6, 16e-9, 3e-9
_READ = 1.98e9  # bytes per second of a full read as a table from page cache, benchmarks/results/store.json
_SELECT = CORES * 3e9  # bytes per second of rows selected in host memory: 3e9 measured on one Xeon core

LOADING, LINEAR, MLPS, SCORES = "loading", "linear", "MLPs and multi-task", "rows, scores, intervals"


@dataclass(frozen=True)
class ProbedTable:
    """Embeddings of a backbone.

    Attributes:
        width: D; itemsize: bytes of a number.
        how: how probes hold the rows, see `ProbeConfig.table`; held: whose memory has them, or the storage.
        photographs: N, with so many classes; train, test: fractions of them.
    """

    width: int
    itemsize: int
    how: str
    held: str
    transformations: tuple[str, ...]
    photographs: int
    classes: int
    train: float
    test: float

    @property
    def size(self) -> float:
        """Bytes in the store."""
        return float(len(self.transformations) * self.photographs * self.width * self.itemsize)

    def tasks(self) -> dict[str, tuple[int, int]]:
        """Numbers of classes and of training transformations of each task."""
        seen = [get(name) for name in self.transformations if get(name).role == "train"]
        return {
            "transformation": (count_families(self.transformations), len(self.transformations)),
            "kind": (len({transformation.kind for transformation in seen}), len(seen)),
            "class": (self.classes, 1),
        }

    def stored(self, seen: int, config: ProbeConfig) -> int:
        """Number of rows that a pass over so many transformations reads as stored; 0 if rows are gathered."""
        several = 1 if seen == 1 else len(self.transformations)
        half = (self.how, self.held) == (FLOAT16, GPU) and self.itemsize == 2 and config.expert.precision != "fp32"
        return self.photographs * several if half and self.train * seen >= objective.DENSE * several else 0


@dataclass(frozen=True)
class _Fit:
    """Work of heads that are trained together.

    Attributes:
        gpu: its seconds.
        passes, rows: number of passes or steps, and of training rows in each.
        scored: test rows × heads that are scored.
        reports: bootstraps of scores, and of their differences to other backbones.
    """

    gpu: float
    passes: float
    rows: float
    scored: float
    reports: float


def parts(
    table: ProbedTable,
    config: ProbeConfig,
    device: Device,
    *,
    backbone: str,
    others: int,
    rate: float = Cluster.machine_rate,
) -> Parts:
    """Seconds by resource of each part of the probes of a backbone, on one GPU.

    Args:
        backbone: its name; controls have no multi-task probe.
        others: number of other backbones, with which scores are compared.
        rate: bytes per second of the storage.
    """
    control = backbone.startswith("control:")
    rotated = config.rotate == "all" or (config.rotate == "networks" and not control)
    linear = list(_linear(table, config, device, others, rotated=rotated))
    mlps = list(_mlps(table, config, device, others, multitask=not control))
    seconds: Parts = {}
    if table.held != STORAGE:
        seconds[LOADING] = {STORAGE: table.size / rate, HOST: table.size / _READ}
    for name, fits, launches in ((LINEAR, linear, _LAUNCHES), (MLPS, mlps, 0.0)):
        read = sum(fit.passes * fit.rows for fit in fits) * row_bytes(table.how, table.width, table.itemsize)
        host = sum(fit.passes for fit in fits) * launches
        host += {GPU: 0.0, HOST: read / _SELECT, STORAGE: read / _READ}[table.held]
        if fits:
            stored = read / rate if table.held == STORAGE else 0.0
            seconds[name] = {GPU: sum(fit.gpu for fit in fits), HOST: host, STORAGE: stored}
    scored, reports = sum(fit.scored for fit in linear + mlps), sum(fit.reports for fit in linear + mlps)
    resampled = table.test * table.photographs * config.bootstrap
    draws = min(reports, 1) if resampled <= KEPT_DRAWS else reports
    host = sum(fit.rows for fit in linear) * _ROW + scored * _SCORE
    return seconds | {SCORES: {HOST: host + resampled * (draws * _DRAW + reports * _RESAMPLE)}}


def _linear(table: ProbedTable, config: ProbeConfig, device: Device, others: int, *, rotated: bool) -> Iterator[_Fit]:
    """Fits of linear heads, by task and kind."""
    tasks, variants = table.tasks(), len(table.transformations)
    held_out = sum(get(name).role == "held_out" for name in table.transformations)
    for (task, kind), (passes, left) in PASSES.items():
        name, narrow = task.removeprefix("equal_"), task.startswith("equal_")
        redraws = 0 if narrow else config.redraws
        rotations = tasks["transformation"][0] - 1 + redraws if rotated else 0
        heads = {GRID: len(config.Cs), SINGLE: 1, RESAMPLES: config.resamples, ROTATION: rotations}[kind]
        fitted = heads and name in config.tasks and tasks[name][0] > 1 and "linear" in config.heads
        if not fitted or (narrow and not 0 < config.expert.equal_width < table.width):
            continue
        classes, seen = (tasks[name][0], variants) if kind == ROTATION else tasks[name]
        width, outputs = config.expert.equal_width if narrow else table.width, max(1.0, heads * left) * classes
        rows, stored = table.train * table.photographs * seen, table.stored(seen, config)
        gpu = passes * linear_pass(table, stored or rows, width, outputs, device, stored=stored > 0)
        if stored:
            gpu += _LAST * linear_pass(table, rows, width, outputs, device, stored=False)
        scored = {GRID: variants, SINGLE: 0, RESAMPLES: variants * heads, ROTATION: variants + redraws * held_out}
        reports = {GRID: 1 + others / 2, ROTATION: 2 + others / 2}.get(kind, 0.0)
        yield _Fit(gpu, passes, rows, table.test * table.photographs * scored[kind], reports)


def _mlps(table: ProbedTable, config: ProbeConfig, device: Device, others: int, *, multitask: bool) -> Iterator[_Fit]:
    """Trainings of MLPs: the grid of each task and of the multi-task probe, then the best of each group for longer."""
    tasks, variants = {name: sizes for name, sizes in table.tasks().items() if sizes[0] > 1}, len(table.transformations)
    of_tasks = [sizes for name, sizes in tasks.items() if name in config.tasks and "mlp" in config.heads]
    trainings = [(grid(config), config.mlp_steps, *sizes, config.mlp_resamples) for sizes in of_tasks]
    if multitask and "multitask" in config.tasks and {"transformation", "class"} <= tasks.keys():
        groups = (mlp.JOINT, mlp.TWIN_TRANSFORMATION, mlp.TWIN_CLASS)
        grids = product(config.multitask_learning_rates, config.expert.mlp_weight_decays, config.widths, groups)
        joint = [Setting(rate, decay, width, group=group) for rate, decay, width, group in grids]
        trainings.append((joint, config.multitask_steps, tasks["transformation"][0] + tasks["class"][0], variants, 0))
    for settings, steps, classes, seen, resamples in trainings:
        batch = mlp.batch_size(round(table.train * table.photographs * seen), config.expert.batch)
        best = list({setting.group: setting for setting in settings}.values())
        longer = best + settings[:1] * resamples
        gpu = steps * step(settings, batch, table.width, classes, device)
        gpu += steps * _LONGER * step(longer, batch, table.width, classes, device)
        passes, scored = steps * (1 + _LONGER * (1 + resamples)), variants * len(longer)
        yield _Fit(gpu, passes, batch, table.test * table.photographs * scored, len(best) * (1 + others / 2))


def linear_pass(table: ProbedTable, rows: float, width: int, outputs: float, device: Device, *, stored: bool) -> float:
    """Seconds of a pass of the linear solver: operations and bytes of its kernels, run on tensors without memory.

    Rows as stored are read twice, for products of two parts on tensor cores; others are gathered, standardized and
    multiplied in float32.

    Args:
        width: of the features, after a projection; outputs: heads × classes.
    """
    flop = 4.0 * width * outputs + (2.0 * table.width * width if width < table.width else 0.0)
    if stored:
        return device.seconds(rows * 2 * flop, rows * (4 * table.width + 78 * outputs))
    held = 1 if table.how == INT8 else table.itemsize
    return device.seconds(rows * flop, rows * ((held + 12) * table.width + 60 * outputs), product=False)


def step(settings: Sequence[Setting], batch: int, width: int, classes: int, device: Device) -> float:
    """Seconds of a training step of MLPs: products, and then 20 bytes per parameter and unit."""
    flop = sum(batch * each.width * (4.0 * width + 6.0 * classes) for each in settings)
    moved = sum(20.0 * (each.width * (width + classes) + batch * (each.width + classes)) for each in settings)
    return device.seconds(flop, 0.0) + device.seconds(0.0, moved)
