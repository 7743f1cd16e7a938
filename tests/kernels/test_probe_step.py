"""The fused step compared with K separate torch modules and optimisers, and with autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tests.kernels import probe_arrays
from tests.kernels.probe_arrays import BF16, FLOAT, assert_same_course, classes, drawn
from torch import nn

from substyle.kernels import probe_step
from substyle.kernels.probe_data import draw_masks
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import (
    adamw_,
    cross_entropy,
    forward,
    judge,
    linear_gradients,
    schedule,
    step,
    train_,
)

pytestmark = pytest.mark.usefixtures("one_thread")


TOLERANCE = {torch.float32: {"atol": 2e-5, "rtol": 1e-4}}


def make_heads(count: int, inputs: int, outputs: int, hidden: int, seed: int = 0, depth: int = 1) -> Heads:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    if hidden == 0:
        return Heads(draw(count, outputs, inputs), draw(count, outputs))
    between = [draw(count, *shape) for _ in range(depth - 1) for shape in ((hidden, hidden), (hidden,))]
    last = draw(count, outputs, hidden), draw(count, outputs)
    return Heads(draw(count, hidden, inputs), draw(count, hidden), *between, *last)


class Masked(nn.Module):
    """Multiply by a given dropout mask (B, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_BH: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.mask_BH is None else x * self.mask_BH


def as_module(heads: Heads, k: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for w, b in heads.layers:
        layer = nn.Linear(w.shape[2], w.shape[1])
        with torch.no_grad():
            layer.weight.copy_(w[k])
            layer.bias.copy_(b[k])
        layers += [layer, nn.ReLU(), Masked()]
    return nn.Sequential(*(layers[:-2]))


def assert_same(heads: Heads, modules: Sequence[nn.Sequential]) -> None:
    for k, module in enumerate(modules):
        for ours, theirs in zip(heads.parameters, module.parameters(), strict=True):
            torch.testing.assert_close(ours[k], theirs.detach(), **TOLERANCE[torch.float32])


@pytest.mark.parametrize(("hidden", "depth"), [(0, 1), (24, 1), (24, 2), (9, 4)], ids=["linear", "mlp", "2", "4"])
@pytest.mark.parametrize(("inputs", "outputs", "batch"), [(16, 5, 64), (13, 2, 7), (1, 3, 1)])
def test_equals_separate_trainings(hidden: int, depth: int, inputs: int, outputs: int, batch: int) -> None:
    """Same initial weights and batches; learning rate and decay per head, those of two adjacent heads equal."""
    rates, decays = [1e-2, 1e-2, 3e-3, 1e-1], [0.1, 0.1, 0.0, 1.0]
    heads = make_heads(4, inputs, outputs, hidden, depth=depth)
    modules = [as_module(heads, k) for k in range(4)]
    optimisers = [
        torch.optim.AdamW(m.parameters(), lr=lr, weight_decay=wd, foreach=False)
        for m, lr, wd in zip(modules, rates, decays, strict=True)
    ]
    generator = torch.Generator().manual_seed(7)
    for _ in range(12):
        x = torch.randn(batch, inputs, generator=generator)
        y = torch.randint(outputs, (batch,), generator=generator)
        losses = step(heads, x, [Term(y)], rates, decays)
        for k, (module, optimiser) in enumerate(zip(modules, optimisers, strict=True)):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(module(x), y)
            torch.testing.assert_close(losses[k], loss.detach(), **TOLERANCE[torch.float32])
            loss.backward()
            optimiser.step()
    assert_same(heads, modules)
    torch.testing.assert_close(forward(heads, x)[1].T, modules[1](x).detach(), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("depth", [1, 3])
def test_dropout_masks_are_shared_by_heads_of_a_seed(depth: int) -> None:
    """Head k uses masks k % S, one per hidden layer; kept units are divided by the keep probability."""
    seeds, settings, keep = 2, 2, 0.75
    rates, decays = [1e-2, 1e-2, 5e-3, 5e-3], [0.0] * 4
    heads = make_heads(seeds * settings, 10, 3, 32, depth=depth)
    modules = [as_module(heads, k) for k in range(len(heads))]
    optimisers = [
        torch.optim.AdamW(m.parameters(), lr=r, weight_decay=0.0) for m, r in zip(modules, rates, strict=True)
    ]
    generator = torch.Generator().manual_seed(3)
    for _ in range(8):
        x = torch.randn(20, 10, generator=generator)
        y = torch.randint(3, (20,), generator=generator)
        kept = (torch.rand(seeds, depth * 32, 20, generator=generator) < keep).float()
        step(heads, x, [Term(y)], rates, decays, kept_SHB=kept, keep=keep)
        for k, (module, optimiser) in enumerate(zip(modules, optimisers, strict=True)):
            for layer in range(depth):
                mask = module[3 * layer + 2]
                assert isinstance(mask, Masked)
                mask.mask_BH = kept[k % seeds, 32 * layer : 32 * (layer + 1)].T / keep
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimiser.step()
    assert_same(heads, modules)


def test_two_terms_are_a_multi_task_loss() -> None:
    """Terms with rows, outputs and scales of their own, compared with autograd on the same sum."""
    heads = make_heads(3, 9, 7, 16)
    modules = [as_module(heads, k) for k in range(3)]
    optimisers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1) for m in modules]
    scale_a, scale_b = torch.tensor([0.3, 1.0, 0.0]), torch.tensor([0.7, 0.0, 1.0])
    generator = torch.Generator().manual_seed(5)
    for _ in range(6):
        x = torch.randn(30, 9, generator=generator)
        a = torch.randint(4, (18,), generator=generator)
        b = torch.randint(3, (12,), generator=generator)
        terms = [Term(a, slice(0, 18), slice(0, 4), scale_a), Term(b, slice(18, 30), slice(4, 7), scale_b)]
        losses = step(heads, x, terms, [1e-2] * 3, [0.1] * 3)
        for k, (module, optimiser) in enumerate(zip(modules, optimisers, strict=True)):
            optimiser.zero_grad()
            out = module(x)
            first = nn.functional.cross_entropy(out[:18, :4], a)
            second = nn.functional.cross_entropy(out[18:, 4:], b)
            loss = scale_a[k] * first + scale_b[k] * second
            torch.testing.assert_close(losses[k], loss.detach(), **TOLERANCE[torch.float32])
            loss.backward()
            optimiser.step()
    assert_same(heads, modules)


@pytest.mark.parametrize("shape", [(1, 2, 1), (3, 5, 17), (2, 31, 130)])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_against_autograd(shape: tuple[int, int, int], weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(shape, generator=generator) * 5).requires_grad_()
    target = torch.randint(shape[1], (shape[2],), generator=generator)
    weight = torch.rand(shape[0], shape[2], generator=generator) + 0.1 if weighted else None
    loss, gradient = cross_entropy(logits.detach(), target, weight)
    each = torch.stack([nn.functional.cross_entropy(head.T, target, reduction="none") for head in logits])
    expected = each.mean(1) if weight is None else (each * weight).sum(1) / weight.sum(1)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected.detach(), **TOLERANCE[torch.float32])
    assert logits.grad is not None
    torch.testing.assert_close(gradient, logits.grad, atol=1e-6, rtol=1e-4)


