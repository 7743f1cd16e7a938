"""Training step of K probes for CUDA graphs: all numbers that change between steps are read from device memory.

The arithmetic is that of ``probe_step``. Learning rates, Adam's bias corrections and the dropout step are tensors, so a
step can be captured once and replayed. The gradient can overwrite the logits, and AdamW updates the bfloat16 copies of
the weights together with the weights. Shapes as in ``probe_step``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import probe_data, probe_heads
from substyle.kernels.dispatch import on_triton
from substyle.kernels.probe_heads import BETA1, BETA2, EPS, Heads, Term


@dataclass(frozen=True)
class Rates:
    """Learning rates, weight decay and bias corrections of an AdamW step, float32 tensors on the device.

    Attributes:
        lr_K: peak learning rate of each head.
        decay_K: decoupled weight decay of each head.
        now_3: fraction of the peak rates, ``1 - BETA1**t`` and ``1 - BETA2**t``; t is the step number, from 1.
    """

    lr_K: torch.Tensor
    decay_K: torch.Tensor
    now_3: torch.Tensor


@dataclass(frozen=True)
class Dropped:
    """Dropout of hidden layers: arguments of ``probe_data.relu_drop_``.

    Attributes:
        key_LS, step_1: seeds of each layer and step on the device; head k uses the masks of seeds k % S.
        threshold: 256 times the dropout probability.
    """

    key_LS: torch.Tensor
    step_1: torch.Tensor
    threshold: int

    @property
    def keep(self) -> float:
        """Probability of keeping a unit."""
        return 1.0 - self.threshold / probe_data.LEVELS


@dataclass(frozen=True)
class Loss:
    """A `Term` of the loss with normalised weights.

    Attributes:
        target_B: int64 class of each row of the slice, relative to the first output of the slice.
        rows, outputs: slices of the batch and of the outputs.
        share_KB: float32 factors of the rows' losses, (K, B), or (K, 1) if equal for all rows of a head.
    """

    target_B: torch.Tensor
    rows: slice
    outputs: slice
    share_KB: torch.Tensor


def schedule(shares: Sequence[float], taken: int) -> NDArray[np.float32]:
    """``Rates.now_3`` of n steps after the first ``taken``, from their fractions of the peak rates. Shape: (n, 3)."""
    t = taken + 1.0 + np.arange(len(shares))
    return np.stack([np.asarray(shares, np.float64), 1.0 - BETA1**t, 1.0 - BETA2**t], axis=1).astype(np.float32)


def shares(term: Term, heads: int, rows: int, device: torch.device) -> torch.Tensor:
    """``Loss.share_KB`` of a term with the given number of rows."""
    if term.weight_KB is None:
        share = torch.full((heads, 1), 1.0 / max(rows, 1), device=device)
    else:
        share = probe_heads.shares(term.weight_KB)
    return share if term.scale_K is None else share * term.scale_K[:, None]


def step_on_gpu(
    heads: Heads, x_BD: torch.Tensor, losses: Sequence[Loss], rates: Rates, dropped: Dropped | None = None
) -> torch.Tensor:
    """Train all heads for one step, in place. The caller increments ``heads.steps``.

    Args:
        heads: the K heads.
        x_BD: standardised features, in the dtype of the GEMMs, float32 or bfloat16.
        losses: terms of the loss, which is their sum; no row may be in two of them.
        rates: rates of the step.
        dropped: dropout of the hidden layers, None for no dropout.

    Returns:
        loss of each head and row before the step, (K, B) float32; their sum over rows is the loss of the head.
    """
    heads.start()
    count, hidden, width = heads.w1.shape
    z_KHB = (heads.lowered(0, x_BD.dtype).view(count * hidden, width) @ x_BD.T).view(count, hidden, -1)
    keep, bias = 1.0 if dropped is None else dropped.keep, heads.b1
    passed: list[tuple[torch.Tensor, torch.Tensor]] = []  # weights and inputs of all layers but the first
    for place, (w, b) in enumerate(heads.layers[1:]):
        h_KHB = _hidden(z_KHB, bias, dropped, place)
        # cheaper than dividing the larger hidden layer
        passed.append((torch.div(w, keep, out=torch.empty_like(w, dtype=x_BD.dtype)), h_KHB))
        z_KHB, bias = torch.bmm(*passed[-1]), b
    loss_KB, dz_KHB = _loss(z_KHB, bias, losses)
    later: list[torch.Tensor] = []
    for w, h_KHB in reversed(passed):
        dw = torch.baddbmm(w, dz_KHB, h_KHB.transpose(1, 2), beta=0.0, alpha=1.0 / keep)
        later = [dw, dz_KHB.sum(2, dtype=torch.float32), *later]
        # positive hidden units are those that neither ReLU nor dropout set to 0
        dz_KHB = torch.ops.aten.threshold_backward(torch.bmm(w.transpose(1, 2), dz_KHB), h_KHB, 0)
    dw1 = (dz_KHB.view(count * hidden, -1) @ x_BD).view(count, hidden, width)
    for place, gradient in enumerate([dw1, dz_KHB.sum(2, dtype=torch.float32), *later]):
        _adamw(heads, place, gradient, rates)
    return loss_KB


def _hidden(z_KHB: torch.Tensor, bias_KH: torch.Tensor, dropped: Dropped | None, layer: int) -> torch.Tensor:
    if dropped is None:
        return z_KHB.add_(bias_KH.to(z_KHB.dtype)[:, :, None]).relu_()
    return probe_data.relu_drop_(z_KHB, dropped.key_LS[layer], dropped.step_1, dropped.threshold, bias_KH)


def _loss(logits_KCB: torch.Tensor, bias_KC: torch.Tensor, losses: Sequence[Loss]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (K, B) and gradient of logits without bias; if one term covers all of them, its gradient overwrites them."""
    count, outputs, batch = logits_KCB.shape
    whole = [(loss.rows.indices(batch), loss.outputs.indices(outputs)) for loss in losses]
    if whole == [((0, batch, 1), (0, outputs, 1))]:
        return cross_entropy_(logits_KCB, bias_KC, losses[0], logits_KCB), logits_KCB
    gradient_KCB = torch.zeros_like(logits_KCB)
    loss_KB = torch.zeros(count, batch, device=logits_KCB.device)
    for loss in losses:
        own = (slice(None), loss.outputs, loss.rows)
        part = cross_entropy_(logits_KCB[own], bias_KC[:, loss.outputs], loss, gradient_KCB[own])
        loss_KB[:, loss.rows] = part
    return loss_KB, gradient_KCB


