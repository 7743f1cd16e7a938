"""Triton kernels of the probe step, interpreted on CPU tensors, compared with torch."""

from __future__ import annotations

import importlib
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch
from tests.conftest import slow_after

from substyle.kernels import probe_step, probe_step_gpu
from substyle.kernels.probe_heads import Heads, Term

pytest.importorskip("triton")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return importlib.reload(importlib.import_module("substyle.kernels.probe_step_triton"))


@pytest.mark.parametrize(
    "shape", slow_after(2, zip([(2, 3, 5), (1, 31, 130), (3, 2, 128), (2, 8, 300), (1, 1, 4), (1, 1003, 7)]))
)
def test_cross_entropy(interpreted: ModuleType, shape: tuple[int, int, int]) -> None:
    logits = torch.randn(shape) * 10
    target = torch.randint(shape[1], (shape[2],))
    share = torch.rand(shape[0], shape[2])
    share[:, 0] = 0.0
    share /= share.sum(1, keepdim=True).clamp_min(1e-9)
    loss, gradient = interpreted.cross_entropy(logits, target, share)
    expected_loss, expected_gradient = probe_step.cross_entropy(logits, target, share)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 1030), (1, 1024)])
def test_adamw(interpreted: ModuleType, shape: tuple[int, ...]) -> None:
    count = shape[0]
    rates, decays = [10.0 ** -(k + 1) for k in range(count)], [0.1 * k for k in range(count)]
    ours, first, second = torch.randn(shape), torch.zeros(shape), torch.zeros(shape)
    heads = Heads(ours.clone().view(count, 1, -1), torch.zeros(count, 1))
    for done in range(1, 4):
        gradient = torch.randn(shape)
        now = torch.from_numpy(probe_step_gpu.schedule([1.0], done - 1)[0])
        interpreted.adamw_(ours, gradient, first, second, torch.tensor(rates), torch.tensor(decays), now)
        probe_step.adamw_(heads, [gradient.view(count, 1, -1), torch.zeros(count, 1)], rates, decays)
    torch.testing.assert_close(ours.view_as(heads.w1), heads.w1, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first.view_as(heads.w1), heads.first[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(second.view_as(heads.w1), heads.second[0], atol=1e-6, rtol=1e-5)


def test_the_step_takes_them_where_triton_is_used(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both branches of the dispatch give the same weights, and the expected branch runs."""
    spies = {name: Mock(wraps=getattr(interpreted, name)) for name in ("cross_entropy", "adamw_")}
    for name, spy in spies.items():
        monkeypatch.setattr(interpreted, name, spy)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    trained = []
    for used in (False, True):
        monkeypatch.setattr(probe_step, "on_triton", lambda tensor, used=used: used)
        generator = torch.Generator().manual_seed(0)
        heads = Heads(torch.randn(2, 3, 4, generator=generator), torch.zeros(2, 3))
        for _ in range(2):
            probe_step.step(heads, x, [Term(y)], [1e-2, 1e-1], [0.1, 0.0])
        trained.append(heads)
        assert [spy.called for spy in spies.values()] == [used, used]
    torch.testing.assert_close(trained[0].w1, trained[1].w1, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trained[0].b1, trained[1].b1, atol=1e-5, rtol=1e-4)


def test_float64_takes_torch_where_triton_is_used(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Mock(wraps=interpreted.cross_entropy)
    monkeypatch.setattr(interpreted, "cross_entropy", spy)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    heads = Heads(torch.randn(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
    expected = probe_step.linear_gradients(heads, x, Term(y))
    monkeypatch.setattr(probe_step, "on_triton", lambda tensor: True)
    found = probe_step.linear_gradients(heads, x, Term(y))
    assert not spy.called
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, theirs)
