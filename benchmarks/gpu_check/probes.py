"""Part: the probe step on the device against float64, then its rate beside its products and other ways to train."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import roofline
from benchmarks.gpu_check import probe_fits, probe_replay, probe_ways
from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.kernels import ceiling
from benchmarks.gpu_check.probe_ways import Problem
from benchmarks.gpu_check.rows import MEASURED, Job, Row, correctness
from benchmarks.roofline import Least
from substyle.kernels import probe_step
from substyle.kernels.probe_heads import Heads

PART = "probes"
STEPS = 3  # that are compared
# largest relative difference of a loss, and of what training changed, from float64, by dtype of the products. Adam
# takes a full step along a gradient however small, so that rounding turns a share of the steps around; on a CPU the
# changes are off by up to 3e-4 in float32 and 0.17 in bfloat16
ALLOWED = {torch.float32: (1e-4, 2e-3), torch.bfloat16: (2e-2, 0.25)}
CALLS = 5  # steps of one repeat
SEPARATE = 2  # heads that the one-at-a-time loop is timed on


def run(bench: Bench) -> Iterator[Job]:
    """Linear heads and MLP heads: correctness, the two elementwise kernels, rates, replayed steps, an epoch, fits."""
    sizes = bench.sizes
    make = partial(probe_ways.problem, sizes.rows, sizes.width, sizes.classes)
    linear, mlp = make(sizes.linear_heads, 0), make(sizes.mlp_heads, sizes.hidden)
    kinds = {f"{sizes.linear_heads} linear heads": linear, f"{sizes.mlp_heads} MLP heads of {sizes.hidden}": mlp}
    for name, p in kinds.items():
        yield f"{name} against float64", partial(_correct, bench, name, p)
        yield f"{name}, replayed", partial(probe_replay.correct, bench, name, p)
    yield "cross-entropy", partial(_cross_entropy, bench, linear)
    yield "AdamW", partial(_adamw, bench, linear)
    for name, p in kinds.items():
        yield f"{name}, rate", partial(_rate, bench, name, p)
    yield "drawn rows", lambda: [probe_replay.drawn(bench)]
    yield "an epoch", partial(probe_replay.epoch, bench)
    yield "linear heads fitted to a certificate", partial(probe_fits.solved, bench)
    yield from probe_fits.jobs(bench)


def _correct(bench: Bench, name: str, p: Problem) -> Iterator[Row]:
    def train(dtype: torch.dtype) -> tuple[Heads, torch.Tensor]:
        heads = p.heads(bench.device)
        one = p.one_step(heads, dtype)
        return heads, torch.stack([one() for _ in range(STEPS)])

    yield from probe_ways.against_float64(f"{name}, steps against float64", p, STEPS, ALLOWED, train)


def _cross_entropy(bench: Bench, p: Problem) -> Iterator[Row]:
    heads, classes = p.parameters[1].shape
    logits = torch.randn(heads, classes, len(p.x_BD), generator=torch.Generator().manual_seed(1)) * 10
    weight = torch.rand(heads, len(p.x_BD), generator=torch.Generator().manual_seed(2))
    there = [t.to(bench.device) for t in (logits, p.target_B, weight)]
    work = partial(probe_step.cross_entropy, *there)
    expected = in_float64(logits, p.target_B, weight)
    off = [float((g.cpu().double() - e).abs().max()) for g, e in zip(work(), expected, strict=True)]
    part = off[1] / float(expected[1].abs().max())
    text = f"loss off by {off[0]:.1e} (allowed 1e-04), gradient by {part:.1e} of its largest (allowed 1e-05)"
    name = f"cross-entropy and gradient, {heads} heads × {classes} × {len(p.x_BD)}"
    yield correctness(PART, name, off[0] <= 1e-4 and part <= 1e-5, text)
    least = roofline.cross_entropy(heads, classes, len(p.x_BD))
    yield _elementwise(bench, name, work, least, len(p.x_BD) * heads, "rows")


def in_float64(
    logits_KCB: torch.Tensor, target_B: torch.Tensor, weight_KB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy (K,) and its gradient (K, C, B)."""
    share = weight_KB.double() / weight_KB.double().sum(1, keepdim=True)
    log = logits_KCB.double().log_softmax(1)
    index = target_B.expand(len(log), 1, -1)
    loss = -(log.gather(1, index)[:, 0] * share).sum(1)
    return loss, log.exp().scatter_add(1, index, torch.full_like(share, -1.0)[:, None]) * share[:, None]