def cross_entropy_(
    logits_KCB: torch.Tensor, bias_KC: torch.Tensor, loss: Loss, gradient_KCB: torch.Tensor
) -> torch.Tensor:
    """Weighted cross-entropy of each head and row, (K, B) float32. Writes the gradient to ``gradient_KCB``.

    Args:
        logits_KCB: logits without bias, float32 or bfloat16.
        bias_KC: float32 bias.
        loss: targets and shares of these rows and outputs.
        gradient_KCB: output with the strides of the logits; may be the logits themselves.
    """
    if on_triton(logits_KCB):
        from substyle.kernels import probe_step_triton

        return probe_step_triton.cross_entropy_(logits_KCB, bias_KC, loss.target_B, loss.share_KB, gradient_KCB)
    log_KCB = torch.log_softmax(logits_KCB.float() + bias_KC[:, :, None], dim=1)
    index = loss.target_B.expand(len(log_KCB), 1, -1)
    loss_KB = -log_KCB.gather(1, index)[:, 0] * loss.share_KB
    gradient = log_KCB.exp_().scatter_add_(1, index, torch.full_like(index, -1.0, dtype=torch.float32))
    gradient_KCB.copy_(gradient.mul_(loss.share_KB[:, None]))
    return loss_KB


def _adamw(heads: Heads, place: int, gradient: torch.Tensor, rates: Rates) -> None:
    """Update ``parameters[place]`` and its bfloat16 copy by AdamW."""
    p, m, v = heads.parameters[place], heads.first[place], heads.second[place]
    if on_triton(p):
        from substyle.kernels import probe_step_triton

        low = heads.low_copy(place)
        probe_step_triton.adamw_(p, gradient, m, v, rates.lr_K, rates.decay_K, rates.now_3, low)
        return
    each = (-1, *[1] * (p.ndim - 1))
    slope, rate_K = gradient.float(), (rates.lr_K * rates.now_3[0]).view(each)
    p.sub_(rate_K * rates.decay_K.view(each) * p)
    m.add_((1.0 - BETA1) * (slope - m))
    v.mul_(BETA2).add_((1.0 - BETA2) * slope * slope)
    p.sub_(rate_K * (m / rates.now_3[1]) / ((v / rates.now_3[2]).sqrt() + EPS))
