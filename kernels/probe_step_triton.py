"""Triton kernels of the probe step: cross-entropy with its gradient, and AdamW over K heads.

The torch implementations are in ``probe_step`` and ``probe_step_gpu``, which import this module only if Triton is used.
All numbers that change between steps are read from device memory, so launches can be captured in CUDA graphs.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.kernels import dispatch
from substyle.kernels.probe_heads import BETA1, BETA2, EPS

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

# A program has few rows and several classes at once: three heads of 1,024 rows are 96 programs, 1,000 classes 63 rounds
BLOCK_ROWS, BLOCK_CLASSES = 32, 16
BLOCK = 1024  # parameters per AdamW program


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
def _cross_entropy(logits, bias, target, share, gradient, loss, classes, batch, apart, between, outputs, shared, each, BIASED: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (k, j): ROWS rows of head k, CLASSES classes at once.

    Strides of logits: ``apart`` of heads, ``between`` of classes, 1 of rows, so loads are coalesced. Strides of shares:
    ``shared`` of heads, ``each`` of rows, 0 if all rows have the same share. ``gradient`` may alias ``logits``: all
    values are read before the first is overwritten, and each again by the thread that overwrites it.
    """
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    wanted = tl.load(target + rows, mask=inside, other=0)[None, :]
    start = (head * apart + rows)[None, :]
    own = bias + head * outputs
    some = tl.arange(0, CLASSES)
    # running maxima and sums of every CLASSES-th class, rescaled when a maximum grows; -1e38: below all logits, finite
    tops = tl.full((CLASSES, ROWS), -1e38, tl.float32)
    sums = tl.full((CLASSES, ROWS), 0.0, tl.float32)
    hits = tl.full((CLASSES, ROWS), 0.0, tl.float32)
    for first in tl.range(0, classes, CLASSES):
        c = (first + some)[:, None]
        known = c < classes
        x = tl.load(logits + start + c * between, mask=known & inside[None, :], other=0.0).to(tl.float32)
        if BIASED:
            x += tl.load(own + c, mask=known, other=0.0)
        x = tl.where(known, x, -1e38)
        higher = tl.maximum(tops, x)
        sums = sums * tl.exp(tops - higher) + tl.where(known, tl.exp(x - higher), 0.0)
        hits = tl.where(c == wanted, x, hits)
        tops = higher
    top = tl.reduce(tops, 0, larger)
    total = tl.reduce(sums * tl.exp(tops - top[None, :]), 0, add)
    hit = tl.reduce(hits, 0, add)
    weight = tl.load(share + head * shared + rows * each, mask=inside, other=0.0)
    tl.store(loss + head * batch + rows, (top + tl.log(total) - hit) * weight, mask=inside)
    tl.debug_barrier()
    for first in tl.range(0, classes, CLASSES):
        c = (first + some)[:, None]
        there = (c < classes) & inside[None, :]
        x = tl.load(logits + start + c * between, mask=there, other=-1e38).to(tl.float32)
        if BIASED:
            x += tl.load(own + c, mask=c < classes, other=0.0)
        g = (tl.exp(x - top[None, :]) / total[None, :] - (c == wanted).to(tl.float32)) * weight[None, :]
        tl.store(gradient + start + c * between, g.to(gradient.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _adamw(w, g, m, v, low, lr, decay, now, size, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, LOWERED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (k, j): BLOCK parameters of head k and their low-precision copy."""
    head = tl.program_id(0).to(tl.int64)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    at = head * size + offset
    rate = tl.load(lr + head) * tl.load(now)
    correct1, correct2 = tl.load(now + 1), tl.load(now + 2)
    weight = tl.load(w + at, mask=inside, other=0.0)
    slope = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(m + at, mask=inside, other=0.0)
    second = tl.load(v + at, mask=inside, other=0.0)
    weight -= rate * tl.load(decay + head) * weight
    first += (1.0 - BETA1) * (slope - first)
    second = BETA2 * second + (1.0 - BETA2) * slope * slope
    weight -= rate * (first / correct1) / (tl.sqrt(second / correct2) + EPS)
    tl.store(w + at, weight, mask=inside)
    tl.store(m + at, first, mask=inside)
    tl.store(v + at, second, mask=inside)
    if LOWERED:
        tl.store(low + at, weight.to(low.dtype.element_ty), mask=inside)


def cross_entropy(
    logits_KCB: torch.Tensor, target_B: torch.Tensor, share_KB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (K,) and gradient (K, C, B) for weights with sum 1 per head. Reads the logits twice."""
    gradient = torch.empty_like(logits_KCB)
    return cross_entropy_(logits_KCB, None, target_B, share_KB, gradient).sum(1), gradient


def cross_entropy_(
    logits_KCB: torch.Tensor,
    bias_KC: torch.Tensor | None,
    target_B: torch.Tensor,
    share_KB: torch.Tensor,
    gradient_KCB: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of each head and row, (K, B). Writes the gradient to ``gradient_KCB``.

    Args:
        logits_KCB: logits, rows contiguous; may be a slice of heads and classes of a larger tensor.
        bias_KC: float32 bias to add, classes contiguous, None for no bias.
        target_B: int64 class of each row, in [0, C).
        share_KB: float32 factors of the rows' losses, or (K, 1) if equal for all rows of a head.
        gradient_KCB: output with the strides of the logits; may be the logits themselves.
    """
    heads, classes, batch = logits_KCB.shape
    loss_KB = torch.empty(heads, batch, device=logits_KCB.device)
    if loss_KB.numel():
        grid = (heads, -(-batch // BLOCK_ROWS))
        apart, between, _ = logits_KCB.stride()
        outputs = 0 if bias_KC is None else bias_KC.stride(0)
        each = 0 if share_KB.shape[1] == 1 else share_KB.stride(1)
        dispatch.launch(
            _cross_entropy, grid, logits_KCB, share_KB if bias_KC is None else bias_KC, target_B, share_KB,
            gradient_KCB, loss_KB, classes, batch, apart, between, outputs, share_KB.stride(0), each,
            BIASED=bias_KC is not None, ROWS=BLOCK_ROWS, CLASSES=BLOCK_CLASSES,
        )  # fmt: skip
    return loss_KB


def adamw_(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    lr_K: torch.Tensor,
    decay_K: torch.Tensor,
    now_3: torch.Tensor,
    low: torch.Tensor | None = None,
) -> None:
    """AdamW step of a (K, ...) parameter and its copy ``low`` in place, in one pass over memory.

    ``lr_K``, ``decay_K`` and ``now_3`` as in ``probe_step_gpu.Rates``; the gradient may be float32 or in the dtype of
    the GEMMs.
    """
    size = parameter[0].numel()
    grid = (len(parameter), -(-size // BLOCK))
    dispatch.launch(
        _adamw, grid, parameter, gradient.contiguous(), first, second, parameter if low is None else low,
        lr_K, decay_K, now_3, size, BETA1=BETA1, BETA2=BETA2, EPS=EPS, LOWERED=low is not None, BLOCK=BLOCK,
    )  # fmt: skip