def test_rows_of_weight_zero_do_not_count() -> None:
    """Rows of weight 0 have no effect; a head with only such rows does not change."""
    x, y = torch.randn(40, 6), torch.randint(4, (40,))
    weight = torch.zeros(3, 40)
    weight[0] = 1.0
    weight[1, :25] = 2.0
    heads = make_heads(3, 6, 4, 0)
    alone = make_heads(3, 6, 4, 0).select([1])
    still = heads.w1[2].clone()
    step(heads, x, [Term(y, weight_KB=weight)], [1e-2] * 3, [0.0] * 3)
    step(alone, x[:25], [Term(y[:25])], [1e-2], [0.0])
    torch.testing.assert_close(heads.w1[1], alone.w1[0], **TOLERANCE[torch.float32])
    assert torch.equal(heads.w1[2], still)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]])
    loss, gradient = cross_entropy(logits, torch.tensor([0, 0]))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert loss.item() == pytest.approx(1e4)


def test_adamw_against_torch_over_many_steps() -> None:
    heads = make_heads(3, 11, 4, 0)
    rates, decays = [1e-3, 1e-1, 1e-3], [0.0, 0.5, 0.2]
    references = [[p[k].clone().requires_grad_() for p in heads.parameters] for k in range(3)]
    optimisers = [torch.optim.AdamW(r, lr=a, weight_decay=d) for r, a, d in zip(references, rates, decays, strict=True)]
    for _ in range(50):
        gradients = [torch.randn_like(p) * 10 ** float(torch.randn(())) for p in heads.parameters]
        adamw_(heads, gradients, rates, decays)
        for k, optimiser in enumerate(optimisers):
            for p, g in zip(references[k], gradients, strict=True):
                p.grad = g[k].clone()
            optimiser.step()
    for k, reference in enumerate(references):
        for ours, theirs in zip(heads.parameters, reference, strict=True):
            torch.testing.assert_close(ours[k], theirs.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("count", [1, 3])
def test_linear_gradients_are_autograd_s(dtype: torch.dtype, count: int) -> None:
    """Row weights are normalised per head; if all are 0, so are the gradients. Heads are not changed."""
    heads = make_heads(count, 17, 5, 0)
    before = [p.clone() for p in heads.parameters]
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(70, 17, generator=generator).to(dtype), torch.randint(5, (70,), generator=generator)
    weight = torch.rand(count, 70, generator=generator) * (torch.rand(count, 70, generator=generator) < 0.6)
    weight[-1, :40] = 0.0
    if count > 1:
        weight[1] = 0.0
    bound = TOLERANCE.get(dtype, {"atol": 3e-3, "rtol": 2e-2})
    for term in (Term(y, weight_KB=weight), Term(y)):
        loss_K, dw_KCD, db_KC = linear_gradients(heads, x, term)
        assert [t.dtype for t in (loss_K, dw_KCD, db_KC)] == [torch.float32] * 3
        for k in range(count):
            w, b = heads.w1[k].double().requires_grad_(), heads.b1[k].double().requires_grad_()
            share = torch.full((70,), 1 / 70) if term.weight_KB is None else weight[k] / weight[k].sum().clamp(min=1e-9)
            each = nn.functional.cross_entropy(x.double() @ w.T + b, y, reduction="none")
            loss = (each * share).sum()
            loss.backward()
            assert w.grad is not None
            assert b.grad is not None
            torch.testing.assert_close(loss_K[k].double(), loss.detach(), **bound)
            torch.testing.assert_close(dw_KCD[k].double(), w.grad, **bound)
            torch.testing.assert_close(db_KC[k].double(), b.grad, **bound)
    assert all(torch.equal(p, q) for p, q in zip(before, heads.parameters, strict=True))
    assert heads.steps == 0


def whole_heads(count: int, inputs: int, outputs: int, hidden: int) -> Heads:
    """Heads with small integer weights."""
    sizes = [(outputs, inputs)] if hidden == 0 else [(hidden, inputs), (outputs, hidden)]
    shapes = [shape for size in sizes for shape in ((count, *size), (count, size[0]))]
    return Heads(*((classes(i, int(np.prod(s)), 3) - 1.0).view(s) for i, s in enumerate(shapes)))


@pytest.mark.parametrize("output", [0, 3])
def test_a_row_without_an_answer_is_not_right(output: int) -> None:
    heads = whole_heads(2, 4, 5, 0)
    heads.b1[0, output] = float("nan")
    right, loss = judge(heads, torch.ones(40, 4), torch.full((40,), output), torch.ones(40), slice(0, 5))
    assert right[0] == 0.0
    assert loss.isnan().tolist() == [True, False]


def trained(
    kind: str, dtype: torch.dtype, hidden: int, dropped: bool, depth: int, on_gpu: Callable[..., torch.Tensor] | None
) -> tuple[list[torch.Tensor], Heads]:
    """Losses of three steps, and the heads after them. Rates are tensors, as those that a CUDA graph reads."""
    heads, losses = probe_arrays.make_heads(hidden, depth=depth), []
    heads.start()
    peak_K, decay_K = (torch.tensor(v, dtype=torch.float64) for v in ([1e-2, 3e-3, 1e-2, 1e-3], [0.1, 0.0, 0.1, 1.0]))
    for i, now_3 in enumerate(torch.from_numpy(schedule((0.5, 1.0, 0.25), 0))):
        x, y = probe_arrays.draw(i, dtype)
        kept = torch.empty(1, 2, depth * hidden, len(x), dtype=torch.bool)
        draw_masks(kept, [5, 6], i, 64)
        mask, keep = (kept[0], 0.75) if dropped else (None, 1.0)
        terms, rates = probe_arrays.some_terms(kind, y), (peak_K, decay_K, now_3)
        if on_gpu is None:
            losses.append(step(heads, x, terms, peak_K, decay_K, now_3=now_3, kept_SHB=mask, keep=keep))
        else:
            losses.append(on_gpu(x, terms, mask, keep, *rates, heads.parameters, heads.first, heads.second))
    return losses, heads


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", ["one", "weights", "two", "gaps"])
@pytest.mark.parametrize(("hidden", "dropped", "depth"), [(0, False, 1), (24, False, 1), (24, True, 1), (24, True, 2)])
def test_a_step_on_a_gpu_is_that_on_a_cpu(
    dtype: torch.dtype, kind: str, hidden: int, dropped: bool, depth: int
) -> None:
    expected, theirs = trained(kind, dtype, hidden, dropped, depth, None)
    losses, ours = trained(kind, dtype, hidden, dropped, depth, train_)
    for a, b in zip(losses, expected, strict=True):
        torch.testing.assert_close(a, b, **probe_arrays.TOLERANCE[dtype])
    assert_same_course(ours, theirs, probe_arrays.make_heads(hidden, depth=depth), dtype)
    if dtype == FLOAT:  # steps of Adam hardly depend on the scale of a gradient
        for a, b in zip(ours.first, theirs.first, strict=True):
            torch.testing.assert_close(a, b, **probe_arrays.TOLERANCE[dtype])


def test_a_gpu_takes_the_step_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And AdamW alone for heads of another kind. On the meta device, nothing is compiled."""
    seen = []
    for name in ("train_", "adamw_reference_"):
        monkeypatch.setattr(probe_step, name, Mock(wraps=getattr(probe_step, name), __name__=name))
        seen.append(getattr(probe_step, name))
    x, y = (v.to("meta") for v in probe_arrays.draw(0))
    heads = Heads(*(p.to("meta") for p in probe_arrays.make_heads(8).parameters))
    assert step(heads, x, [Term(y)], [1e-2] * 4, [0.1] * 4).shape == (4,)
    assert [spy.call_count for spy in seen] == [1, 1]
    adamw_(heads, heads.parameters, [1e-2] * 4, [0.1] * 4)
    assert [spy.call_count for spy in seen] == [1, 2]
    assert heads.steps == 2


def test_a_step_is_one_graph_for_all_sizes() -> None:
    """Numbers of heads, rows, units and classes, and rows of each loss."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, example: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(train_.__wrapped__, dynamic=True, fullgraph=True, backend=backend)  # type: ignore[attr-defined]
    for count, inputs, outputs, hidden, batch in ((4, 12, 7, 16, 40), (6, 10, 8, 24, 50), (8, 14, 6, 20, 30)):
        half, results = batch // 2, []
        x, kept = drawn(0, batch, inputs), classes(1, 2 * hidden * batch, 2).view(2, hidden, batch) > 0
        y, scale = classes(2, batch, 3), torch.linspace(0.2, 1.0, count)
        terms = [Term(y[:half], slice(0, half), slice(0, 3), scale), Term(y[half:], slice(half, batch), slice(3, 6))]
        rates = [torch.full((n,), 0.01, dtype=torch.float64) for n in (count, count, 3)]
        for function in (train_, compiled):
            heads = make_heads(count, inputs, outputs, hidden)
            heads.start()
            state = heads.parameters, heads.first, heads.second
            results.append((function(x, terms, kept, 0.5, *rates, *state), *heads.parameters))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
    assert len(graphs) == 1


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_no_subnormal_numbers(scale: float, dtype: torch.dtype) -> None:
    """With which products take many times as long; they change no sum."""
    generator = torch.Generator().manual_seed(0)
    logits_KCB = scale * torch.randn(2, 31, 500, generator=generator, dtype=dtype)
    target_B = torch.randint(31, (500,), generator=generator)
    leaf = logits_KCB.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf.transpose(0, 1)[None].flatten(2), target_B.repeat(2)[None])
    expected.backward()  # type: ignore[no-untyped-call]
    loss_K, gradient = cross_entropy(logits_KCB, target_B)
    assert float(loss_K.mean()) == pytest.approx(float(expected.detach()))
    assert leaf.grad is not None
    torch.testing.assert_close(gradient, 2 * leaf.grad, rtol=1e-5, atol=1e-20)
    assert not ((gradient != 0) & (gradient.abs() < torch.finfo(torch.float32).tiny)).any()
