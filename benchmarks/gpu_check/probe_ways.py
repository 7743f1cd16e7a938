"""Probe heads trained in other ways: in float64, one at a time, as a ModuleDict; and the products of a step alone.

All take the batch and the settings of `Problem` and are plain torch, written for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from benchmarks.gpu_check.rows import Row, correctness
from substyle.kernels import probe_data
from substyle.kernels.probe_heads import BETA1, BETA2, EPS, Heads, Term
from substyle.kernels.probe_step import step

SEED, THRESHOLD = 3, 51  # of dropout: a unit in five falls out
KEEP = 1.0 - THRESHOLD / probe_data.LEVELS


@dataclass(frozen=True)
class Problem:
    """A batch and K heads, on the CPU in float32.

    Attributes:
        x_BD: standardised features; target_B: classes of the rows.
        parameters: w1 (K, H, D), b1 (K, H), and of heads with a hidden layer w2 (K, C, H), b2 (K, C).
        lr_K, decay_K: learning rate and weight decay of each head.
        kept_SHB: the dropout mask, None for linear heads.
    """

    x_BD: torch.Tensor
    target_B: torch.Tensor
    parameters: list[torch.Tensor]
    lr_K: list[float]
    decay_K: list[float]
    kept_SHB: torch.Tensor | None

    def heads(self, device: torch.device) -> Heads:
        """Fresh heads on a device."""
        return Heads(*(p.to(device, copy=True) for p in self.parameters))

    def one_step(self, heads: Heads, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        """One step of the heads, by the engine's kernel; gives each head's loss."""
        device = heads.w1.device
        x, terms = self.x_BD.to(device, dtype), [Term(self.target_B.to(device))]
        kept = None if self.kept_SHB is None else self.kept_SHB.to(device)
        keep = 1.0 if kept is None else KEEP
        return lambda: step(heads, x, terms, self.lr_K, self.decay_K, kept_SHB=kept, keep=keep)


def problem(rows: int, width: int, classes: int, heads: int, hidden: int) -> Problem:
    """Random features whose classes a linear head can learn in part; a grid of settings over the heads."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator)
    target = (x @ torch.randn(width, classes, generator=generator) / width**0.5).argmax(1)
    first = hidden or classes
    shapes = [(heads, first, width), (heads, first)] + ([(heads, classes, hidden), (heads, classes)] if hidden else [])
    fans = [width, width, hidden, hidden]
    parameters = [
        (2 * torch.rand(shape, generator=generator) - 1) / fan**0.5 for shape, fan in zip(shapes, fans, strict=False)
    ]
    kept = None
    if hidden:
        kept = torch.empty(1, hidden, rows, dtype=torch.bool)
        probe_data.draw_masks(kept[None], [SEED], 0, THRESHOLD)
    rates = [10.0 ** -(2 + 2 * k / max(heads - 1, 1)) for k in range(heads)]
    return Problem(x, target, parameters, rates, [0.01 * (k % 4) for k in range(heads)], kept)


