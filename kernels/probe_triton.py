"""The element-wise halves of a probe step on a GPU, in Triton: cross-entropy with its gradient, AdamW over K heads.

The same arithmetic in torch stands in ``probe_step``, which imports this module only where ``usable`` says so there:
Triton is no dependency elsewhere, so it is looked up by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from substyle.kernels import dispatch

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

BLOCK_ROWS = 128  # rows of the batch of one cross-entropy program
BLOCK = 1024  # parameters of one AdamW program


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(logits, target, share, gradient, loss, classes, batch, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (k, j): BLOCK rows of head k. Classes lie `batch` apart, so that neighbours read neighbours."""
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < batch
    start = head * classes * batch + rows
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for c in range(classes):  # running maximum and sum, rescaled when the maximum grows
        x = tl.load(logits + start + c * batch, mask=inside, other=0.0)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    wanted = tl.load(target + rows, mask=inside, other=0)
    weight = tl.load(share + head * batch + rows, mask=inside, other=0.0)
    hit = tl.load(logits + start + wanted * batch, mask=inside, other=0.0)
    tl.store(loss + head * batch + rows, (top + tl.log(total) - hit) * weight, mask=inside)
    for c in range(classes):
        x = tl.load(logits + start + c * batch, mask=inside, other=0.0)
        g = (tl.exp(x - top) / total - (wanted == c).to(tl.float32)) * weight
        tl.store(gradient + start + c * batch, g, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _adamw(w, g, m, v, lr, decay, size, correct1, correct2, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (k, j): BLOCK parameters of head k."""
    head = tl.program_id(0).to(tl.int64)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    at = head * size + offset
    rate = tl.load(lr + head)
    weight = tl.load(w + at, mask=inside, other=0.0)
    slope = tl.load(g + at, mask=inside, other=0.0)
    first = tl.load(m + at, mask=inside, other=0.0)
    second = tl.load(v + at, mask=inside, other=0.0)
    weight -= rate * tl.load(decay + head) * weight
    first += (1.0 - BETA1) * (slope - first)
    second = BETA2 * second + (1.0 - BETA2) * slope * slope
    weight -= rate * (first / correct1) / (tl.sqrt(second / correct2) + EPS)
    tl.store(w + at, weight, mask=inside)
    tl.store(m + at, first, mask=inside)
    tl.store(v + at, second, mask=inside)


def cross_entropy(
    logits_KCB: torch.Tensor, target_B: torch.Tensor, share_KB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (K,) and gradient (K, C, B) for row weights that sum to 1 in each head; reads the logits twice."""
    heads, classes, batch = logits_KCB.shape
    gradient = torch.empty_like(logits_KCB)
    loss_KB = torch.empty_like(share_KB)
    grid = (heads, -(-batch // BLOCK_ROWS))
    dispatch.launch(
        _cross_entropy, grid, logits_KCB, target_B, share_KB, gradient, loss_KB, classes, batch, BLOCK=BLOCK_ROWS
    )
    return loss_KB.sum(1), gradient


def adamw_(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    lr_K: torch.Tensor,
    decay_K: torch.Tensor,
    steps: int,
    constants: tuple[float, float, float],
) -> None:
    """AdamW's step number ``steps``, counted from 1, of a (K, ...) parameter in place: one pass over memory."""
    beta1, beta2, eps = constants
    size = parameter[0].numel()
    grid = (len(parameter), -(-size // BLOCK))
    corrections: Sequence[float] = (1.0 - beta1**steps, 1.0 - beta2**steps)
    dispatch.launch(
        _adamw, grid, *(parameter, gradient.contiguous(), first, second, lr_K, decay_K, size, *corrections),
        BETA1=beta1, BETA2=beta2, EPS=eps, BLOCK=BLOCK,
    )  # fmt: skip
