"""Steps that a GPU takes by itself: what they learn against float64, their rate, the time of an epoch of ImageNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check import probe_ways
from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.probe_fits import made
from benchmarks.gpu_check.probe_ways import KEEP, SEED, Problem
from benchmarks.gpu_check.rows import MEASURED, Row, correctness, skipped
from substyle.engine import cuda
from substyle.engine.probes.batches import AHEAD, Batches, BatchPart, Features, StepBlock, StepSchedule
from substyle.engine.probes.dataset import Resident, Standardizer
from substyle.engine.probes.heads import HeadBank, Kept, Setting, Steps, StepSpec
from substyle.engine.probes.tasks import kind_task, stream_of, transformation_task
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_data import quantise
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import schedule

PART = "probes"
STEPS = cuda.WARM + 3  # that are compared: some before the capture, some replayed
# of twice as many steps as those that the host launches are compared for: on a CPU losses are off by up to 6e-5 in
# float32 and 0.04 in bfloat16 (they have become small by then), weights by 2e-4 and 0.18
ALLOWED = {torch.float32: (5e-4, 4e-3), torch.bfloat16: (0.1, 0.3)}
EPOCH = 1_281_167 * 31  # rows of ImageNet's training images in all variants
GOAL = 5.0  # seconds for an epoch of 200 linear heads on rows of width 768


@dataclass(frozen=True)
class Plain:
    """What steps take of `Features`: nothing is standardised."""

    mean: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype

    @property
    def width(self) -> int:
        return len(self.mean)


def steps_of(p: Problem, heads: Heads, x_RD: torch.Tensor, row_nB: torch.Tensor, dtype: torch.dtype) -> Steps:
    """Steps of a problem's heads on rows of a table; all have the problem's answers and one dropout mask."""
    device, count = heads.w1.device, len(row_nB)
    rows = [slice(0, row_nB.shape[1])]
    script = StepSchedule.of(count, rows, device)
    script.row_nB.copy_(row_nB)
    script.targets[0].copy_(p.target_B)
    script.now_n3.copy_(torch.from_numpy(schedule([1.0] * count, 0)))
    plain: Any = Plain(torch.zeros(x_RD.shape[1], device=device), torch.ones(x_RD.shape[1], device=device), dtype)
    settings = [Setting(lr, decay, heads.w1.shape[1]) for lr, decay in zip(p.lr_K, p.decay_K, strict=True)]
    task: Any = SimpleNamespace(outputs=slice(0, heads.outputs))  # no rows are drawn
    part = BatchPart(task, task, row_nB.shape[1])
    block = StepBlock(script, count, plain, x_RD, None)
    kept = None if p.kept_SHB is None else Kept(p.kept_SHB.to(device).expand(count, -1, -1, -1), KEEP)
    return Steps(heads, StepSpec(settings, rows, [part], device), block, kept)


def cannot(bench: Bench) -> str:
    """Why steps are not replayed here, "" where they are."""
    return "" if bench.device.type == "cuda" else "CUDA graphs are of GPUs"


def correct(bench: Bench, name: str, p: Problem) -> Iterator[Row]:
    """Losses of the last step and weights after a few, by float64."""
    title = f"{name}, replayed steps against float64"
    if reason := cannot(bench):
        yield skipped(PART, title, reason)
        return
    rows = torch.arange(len(p.x_BD), device=bench.device).expand(STEPS, -1).contiguous()

    def train(dtype: torch.dtype) -> tuple[Heads, torch.Tensor]:
        heads = p.heads(bench.device)
        steps = steps_of(p, heads, p.x_BD.to(bench.device), rows, dtype)
        steps.take(STEPS)
        return heads, steps.loss_K[None]

    yield from probe_ways.against_float64(title, p, STEPS, ALLOWED, train)


def rate(bench: Bench, name: str, p: Problem, ceiling_per_s: float, peers: dict[str, float], limit: float) -> Row:
    """Head-steps a second of replayed steps that gather their rows from a table, in bf16."""
    title = f"{name}, replayed, rows gathered from a float16 table"
    if reason := cannot(bench):
        return skipped(PART, title, reason)
    table = torch.randn(64 * len(p.x_BD), p.x_BD.shape[1], device=bench.device).half()
    rows = torch.randint(len(table), (AHEAD, len(p.x_BD)), device=bench.device)
    steps = steps_of(p, p.heads(bench.device), table, rows, torch.bfloat16)
    seconds = _each(bench.clock.seconds(lambda: steps.take(AHEAD), limit=limit, flush=False, ahead=False))
    return Row(
        PART, title, MEASURED, unit="head-steps", per_s=len(p.lr_K) / seconds["median"], seconds=seconds,
        ceiling_per_s=ceiling_per_s, ceiling="its products alone", peers=peers,
        facts={"us a step": seconds["median"] * 1e6},
    )  # fmt: skip


def _each(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of one of the `AHEAD` steps that are timed together."""
    return {name: v if name == "repeats" else v / AHEAD for name, v in seconds.items()}


