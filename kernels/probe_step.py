"""A training step of K probes at once: one first-layer GEMM, cross-entropy with its gradient, batched AdamW.

A head is linear (``outputs = W1 x + b1``) or an MLP (``outputs = W2 drop(relu(W1 x + b1)) + b2``, or deeper). The K
heads have one shape and see the same batch, so their first layers are one (B, D) x (D, K*H) GEMM; x needs no gradient,
so a step costs two such GEMMs. Activations are feature-major, (K, H, B), so every product reads and writes contiguous
memory. Weights, moments and losses are float32; the GEMMs may run in bfloat16. On a GPU, torch.compile fuses what is
between them, and all that changes from step to step may be tensors, so that a CUDA graph can replay a step.
Shapes: B batch, D embedding width, K heads, L hidden layers, H hidden width (H = C for a linear head), C outputs,
S dropout seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.adamw import adamw

from substyle.kernels.dispatch import fused, on_triton, upload
from substyle.kernels.probe_heads import BETA1, BETA2, EPS, Heads, Numbers, Term, shares

# Smallest logarithm of a probability in gradients: smaller ones change no sum, but their products with weights of rows
# would be subnormal numbers, with which matrix products of a CPU take up to 26 times as long.
_LEAST = -60.0


def forward(heads: Heads, x_BD: torch.Tensor) -> torch.Tensor:
    """Logits without dropout, (K, C, B) float32. GEMMs run in the dtype of ``x_BD``."""
    if heads.by_autograd:
        return heads.logits(x_BD)
    z_KHB = _first_layer(heads.parameters, x_BD)
    for w, b in heads.layers[1:]:
        z_KHB = _with_bias(torch.bmm(w.to(x_BD.dtype), z_KHB.relu_()), b, last=b is heads.parameters[-1])
    return z_KHB.float()


def judge(
    heads: Heads, x_BD: torch.Tensor, target_B: torch.Tensor, weight_B: torch.Tensor, outputs: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Validate heads, without dropout.

    Args:
        heads: the K heads.
        x_BD: standardised features, in the dtype of the GEMMs.
        target_B: int64 class of each row, relative to the first output of the slice.
        weight_B: weights of the rows, with sum 1.
        outputs: slice of the outputs to evaluate.

    Returns:
        weighted accuracy (K,) and weighted cross-entropy (K,), float64. Among equal logits the first is the prediction;
        a row with a NaN logit counts as wrong.
    """
    logits_KCB = forward(heads, x_BD)[:, outputs]
    loss_KB = -logits_KCB.log_softmax(1).gather(1, target_B.expand(len(heads), 1, -1))[:, 0].double()
    right_KB = (logits_KCB.argmax(1) == target_B) & ~loss_KB.isnan()
    return right_KB.double() @ weight_B.double(), loss_KB @ weight_B.double()


def schedule(shares: Sequence[float], taken: int) -> NDArray[np.float64]:
    """Argument ``now_3`` of n steps after the first ``taken``. Shape: (n, 3).

    Args:
        shares: fraction of the peak learning rates in each step.
    """
    t = taken + 1.0 + np.arange(len(shares))
    return np.stack([np.asarray(shares, np.float64), 1.0 - BETA1**t, 1.0 - BETA2**t], axis=1)


