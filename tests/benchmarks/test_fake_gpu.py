"""Gradients without autograd's engine are those of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.fake_gpu import run_backward


class Halved(torch.autograd.Function):
    """A function that is written in Python."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return gradients[0] / 2


def results(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """Results of several sizes and types; values that are used twice, in part, broadcast and cast."""
    product = a @ b
    h = Halved.apply(product).relu()
    p, q, _ = torch.cat([h, h * 2, h], 1).split(3, 1)
    variance, mean = torch.var_mean(p + a[:, :3], 0)
    return [(p * q.double()).softmax(1), variance + mean + product.sum(), product]


@pytest.fixture
def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((4, 5), (5, 3)))
    return a, b


def in_both_ways(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    expected = work()
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", run_backward)
    return work(), expected


def test_gradients_of_leaves_and_of_what_is_computed(
    leaves: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> tuple[torch.Tensor | None, ...]:
        first, second, product = results(*leaves)
        unused = torch.ones(2, requires_grad=True)
        weights = [torch.arange(t.numel()).view(t.shape).to(t.dtype) for t in (first, second)]
        return torch.autograd.grad([first, second], [*leaves, product, unused], weights, allow_unused=True)

    got, expected = in_both_ways(work, monkeypatch)
    assert got[-1] is expected[-1] is None
    torch.testing.assert_close(got[:-1], expected[:-1], rtol=0, atol=0)
    assert not any(each.requires_grad for each in got[:-1])


def test_backward_adds_to_gradients(leaves: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> list[torch.Tensor | None]:
        for leaf in leaves:
            leaf.grad = torch.ones_like(leaf)
        results(*leaves)[1].sum().backward()
        return [leaf.grad for leaf in leaves]

    got, expected = in_both_ways(work, monkeypatch)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
