"""The fused step compared with K separate torch modules and optimisers, and with autograd; the same in Triton."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tests.conftest import slow_after
from tests.kernels.conftest import drawn
from torch import nn

from substyle.kernels import probe_step
from substyle.kernels.probe_data import draw_masks
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import adamw_, cross_entropy, forward, judge, linear_gradients, schedule, step, train_

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT, BF16 = torch.float32, torch.bfloat16
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
Batch = tuple[torch.Tensor, list[Term], torch.Tensor | None]  # rows, terms, kept units


def classes(seed: int, count: int, most: int) -> torch.Tensor:
    return torch.randint(most, (count,), generator=torch.Generator().manual_seed(seed))


def make_heads(count: int, inputs: int, outputs: int, hidden: int, depth: int = 1) -> Heads:
    between = [(hidden, hidden)] * (depth - 1)
    sizes = [(outputs, inputs)] if hidden == 0 else [(hidden, inputs), *between, (outputs, hidden)]
    shapes = [shape for size in sizes for shape in ((count, *size), (count, size[0]))]
    return Heads(*(drawn(i, *shape, scale=0.2) for i, shape in enumerate(shapes)))


# --- against separate modules -----------------------------------------------------------------------------------------


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


def assert_trains_as_modules(
    heads: Heads, rates: list[float], decays: list[float], batches: Iterable[Batch], keep: float = 1.0
) -> None:
    """Losses and weights are those of a module and an AdamW for each head.

    Head k uses masks k % S, one per hidden layer; kept units are divided by the keep probability.
    """
    modules = [as_module(heads, k) for k in range(len(heads))]
    optimisers = [
        torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay, foreach=False)
        for module, rate, decay in zip(modules, rates, decays, strict=True)
    ]
    for x, terms, kept in batches:
        losses = step(heads, x, terms, rates, decays, kept_SHB=kept, keep=keep)
        for k, (module, optimiser) in enumerate(zip(modules, optimisers, strict=True)):
            if kept is not None:
                layers = [layer for layer in module if isinstance(layer, Masked)]
                for layer, mask_HB in zip(layers, kept[k % len(kept)].chunk(len(layers)), strict=True):
                    layer.mask_BH = mask_HB.T / keep
            optimiser.zero_grad()
            out, loss = module(x), torch.zeros(())
            for term in terms:
                part = nn.functional.cross_entropy(out[term.rows, term.outputs], term.target_B)
                loss = loss + part * (1.0 if term.scale_K is None else term.scale_K[k])
            torch.testing.assert_close(losses[k], loss.detach(), **CLOSE)
            loss.backward()
            optimiser.step()
    for k, module in enumerate(modules):
        for ours, theirs in zip(heads.parameters, module.parameters(), strict=True):
            torch.testing.assert_close(ours[k], theirs.detach(), **CLOSE)
    if kept is None:
        torch.testing.assert_close(forward(heads, x)[1].T, modules[1](x).detach(), **CLOSE)


@pytest.mark.parametrize(("hidden", "depth"), [(0, 1), (24, 1), (9, 4)], ids=["linear", "mlp", "4"])
@pytest.mark.parametrize(("inputs", "outputs", "batch"), [(16, 5, 64), (1, 3, 1)])
def test_equals_separate_trainings(hidden: int, depth: int, inputs: int, outputs: int, batch: int) -> None:
    """Same initial weights and batches; learning rate and decay per head, those of two adjacent heads equal."""
    batches = [(drawn(i, batch, inputs), [Term(classes(i, batch, outputs))], None) for i in range(12)]
    heads = make_heads(4, inputs, outputs, hidden, depth)
    assert_trains_as_modules(heads, [1e-2, 1e-2, 3e-3, 1e-1], [0.1, 0.1, 0.0, 1.0], batches)


@pytest.mark.parametrize("depth", [1, 3])
def test_dropout_masks_are_shared_by_heads_of_a_seed(depth: int) -> None:
    batches = [
        (drawn(i, 20, 10), [Term(classes(i, 20, 3))], (drawn(100 + i, 2, depth * 32, 20) < 0.67).float())
        for i in range(8)
    ]
    heads = make_heads(4, 10, 3, 32, depth)
    assert_trains_as_modules(heads, [1e-2, 1e-2, 5e-3, 5e-3], [0.0] * 4, batches, keep=0.75)


def test_two_terms_are_a_multi_task_loss() -> None:
    """Terms with rows, outputs and scales of their own."""
    first, second = torch.tensor([0.3, 1.0, 0.0]), torch.tensor([0.7, 0.0, 1.0])
    batches = [
        (
            drawn(i, 30, 9),
            [
                Term(classes(i, 18, 4), slice(0, 18), slice(0, 4), first),
                Term(classes(i, 12, 3), slice(18, 30), slice(4, 7), second),
            ],
            None,
        )
        for i in range(6)
    ]
    assert_trains_as_modules(make_heads(3, 9, 7, 16), [1e-2] * 3, [0.1] * 3, batches)


# --- parts of a step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_no_subnormal_numbers(scale: float, dtype: torch.dtype) -> None:
    """With which products take many times as long; they change no sum."""
    logits_KCB, target_B = drawn(0, 2, 31, 500, dtype=dtype, scale=scale), classes(0, 500, 31)
    leaf = logits_KCB.clone().requires_grad_()
    expected = nn.functional.cross_entropy(leaf.transpose(0, 1)[None].flatten(2), target_B.repeat(2)[None])
    expected.backward()  # type: ignore[no-untyped-call]
    loss_K, gradient = cross_entropy(logits_KCB, target_B)
    assert float(loss_K.mean()) == pytest.approx(float(expected.detach()))
    assert leaf.grad is not None
    torch.testing.assert_close(gradient, 2 * leaf.grad, rtol=1e-5, atol=1e-20)
    assert not ((gradient != 0) & (gradient.abs() < torch.finfo(torch.float32).tiny)).any()


def test_extreme_logits_stay_finite() -> None:
    loss, gradient = cross_entropy(torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]]), torch.tensor([0, 0]))
    assert torch.isfinite(gradient).all()
    assert loss.item() == pytest.approx(1e4)


def test_rows_of_weight_zero_do_not_count() -> None:
    """Rows of weight 0 have no effect; a head with only such rows does not change."""
    x, y = drawn(0, 40, 6), classes(0, 40, 4)
    weight = torch.zeros(3, 40)
    weight[0] = 1.0
    weight[1, :25] = 2.0
    heads = make_heads(3, 6, 4, 0)
    alone = make_heads(3, 6, 4, 0).select([1])
    still = heads.w1[2].clone()
    step(heads, x, [Term(y, weight_KB=weight)], [1e-2] * 3, [0.0] * 3)
    step(alone, x[:25], [Term(y[:25])], [1e-2], [0.0])
    torch.testing.assert_close(heads.w1[1], alone.w1[0], **CLOSE)
    assert torch.equal(heads.w1[2], still)


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("count", [1, 3])
def test_linear_gradients_are_autograd_s(dtype: torch.dtype, count: int) -> None:
    """Row weights are normalised per head; if all are 0, so are the gradients. Heads are not changed."""
    heads = make_heads(count, 17, 5, 0)
    before = [p.clone() for p in heads.parameters]
    x, y = drawn(2, 70, 17, dtype=dtype), classes(2, 70, 5)
    weight = drawn(3, count, 70).clamp_min(0.0)
    weight[-1, :40] = 0.0
    if count > 1:
        weight[1] = 0.0
    bound = CLOSE if dtype == FLOAT else {"atol": 3e-3, "rtol": 2e-2}
    for term in (Term(y, weight_KB=weight), Term(y)):
        found = linear_gradients(heads, x, term)
        assert [each.dtype for each in found] == [torch.float32] * 3
        for k in range(count):
            w, b = heads.w1[k].double().requires_grad_(), heads.b1[k].double().requires_grad_()
            share = torch.full((70,), 1 / 70) if term.weight_KB is None else weight[k] / weight[k].sum().clamp(min=1e-9)
            loss = (nn.functional.cross_entropy(x.double() @ w.T + b, y, reduction="none") * share).sum()
            loss.backward()
            for ours, theirs in zip(found, (loss.detach(), w.grad, b.grad), strict=True):
                torch.testing.assert_close(ours[k].double(), theirs, **bound)
    assert all(torch.equal(p, q) for p, q in zip(before, heads.parameters, strict=True))
    assert heads.steps == 0


@pytest.mark.parametrize("output", [0, 3])
def test_a_row_without_an_answer_is_not_right(output: int) -> None:
    heads = make_heads(2, 4, 5, 0)
    heads.b1[0, output] = float("nan")
    right, loss = judge(heads, torch.ones(40, 4), torch.full((40,), output), torch.ones(40), slice(0, 5))
    assert right[0] == 0.0
    assert loss.isnan().tolist() == [True, False]


# --- a step on a GPU --------------------------------------------------------------------------------------------------


def some_terms(kind: str, y: torch.Tensor) -> list[Term]:
    scale = torch.tensor([0.3, 1.0, 0.0, 2.0])
    return {
        "weights": [Term(y, weight_KB=drawn(9, 4, len(y)).clamp_min(0.0))],
        "two": [Term(y[:20], slice(0, 20), slice(0, 3), scale), Term(y[20:], slice(20, None), slice(3, 6), 1 - scale)],
        "gaps": [Term(y[5:9], slice(5, 9)), Term(y[30:], slice(30, None)), Term(y[:0], slice(30, 30))],
    }[kind]


def trained(
    kind: str, dtype: torch.dtype, heads: Heads, dropped: bool, on_gpu: Callable[..., torch.Tensor] | None
) -> list[torch.Tensor]:
    """Train heads for three steps; returns the losses. Rates are tensors, as those that a CUDA graph reads."""
    losses = []
    heads.start()
    peak_K, decay_K = (torch.tensor(v, dtype=torch.float64) for v in ([1e-2, 3e-3, 1e-2, 1e-3], [0.1, 0.0, 0.1, 1.0]))
    for i, now_3 in enumerate(torch.from_numpy(schedule((0.5, 1.0, 0.25), 0))):
        x, y = drawn(i, 45, 12, dtype=dtype), classes(i, 45, 3)
        units = sum(b.shape[1] for _, b in heads.layers[:-1])
        kept = torch.empty(1, 2, units, len(x), dtype=torch.bool)
        draw_masks(kept, [5, 6], i, 64)
        mask, keep = (kept[0], 0.75) if dropped else (None, 1.0)
        terms, rates = some_terms(kind, y), (peak_K, decay_K, now_3)
        if on_gpu is None:
            losses.append(step(heads, x, terms, peak_K, decay_K, now_3=now_3, kept_SHB=mask, keep=keep))
        else:
            losses.append(on_gpu(x, terms, mask, keep, *rates, heads.parameters, heads.first, heads.second))
    return losses


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", ["weights", "two", "gaps"])
@pytest.mark.parametrize(("hidden", "dropped", "depth"), [(0, False, 1), (24, False, 1), (24, True, 2)])
def test_a_step_on_a_gpu_is_that_on_a_cpu(
    dtype: torch.dtype, kind: str, hidden: int, dropped: bool, depth: int
) -> None:
    start, theirs, ours = (make_heads(4, 12, 7, hidden, depth) for _ in range(3))
    expected, losses = trained(kind, dtype, theirs, dropped, None), trained(kind, dtype, ours, dropped, train_)
    close = {"atol": 2e-6, "rtol": 1e-4} if dtype == FLOAT else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(losses, expected, **close)
    if dtype == FLOAT:  # steps of Adam hardly depend on the scale of a gradient
        torch.testing.assert_close(ours.parameters, theirs.parameters, **close)
        torch.testing.assert_close(ours.first, theirs.first, **close)
        return
    # rounding turns the sign of tiny gradients and so of Adam's steps: the distance is a small part of the way
    for a, b, begin in zip(ours.parameters, theirs.parameters, start.parameters, strict=True):
        assert (a - b).norm() < 0.1 * (b - begin).norm()


def test_a_gpu_takes_the_step_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And AdamW alone for heads of another kind. On the meta device, nothing is compiled."""
    seen = []
    for name in ("train_", "adamw_reference_"):
        monkeypatch.setattr(probe_step, name, Mock(wraps=getattr(probe_step, name), __name__=name))
        seen.append(getattr(probe_step, name))
    x, y = drawn(0, 45, 12).to("meta"), classes(0, 45, 3).to("meta")
    heads = Heads(*(p.to("meta") for p in make_heads(4, 12, 7, 8).parameters))
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