def step(
    heads: Heads,
    x_BD: torch.Tensor,
    terms: Sequence[Term],
    lr_K: Numbers | torch.Tensor,
    decay_K: Numbers | torch.Tensor,
    *,
    now_3: torch.Tensor | None = None,
    kept_SHB: torch.Tensor | None = None,
    keep: float = 1.0,
) -> torch.Tensor:
    """Train all heads for one step, in place.

    Args:
        heads: the K heads.
        x_BD: standardised features, in the dtype of the GEMMs, float32 or bfloat16.
        terms: terms of the loss, which is their sum.
        lr_K: peak learning rate of each head; a tensor is float64 and on the device.
        decay_K: decoupled weight decay of each head; a tensor is float64 and on the device.
        now_3: fraction of the peak rates, ``1 - BETA1**t`` and ``1 - BETA2**t`` of step number t, from 1, float64 on
            the device; None for the peak rates and the steps that the heads have taken.
        kept_SHB: dropout masks of the hidden layer, 0 where a unit is dropped and 1 elsewhere, None for no dropout;
            head k uses mask k % S. Those of L hidden layers are concatenated, (S, L*H, B).
        keep: probability of keeping a unit; kept units are divided by it.

    Returns:
        loss of each head before the step, (K,) float32.
    """
    if heads.by_autograd:
        gradients, loss_K = _by_autograd(heads, x_BD, terms)
    elif heads.w1.device.type == "cpu":
        gradients, loss_K = _gradients(heads.parameters, x_BD, terms, kept_SHB, keep)
    else:
        rates = _rates(heads, lr_K, decay_K, now_3)
        return train_(x_BD, terms, kept_SHB, keep, *rates, heads.parameters, heads.first, heads.second)
    adamw_(heads, gradients, lr_K, decay_K, now_3)
    return loss_K


@fused
def train_(
    x_BD: torch.Tensor,
    terms: Sequence[Term],
    kept_SHB: torch.Tensor | None,
    keep: float,
    lr_K: torch.Tensor,
    decay_K: torch.Tensor,
    now_3: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    first: Sequence[torch.Tensor],
    second: Sequence[torch.Tensor],
) -> torch.Tensor:
    """:func:`step` on a GPU. Updates parameters and moments in place."""
    gradients, loss_K = _gradients(parameters, x_BD, terms, kept_SHB, keep)
    adamw_reference_(lr_K, decay_K, now_3, parameters, gradients, first, second)
    return loss_K


def linear_gradients(heads: Heads, x_BD: torch.Tensor, term: Term) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and gradients of K linear heads.

    Args:
        heads: heads without a hidden layer.
        x_BD: standardised features in the dtype of the GEMMs: float32, bfloat16, or the dtype of the heads.
        term: the loss.

    Returns:
        loss (K,) and its gradients with respect to weights (K, C, D) and biases (K, C), in the dtype of the heads.
    """
    z_KCB = _first_layer(heads.parameters, x_BD).to(heads.w1.dtype)
    loss_K, g_KCB = cross_entropy(z_KCB, term.target_B, term.weight_KB)
    dw = (g_KCB.to(x_BD.dtype).flatten(0, 1) @ x_BD).to(heads.w1.dtype)
    return loss_K, dw.view(heads.w1.shape), g_KCB.sum(2)


def cross_entropy(
    logits_KCB: torch.Tensor, target_B: torch.Tensor, weight_KB: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy of each head and its gradient.

    Args:
        logits_KCB: float32 or float64 logits.
        target_B: int64 class of each row.
        weight_KB: weights of the rows, None for equal weights; a head whose weights are all 0 has loss and gradient 0.

    Returns:
        loss (K,) and its gradient with respect to the logits (K, C, B), in the dtype of the logits.
    """
    share_KB = _shares(logits_KCB, weight_KB)
    if on_triton(logits_KCB) and logits_KCB.dtype == torch.float32:
        from substyle.kernels import probe_step_triton

        return probe_step_triton.cross_entropy(logits_KCB, target_B, share_KB)
    return cross_entropy_reference(logits_KCB, target_B, share_KB)


