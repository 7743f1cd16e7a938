"""One training step of K probes at once: shared first-layer GEMM, cross-entropy with its gradient, Adam over K.

A head is linear (``outputs = W1 x + b1``) or has one hidden layer (``outputs = W2 drop(relu(W1 x + b1)) + b2``). The K
heads of one shape see the same batch, so their first layers are one (B, D) x (D, K*H) GEMM; nothing flows back into
x, so a step costs two such GEMMs. Activations are feature-major, (K, H, B): every product then reads and writes
contiguous memory. Weights, moments and losses are float32; the GEMMs may run in bfloat16.
Shapes: B batch, D embedding width, K heads, H hidden width (H = C for a linear head), C outputs, S dropout seeds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch.optim.adamw import adamw

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Kingma & Ba, "Adam" (2015), their defaults


@dataclass
class Heads:
    """K heads of one shape, with their Adam moments. All tensors are float32 and on one device.

    Attributes:
        w1: (K, H, D) first layer; H is the number of outputs of a linear head.
        b1: (K, H).
        w2: (K, C, H) second layer, None for linear heads.
        b2: (K, C), None for linear heads.
        steps: Adam steps taken so far.
    """

    w1: torch.Tensor
    b1: torch.Tensor
    w2: torch.Tensor | None = None
    b2: torch.Tensor | None = None
    steps: int = field(default=0, kw_only=True)
    first: list[torch.Tensor] = field(default_factory=list, kw_only=True)  # Adam's moments; empty before a step
    second: list[torch.Tensor] = field(default_factory=list, kw_only=True)
    scratch: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, kw_only=True, repr=False)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The two or four parameter tensors, first axis K."""
        return [p for p in (self.w1, self.b1, self.w2, self.b2) if p is not None]

    def __len__(self) -> int:
        return self.w1.shape[0]

    def converted(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of w1's size in another dtype, in memory that the next conversion to that dtype overwrites.

        Fresh memory of that size would cost more in page faults than the conversion itself.
        """
        if tensor.dtype == dtype:
            return tensor
        if dtype not in self.scratch:
            self.scratch[dtype] = torch.empty_like(self.w1, dtype=dtype)
        return self.scratch[dtype].view_as(tensor).copy_(tensor)

    def select(self, index: Sequence[int]) -> Heads:
        """A copy with only some of the heads, moments and step count included."""
        rows = torch.tensor(list(index), dtype=torch.int64, device=self.w1.device)
        parameters, first, second = ([p[rows] for p in ps] for ps in (self.parameters, self.first, self.second))
        return Heads(*parameters, steps=self.steps, first=first, second=second)


@dataclass(frozen=True)
class Term:
    """One cross-entropy of the loss: over some rows of the batch and some of the outputs.

    Attributes:
        target_B: int64 target of each of its rows, counted from the first of its outputs.
        rows: its rows of the batch.
        outputs: its outputs.
        scale_K: factor of its loss for each head, None for 1.
        weight_KB: weight of each row for each head, None for equal ones; the loss is the weighted mean.
    """

    target_B: torch.Tensor
    rows: slice = field(default_factory=lambda: slice(None))
    outputs: slice = field(default_factory=lambda: slice(None))
    scale_K: torch.Tensor | None = None
    weight_KB: torch.Tensor | None = None


def forward(heads: Heads, x_BD: torch.Tensor) -> torch.Tensor:
    """Logits without dropout. Shape: (K, C, B) float32. The dtype of x is that of the GEMMs."""
    z_KHB = _first_layer(heads, x_BD)
    if heads.w2 is None or heads.b2 is None:
        return z_KHB.float()
    return torch.bmm(heads.w2.to(x_BD.dtype), z_KHB.relu_()).float().add_(heads.b2[:, :, None])


def step(
    heads: Heads,
    x_BD: torch.Tensor,
    terms: Sequence[Term],
    lr_K: Sequence[float],
    decay_K: Sequence[float],
    *,
    kept_SHB: torch.Tensor | None = None,
    keep: float = 1.0,
) -> torch.Tensor:
    """One step of all heads, in place.

    Args:
        heads: the K heads; those with one dropout mask lie S apart (head k uses mask k % S).
        x_BD: standardised features, float32 or bfloat16: the dtype of the GEMMs.
        terms: the loss is their sum.
        lr_K: learning rate of each head.
        decay_K: decoupled weight decay of each head.
        kept_SHB: dropout masks of the hidden layer, 1 where a unit is kept, in the dtype of x; None for no dropout.
        keep: probability of being kept; kept units are divided by it.

    Returns:
        (K,) float32 loss of each head before the step.
    """
    gradients, loss_K = _gradients(heads, x_BD, terms, kept_SHB, keep)
    adamw_(heads, gradients, lr_K, decay_K)
    return loss_K


def cross_entropy(
    logits_KCB: torch.Tensor, target_B: torch.Tensor, weight_KB: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy of each head and its gradient.

    Args:
        logits_KCB: float32 logits.
        target_B: int64 class of each row.
        weight_KB: weights of the rows, None for equal ones; a head whose weights are all 0 has loss and gradient 0.

    Returns:
        loss (K,) and its gradient with respect to the logits, (K, C, B), float32.
    """
    heads, _, batch = logits_KCB.shape
    if weight_KB is None:
        share_KB = torch.full((heads, batch), 1.0 / max(batch, 1), device=logits_KCB.device)
    else:
        share_KB = weight_KB / weight_KB.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    if on_triton(logits_KCB):
        from substyle.kernels import probe_triton

        return probe_triton.cross_entropy(logits_KCB, target_B, share_KB)
    index = target_B.expand(heads, 1, batch)
    log_KCB = torch.log_softmax(logits_KCB, dim=1)
    loss_K = -(log_KCB.gather(1, index)[:, 0] * share_KB).sum(1)
    gradient = log_KCB.exp_()
    gradient.scatter_add_(1, index, torch.full_like(share_KB, -1.0)[:, None])
    return loss_K, gradient.mul_(share_KB[:, None])


def adamw_(heads: Heads, gradients: Sequence[torch.Tensor], lr_K: Sequence[float], decay_K: Sequence[float]) -> None:
    """AdamW in place: ``w -= lr * decay * w``, then Adam's step, with its own learning rate and decay for each head.

    Decoupled weight decay: Loshchilov & Hutter (2019). Biases decay as weights do, as in torch's AdamW.
    """
    if not heads.first:
        heads.first = [torch.zeros_like(p) for p in heads.parameters]
        heads.second = [torch.zeros_like(p) for p in heads.parameters]
    heads.steps += 1
    if on_triton(heads.w1):
        from substyle.kernels import probe_triton

        lr, decay = (torch.tensor(list(v), dtype=torch.float32, device=heads.w1.device) for v in (lr_K, decay_K))
        for p, g, m, v in zip(heads.parameters, gradients, heads.first, heads.second, strict=True):
            probe_triton.adamw_(p, g, m, v, lr, decay, heads.steps, (BETA1, BETA2, EPS))
        return
    start = 0
    for (lr_k, decay_k), run in groupby(zip(lr_K, decay_K, strict=True)):
        own = slice(start, start + len(list(run)))  # torch's fused update is one pass over memory, with one rate
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


def on_triton(tensor: torch.Tensor) -> bool:
    """Whether the Triton kernels are used: the tensor is on a CUDA device and Triton is installed."""
    return tensor.is_cuda and importlib.util.find_spec("triton") is not None


def _first_layer(heads: Heads, x_BD: torch.Tensor) -> torch.Tensor:
    count, hidden, width = heads.w1.shape
    z = heads.converted(heads.w1, x_BD.dtype).view(count * hidden, width) @ x_BD.T
    return z.view(count, hidden, -1).add_(heads.b1.to(x_BD.dtype)[:, :, None])


def _gradients(
    heads: Heads, x_BD: torch.Tensor, terms: Sequence[Term], kept_SHB: torch.Tensor | None, keep: float
) -> tuple[list[torch.Tensor], torch.Tensor]:
    count, hidden, width = heads.w1.shape
    h_KHB = _first_layer(heads, x_BD)
    if heads.w2 is None or heads.b2 is None:
        loss_K, dz_KHB = _loss(h_KHB.float(), terms)
        second: list[torch.Tensor] = []
        db1 = dz_KHB.sum(2)
        dz_KHB = dz_KHB.to(x_BD.dtype)
    else:
        h_KHB.relu_()
        w2 = heads.w2
        if kept_SHB is not None:
            h_KHB.view(-1, *kept_SHB.shape).mul_(kept_SHB)  # heads of one seed share its mask
            w2 = w2 / keep  # instead of dividing the larger hidden layer
        w2 = w2.to(x_BD.dtype)
        logits_KCB = torch.bmm(w2, h_KHB).float().add_(heads.b2[:, :, None])
        loss_K, g_KCB = _loss(logits_KCB, terms)
        g_low = g_KCB.to(x_BD.dtype)
        dw2 = torch.bmm(g_low, h_KHB.transpose(1, 2)).float()
        second = [dw2 / keep if kept_SHB is not None else dw2, g_KCB.sum(2)]
        # a hidden unit passes gradient exactly where it is positive: neither cut by relu nor dropped
        dz_KHB = torch.ops.aten.threshold_backward(torch.bmm(w2.transpose(1, 2), g_low), h_KHB, 0)
        db1 = dz_KHB.sum(2).float()
    dw1 = heads.converted(dz_KHB.view(count * hidden, -1) @ x_BD, torch.float32)
    return [dw1.view(count, hidden, width), db1, *second], loss_K


def _loss(logits_KCB: torch.Tensor, terms: Sequence[Term]) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = torch.zeros_like(logits_KCB)
    total_K = torch.zeros(logits_KCB.shape[0], device=logits_KCB.device)
    for term in terms:
        part = logits_KCB[:, term.outputs, term.rows].contiguous()
        loss_K, part_gradient = cross_entropy(part, term.target_B, term.weight_KB)
        if term.scale_K is not None:
            loss_K = loss_K * term.scale_K
            part_gradient.mul_(term.scale_K[:, None, None])
        total_K += loss_K
        gradient[:, term.outputs, term.rows] += part_gradient
    return total_K, gradient
