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

BLOCK_ROWS = 256  # rows per cross-entropy program: two per thread, so that bfloat16 is stored in 32-bit words
BLOCK = 1024  # parameters per AdamW program


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(logits, bias, target, share, gradient, loss, classes, batch, apart, between, outputs, shared, each, BIASED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Program (k, j): BLOCK rows of head k.

    Strides of logits: ``apart`` of heads, ``between`` of classes, 1 of rows, so loads are coalesced. Strides of shares:
    ``shared`` of heads, ``each`` of rows, 0 if all rows have the same share. ``gradient`` may alias ``logits``: each
    value is read before it is overwritten.
    """
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < batch
    start = head * apart + rows
    own = bias + head * outputs
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    # running maximum and sum, rescaled when the maximum grows; unrolled, so that several loads are in flight
    for c in tl.range(0, classes, loop_unroll_factor=4):
        x = tl.load(logits + start + c * between, mask=inside, other=0.0).to(tl.float32)
        if BIASED:
            x += tl.load(own + c)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    wanted = tl.load(target + rows, mask=inside, other=0)
    weight = tl.load(share + head * shared + rows * each, mask=inside, other=0.0)
    hit = tl.load(logits + start + wanted * between, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        hit += tl.load(own + wanted, mask=inside, other=0.0)
    tl.store(loss + head * batch + rows, (top + tl.log(total) - hit) * weight, mask=inside)
    for c in tl.range(0, classes, loop_unroll_factor=4):
        x = tl.load(logits + start + c * between, mask=inside, other=0.0).to(tl.float32)
        if BIASED:
            x += tl.load(own + c)
        g = (tl.exp(x - top) / total - (wanted == c).to(tl.float32)) * weight
        tl.store(gradient + start + c * between, g.to(gradient.dtype.element_ty), mask=inside)


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
            BIASED=bias_KC is not None, BLOCK=BLOCK_ROWS,
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