def cross_entropy_reference(
    logits_KCB: torch.Tensor, target_B: torch.Tensor, share_KB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`cross_entropy` in plain torch, for weights with sum 1."""
    index = target_B.expand(len(logits_KCB), 1, -1)
    log_KCB = torch.log_softmax(logits_KCB, dim=1)
    loss_K = -(log_KCB.gather(1, index)[:, 0] * share_KB).sum(1)
    gradient = log_KCB.clamp_(min=_LEAST).exp_()
    if scatters(gradient):
        gradient.scatter_add_(1, index, torch.full_like(share_KB, -1.0)[:, None])
    else:
        class_C1 = torch.arange(gradient.shape[1], device=gradient.device)[:, None]
        gradient.sub_((class_C1 == target_B).to(gradient.dtype))
    return loss_K, gradient.mul_(share_KB[:, None])


def scatters(gradient_KCB: torch.Tensor) -> bool:
    """Whether to change one number of a row instead of all: torch.compile fuses only the latter with what is around."""
    return gradient_KCB.device.type == "cpu"


def _shares(logits_KCB: torch.Tensor, weight_KB: torch.Tensor | None) -> torch.Tensor:
    """Weights with sum 1 of the rows of logits. Shape: (K, B)."""
    heads, _, batch = logits_KCB.shape
    if weight_KB is not None:
        return shares(weight_KB)
    return torch.full((heads, batch), 1.0 / max(batch, 1), device=logits_KCB.device, dtype=logits_KCB.dtype)


def adamw_(
    heads: Heads,
    gradients: Sequence[torch.Tensor],
    lr_K: Numbers | torch.Tensor,
    decay_K: Numbers | torch.Tensor,
    now_3: torch.Tensor | None = None,
) -> None:
    """AdamW step in place, with a learning rate and weight decay per head: ``w -= lr * decay * w``, then Adam.

    Decoupled weight decay: Loshchilov & Hutter (2019). It applies to biases too, as in torch's AdamW. Rates as in
    :func:`step`.
    """
    rates = _rates(heads, lr_K, decay_K, now_3)
    if heads.w1.device.type != "cpu":
        fused(adamw_reference_)(*rates, heads.parameters, gradients, heads.first, heads.second)
        return
    peak_K, fixed_K, now = rates
    start = 0
    for (lr_k, decay_k), run in groupby(zip((peak_K * now[0]).tolist(), fixed_K.tolist(), strict=True)):
        own = slice(start, start + len(list(run)))  # torch's fused update, one pass over memory, has one rate
        start = own.stop
        adamw(
            [p[own] for p in heads.parameters],
            [g[own] for g in gradients],
            [m[own] for m in heads.first],
            [v[own] for v in heads.second],
            [],
            [torch.tensor(heads.steps - 1.0) for _ in gradients],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=lr_k,
            weight_decay=decay_k,
            eps=EPS,
            maximize=False,
        )


def adamw_reference_(
    lr_K: torch.Tensor,
    decay_K: torch.Tensor,
    now_3: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first: Sequence[torch.Tensor],
    second: Sequence[torch.Tensor],
) -> None:
    """:func:`adamw_` in plain torch."""
    rate_K, correct1, correct2 = (lr_K * now_3[0]).float(), now_3[1].float(), now_3[2].float()
    for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
        of_head = (-1, *[1] * (p.ndim - 1))
        rate = rate_K.view(of_head)
        p.sub_(rate * decay_K.float().view(of_head) * p)
        m.add_((1.0 - BETA1) * (g - m))
        v.mul_(BETA2).add_((1.0 - BETA2) * g * g)
        p.sub_(rate * (m / correct1) / ((v / correct2).sqrt() + EPS))


def _rates(
    heads: Heads, lr_K: Numbers | torch.Tensor, decay_K: Numbers | torch.Tensor, now_3: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count a step of the heads; its rates as tensors on their device."""
    now = schedule([1.0], heads.steps)[0] if now_3 is None else now_3
    heads.start()
    heads.steps += 1

    def on(values: Numbers | torch.Tensor) -> torch.Tensor:
        return values if isinstance(values, torch.Tensor) else upload(np.asarray(values, np.float64), heads.w1.device)

    return on(lr_K), on(decay_K), on(now)


def _first_layer(parameters: Sequence[torch.Tensor], x_BD: torch.Tensor) -> torch.Tensor:
    w1, b1 = parameters[:2]
    z = w1.to(x_BD.dtype).flatten(0, 1) @ x_BD.T
    return z.view(*w1.shape[:2], -1).add_(b1.to(x_BD.dtype)[:, :, None])


def _with_bias(z_KHB: torch.Tensor, b_KH: torch.Tensor, *, last: bool) -> torch.Tensor:
    """Add the bias of a layer after the first, in float32 if it is the output layer."""
    z_KHB = z_KHB.float() if last else z_KHB
    return z_KHB.add_(b_KH.to(z_KHB.dtype)[:, :, None])


def _gradients(
    parameters: Sequence[torch.Tensor],
    x_BD: torch.Tensor,
    terms: Sequence[Term],
    kept_SHB: torch.Tensor | None,
    keep: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    count, hidden, width = parameters[0].shape
    z_KHB = _first_layer(parameters, x_BD)
    passed: list[tuple[torch.Tensor, torch.Tensor]] = []  # weights and inputs of all layers but the first
    for place in range(2, len(parameters), 2):
        w, b = parameters[place : place + 2]
        z_KHB.relu_()
        if kept_SHB is not None:
            kept = kept_SHB[:, (place // 2 - 1) * hidden : place // 2 * hidden]
            z_KHB.view(-1, *kept.shape).mul_(kept)  # heads k, k + S, … share a mask
        scaled = w if kept_SHB is None else w / keep  # cheaper than dividing the larger hidden layer
        passed.append((scaled.to(x_BD.dtype), z_KHB))
        z_KHB = _with_bias(torch.bmm(*passed[-1]), b, last=place + 2 == len(parameters))
    loss_K, g_KCB = _loss(z_KHB.to(parameters[0].dtype), terms)
    db, dz_KHB = g_KCB.sum(2), g_KCB.to(x_BD.dtype)
    later: list[torch.Tensor] = []
    for w, h_KHB in reversed(passed):
        dw = torch.bmm(dz_KHB, h_KHB.transpose(1, 2)).float()
        later = [dw / keep if kept_SHB is not None else dw, db, *later]
        # positive hidden units are those that neither ReLU nor dropout set to 0
        dz_KHB = torch.ops.aten.threshold_backward(torch.bmm(w.transpose(1, 2), dz_KHB), h_KHB, 0)
        db = dz_KHB.sum(2).float()
    dw1 = (dz_KHB.view(count * hidden, -1) @ x_BD).to(parameters[0].dtype)
    return [dw1.view(count, hidden, width), db, *later], loss_K


def _by_autograd(heads: Heads, x_BD: torch.Tensor, terms: Sequence[Term]) -> tuple[list[torch.Tensor], torch.Tensor]:
    leaves = [p.detach().requires_grad_() for p in heads.parameters]
    with torch.enable_grad():
        logits_KCB = heads.like(leaves).logits(x_BD)
    loss_K, g_KCB = _loss(logits_KCB.detach(), terms)
    return [g.contiguous() for g in torch.autograd.grad(logits_KCB, leaves, g_KCB)], loss_K


def _loss(logits_KCB: torch.Tensor, terms: Sequence[Term]) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = torch.zeros_like(logits_KCB)
    total_K = logits_KCB.new_zeros(len(logits_KCB))
    for term in terms:
        part = logits_KCB[:, term.outputs, term.rows].contiguous()
        share_KB = _shares(part, term.weight_KB)
        loss_K, part_gradient = cross_entropy_reference(part, term.target_B, share_KB)
        if term.scale_K is not None:
            loss_K = loss_K * term.scale_K
            part_gradient.mul_(term.scale_K[:, None, None])
        total_K += loss_K
        gradient[:, term.outputs, term.rows] += part_gradient
    return total_K, gradient
