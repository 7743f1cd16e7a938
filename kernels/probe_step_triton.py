"""Triton kernel of :mod:`substyle.kernels.probe_step`: cross-entropy with its gradient."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.kernels import dispatch

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

# A program has few rows and several classes at once: three heads of 1,024 rows are 96 programs, 1,000 classes 63 rounds
BLOCK_ROWS, BLOCK_CLASSES = 32, 16


# for `tl.reduce`: the interpreter cannot run `tl.sum` and `tl.max` if Triton was imported for compilation
@triton.jit
def add(a, b):  # type: ignore[no-untyped-def]
    """Sum."""
    return a + b


@triton.jit
def larger(a, b):  # type: ignore[no-untyped-def]
    """Maximum."""
    return tl.maximum(a, b)


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(logits, target, share, gradient, loss, classes, batch, ROWS: tl.constexpr, CLASSES: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Program (k, j): ROWS rows of head k, CLASSES classes at once."""
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    wanted = tl.load(target + rows, mask=inside, other=0)[None, :]
    start = (head * classes * batch + rows)[None, :]
    some = tl.arange(0, CLASSES)
    # running maxima and sums of every CLASSES-th class, rescaled when a maximum grows; -1e38: below all logits, finite
    tops = tl.full((CLASSES, ROWS), -1e38, tl.float32)
    sums = tl.full((CLASSES, ROWS), 0.0, tl.float32)
    hits = tl.full((CLASSES, ROWS), 0.0, tl.float32)
    for first in tl.range(0, classes, CLASSES):
        c = (first + some)[:, None]
        known = c < classes
        x = tl.load(logits + start + c * batch, mask=known & inside[None, :], other=0.0)
        x = tl.where(known, x, -1e38)
        higher = tl.maximum(tops, x)
        sums = sums * tl.exp(tops - higher) + tl.where(known, tl.exp(x - higher), 0.0)
        hits = tl.where(c == wanted, x, hits)
        tops = higher
    top = tl.reduce(tops, 0, larger)
    total = tl.reduce(sums * tl.exp(tops - top[None, :]), 0, add)
    hit = tl.reduce(hits, 0, add)
    weight = tl.load(share + head * batch + rows, mask=inside, other=0.0)
    tl.store(loss + head * batch + rows, (top + tl.log(total) - hit) * weight, mask=inside)
    for first in tl.range(0, classes, CLASSES):
        c = (first + some)[:, None]
        there = (c < classes) & inside[None, :]
        x = tl.load(logits + start + c * batch, mask=there, other=-1e38)
        g = (tl.exp(x - top[None, :]) / total[None, :] - (c == wanted).to(tl.float32)) * weight[None, :]
        tl.store(gradient + start + c * batch, g, mask=there)


def cross_entropy(
    logits_KCB: torch.Tensor, target_B: torch.Tensor, share_KB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``probe_step.cross_entropy_reference`` of float32 logits. Reads them twice."""
    heads, classes, batch = logits_KCB.shape
    logits_KCB, share_KB = logits_KCB.contiguous(), share_KB.contiguous()
    gradient, loss_KB = torch.empty_like(logits_KCB), torch.empty_like(share_KB)
    if loss_KB.numel():
        dispatch.launch(
            _cross_entropy, (heads, -(-batch // BLOCK_ROWS)), logits_KCB, target_B, share_KB, gradient, loss_KB,
            classes, batch, ROWS=BLOCK_ROWS, CLASSES=BLOCK_CLASSES,
        )  # fmt: skip
    return loss_KB.sum(1), gradient