# --- Triton, interpreted ----------------------------------------------------------------------------------------------


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return importlib.reload(importlib.import_module("substyle.kernels.probe_step_triton"))


@pytest.mark.parametrize("shape", slow_after(2, zip([(2, 3, 5), (1, 31, 130), (1, 1, 4), (1, 1003, 7)])))
def test_cross_entropy_in_triton(interpreted: ModuleType, shape: tuple[int, int, int]) -> None:
    logits, target = drawn(0, *shape, scale=10), classes(0, shape[2], shape[1])
    share = drawn(1, shape[0], shape[2]).abs()
    share[:, 0] = 0.0
    share /= share.sum(1, keepdim=True).clamp_min(1e-9)
    loss, gradient = interpreted.cross_entropy(logits, target, share)
    expected_loss, expected_gradient = probe_step.cross_entropy_reference(logits, target, share)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_take_it_in_float32(
    interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Both branches of the dispatch give the same gradients, and the expected branch runs."""
    spy = Mock(wraps=interpreted.cross_entropy)
    monkeypatch.setattr(interpreted, "cross_entropy", spy)
    x, y = drawn(0, 6, 4, dtype=dtype), classes(0, 6, 3)
    heads = Heads(drawn(1, 2, 3, 4, dtype=dtype), torch.zeros(2, 3, dtype=dtype))
    expected = linear_gradients(heads, x, Term(y))
    monkeypatch.setattr(probe_step, "on_triton", lambda tensor: True)
    found = linear_gradients(heads, x, Term(y))
    assert spy.called == (dtype == torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        if dtype == torch.float64:
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