def drawn(bench: Bench) -> Row:
    """The rows of steps, drawn on the device, by the CPU's."""
    table, cpu = made(2 * bench.sizes.rows, 1), torch.device("cpu")
    transformation, kind = transformation_task(table, 0), kind_task(table, 0)
    assert transformation is not None
    assert kind is not None
    others = 0
    for task, first in product((transformation, kind), (0, 1 << 40)):
        found, expected = (
            torch.stack(stream_of(task, SEED, where).rows(first, 1 << 14)).cpu() for where in (bench.device, cpu)
        )
        others += int((found != expected).sum())
    return correctness(PART, "rows drawn for steps, against the CPU", not others, f"{others:,} of {4 << 15:,} differ")


def epoch(bench: Bench, kinds: Sequence[torch.dtype] = (torch.float16, torch.int8)) -> Iterator[Row]:
    """An epoch of linear heads over ImageNet in all variants, rows drawn, from steps on a table of fewer rows."""
    sizes = bench.sizes
    for kind, batch in product(kinds, sizes.epoch_batches):
        short = str(kind).removeprefix("torch.")
        title = f"an epoch of {sizes.epoch_heads} linear heads, {EPOCH:,} rows × {sizes.dim} of {short}, batch {batch}"
        if reason := cannot(bench):
            yield skipped(PART, title, reason)
            continue
        bench.require(5.0)
        work = trained(bench, kind, batch)
        limit = min(bench.left() / 8, 3.0)
        seconds = _each(bench.clock.seconds(work, limit=limit, flush=False, ahead=False))
        of_epoch = seconds["median"] * EPOCH / batch
        yield Row(
            PART, title, MEASURED,
            f"extrapolated from steps on {sizes.table_rows:,} rows; goal {GOAL:g} s; with the drawing of rows",
            "rows", batch / seconds["median"], seconds,
            facts={"s an epoch": of_epoch, "us a step": seconds["median"] * 1e6},
        )  # fmt: skip


def trained(bench: Bench, kind: torch.dtype, batch: int) -> Callable[[], None]:
    """Work that draws the rows of AHEAD steps of linear heads from all rows of a table and queues the steps."""
    sizes, device = bench.sizes, bench.device
    images, variants = sizes.table_rows // sizes.classes, tuple(f"{t}" for t in range(sizes.classes))
    shape = len(variants), images, sizes.dim
    x_RD = torch.randn(len(variants) * images, sizes.dim, device=device, dtype=torch.float16)
    standard, scale_R = Standardizer(np.zeros(sizes.dim, np.float32), np.ones(sizes.dim, np.float32)), None
    if kind == torch.int8:
        given = [torch.from_numpy(v).to(device) for v in (standard.mean_D, standard.scale_D)]
        parts = [quantise(part, *given) for part in torch.split(x_RD, 1 << 18)]
        x_RD, scale_R = (torch.cat(side) for side in zip(*parts, strict=True))
    table = EmbeddingTable(
        "made up", np.broadcast_to(np.float16(0), shape), variants, variants, ("train",) * len(variants),
        tuple(f"{n}" for n in range(images)), np.zeros(images, np.int64), ("a",),
        np.maximum(np.arange(images) + 3 - images, 0).astype(np.int8), np.ones(shape[:2], bool),
    )  # fmt: skip
    task = transformation_task(table, 0)
    assert task is not None
    features = Features(Resident(table, x_RD, scale_R), standard, device, torch.bfloat16)
    part = BatchPart(task, stream_of(task, 0, device), batch)
    settings = [Setting(10.0 ** -(2 + 2 * k / sizes.epoch_heads), 0.01, 0) for k in range(sizes.epoch_heads)]
    bank = HeadBank.of(settings, sizes.dim, len(variants), [SEED], 0.0, device)
    batches = Batches(features, [part], AHEAD, 0, gathered=False)
    return lambda: bank.learn(batches.block([1.0] * AHEAD), [part])