def _adamw(bench: Bench, p: Problem) -> Iterator[Row]:
    heads, plain = p.heads(bench.device), p.heads(torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        gradients = [torch.randn(q.shape, generator=generator) for q in p.parameters]
        there = [g.to(bench.device) for g in gradients]
        probe_step.adamw_(heads, there, p.lr_K, p.decay_K)
        probe_step.adamw_(plain, gradients, p.lr_K, p.decay_K)
    off = max(float((h.cpu() - e).abs().max()) for h, e in zip(heads.parameters, plain.parameters, strict=True))
    count = sum(q.numel() for q in p.parameters)
    name = f"AdamW, {count:,} parameters of {len(heads)} heads"
    yield correctness(PART, name, off <= 2e-6, f"weights off by {off:.1e} (allowed 2e-06)")
    work = partial(probe_step.adamw_, heads, there, p.lr_K, p.decay_K)
    yield _elementwise(bench, name, work, roofline.adamw(len(heads), count), count, "parameters")


def _elementwise(bench: Bench, name: str, work: object, least: Least, count: int, unit: str) -> Row:
    """Its time beside the shortest that its fewest bytes and operations could take."""
    seconds = bench.clock.seconds(work, limit=min(5.0, bench.left()))  # type: ignore[arg-type]
    shortest, basis = ceiling(bench, least)
    return Row(
        PART, name, MEASURED, unit=unit, per_s=count / seconds["median"], seconds=seconds,
        ceiling_per_s=count / shortest, ceiling=basis,
        facts={"us": seconds["median"] * 1e6, "us by the roofline": shortest * 1e6, "fewest bytes": least.bytes,
               "fewest operations": least.operations},
    )  # fmt: skip


def _rate(bench: Bench, name: str, p: Problem) -> Iterator[Row]:
    """Head-steps a second of steps that the host launches, then of replayed ones, beside others' ways; in bf16."""
    bench.require(5.0)
    dtype, count, device = torch.bfloat16, len(p.lr_K), bench.device
    limit = max(bench.left() / 10, 0.5)
    # the batch and the weights of a step come from the step before: the cache is left as it is
    # and steps follow each other as in training, the host's part included; the products are timed without it
    timed = partial(bench.clock.seconds, limit=limit, flush=False, calls=CALLS)
    seconds = timed(p.one_step(p.heads(device), dtype), ahead=False)
    alone = timed(probe_ways.products(p, device, dtype))
    peers = {}
    for kind in (torch.bfloat16, torch.float32):
        words = str(kind).removeprefix("torch.")
        loop = [probe_ways.together(p, [k], device, kind) for k in range(min(SEPARATE, count))]
        each = [timed(one, limit=limit / len(loop), ahead=False)["median"] for one in loop]
        peers[f"one head at a time, {words}"] = len(loop) / sum(each)
        whole = timed(probe_ways.together(p, range(count), device, kind), ahead=False)
        peers[f"ModuleDict, summed losses, {words}"] = count / whole["median"]
    rows, width, classes = *p.x_BD.shape, p.parameters[-1].shape[1]
    yield Row(
        PART, f"{name} × {classes} classes, batch {rows} × {width}, a step", MEASURED, unit="head-steps",
        per_s=count / seconds["median"], seconds=seconds,
        ceiling_per_s=count / alone["median"], ceiling="its products alone", peers=peers,
        facts={"us a step": seconds["median"] * 1e6, "us of products": alone["median"] * 1e6},
    )  # fmt: skip
    yield probe_replay.rate(bench, name, p, count / alone["median"], peers, limit)