def in_float64(p: Problem, steps: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses (steps, K) and parameters after so many steps, head for head, by autograd and torch's AdamW."""
    losses, ended = torch.zeros(steps, len(p.lr_K), dtype=torch.float64), [q.double() for q in p.parameters]
    x = p.x_BD.double()
    for k, (lr, decay) in enumerate(zip(p.lr_K, p.decay_K, strict=True)):
        own = [q[k].double().requires_grad_() for q in p.parameters]
        optimiser = torch.optim.AdamW(own, lr=lr, weight_decay=decay, betas=(BETA1, BETA2), eps=EPS)
        for i in range(steps):
            h = x @ own[0].T + own[1]
            if p.kept_SHB is not None:
                h = (h.relu() * p.kept_SHB[0].T / KEEP) @ own[2].T + own[3]
            loss = functional.cross_entropy(h, p.target_B)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses[i, k] = loss.detach()
        for whole, mine in zip(ended, own, strict=True):
            whole[k] = mine.detach()
    return losses, ended


def against_float64(
    title: str,
    p: Problem,
    steps: int,
    allowed: Mapping[torch.dtype, tuple[float, float]],
    train: Callable[[torch.dtype], tuple[Heads, torch.Tensor]],
) -> Iterator[Row]:
    """Losses of the last steps and weights after all, of heads that ``train`` takes the steps with in a type."""
    every, expected = in_float64(p, steps)
    changed = torch.cat([(e - s.double()).flatten() for e, s in zip(expected, p.parameters, strict=True)]).norm()
    for dtype, (of_loss, of_change) in allowed.items():
        heads, losses = train(dtype)
        known = every[-len(losses) :]
        off = float(((losses.cpu().double() - known) / known).abs().max())
        far = [(h.cpu().double() - e).flatten() for h, e in zip(heads.parameters, expected, strict=True)]
        apart = float(torch.cat(far).norm() / changed)
        text = (
            f"losses off by {off:.1e} (allowed {of_loss:g}), change of weights by {apart:.1e} (allowed {of_change:g})"
        )
        name = f"{title}, {steps} steps, products in {str(dtype).removeprefix('torch.')}"
        yield correctness("probes", name, off <= of_loss and apart <= of_change, text)


def _network(p: Problem, k: int) -> nn.Module:
    outputs, width = p.parameters[0].shape[1:]
    first = nn.Linear(width, outputs)
    first.weight.data, first.bias.data = p.parameters[0][k].clone(), p.parameters[1][k].clone()
    if p.kept_SHB is None:
        return first
    classes = p.parameters[2].shape[1]
    second = nn.Linear(outputs, classes)
    second.weight.data, second.bias.data = p.parameters[2][k].clone(), p.parameters[3][k].clone()
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(1.0 - KEEP), second)


def together(p: Problem, heads: Sequence[int], device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """One step of some heads as a ModuleDict with summed losses, as DINOv2's linear evaluation; one head is a loop's.

    bfloat16 is autocast's; the optimiser is torch's fused AdamW, with a parameter group for each head.
    """
    networks = nn.ModuleDict({f"{k}": _network(p, k) for k in heads}).to(device)
    groups = [
        {"params": list(networks[f"{k}"].parameters()), "lr": p.lr_K[k], "weight_decay": p.decay_K[k]} for k in heads
    ]
    optimiser = torch.optim.AdamW(groups, fused=True)
    x, target = p.x_BD.to(device), p.target_B.to(device)
    low = dtype == torch.bfloat16

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16) if low else nullcontext():
            losses = [functional.cross_entropy(network(x), target) for network in networks.values()]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return work


def products(p: Problem, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """The products of a step in the shapes in which the kernel runs them, into memory that is there."""
    count, first, width = p.parameters[0].shape
    rows = len(p.x_BD)
    x = p.x_BD.to(device, dtype)
    w1 = p.parameters[0].to(device, dtype).view(count * first, width)
    z, dw1 = (torch.empty(shape, device=device, dtype=dtype) for shape in ((count * first, rows), w1.shape))
    if p.kept_SHB is None:

        def linear() -> None:
            torch.mm(w1, x.T, out=z)
            torch.mm(z, x, out=dw1)

        return linear
    w2 = p.parameters[2].to(device, dtype)
    y, dw2 = torch.empty(count, w2.shape[1], rows, device=device, dtype=dtype), torch.empty_like(w2)
    dh = torch.empty(count, first, rows, device=device, dtype=dtype)

    def hidden() -> None:
        torch.mm(w1, x.T, out=z)
        h = z.view(count, first, rows)
        torch.bmm(w2, h, out=y)
        torch.bmm(y, h.transpose(1, 2), out=dw2)
        torch.bmm(w2.transpose(1, 2), y, out=dh)
        torch.mm(dh.view(count * first, rows), x, out=dw1)

    return hidden
