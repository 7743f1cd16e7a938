"""Triton kernels of the probe step, interpreted on CPU tensors, compared with torch."""

from __future__ import annotations

import importlib
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch
from tests.conftest import slow_after

from substyle.kernels import probe_step
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
    x, y = torch.randn(6, 4, dtype=dtype), torch.randint(3, (6,))
    heads = Heads(torch.randn(2, 3, 4, dtype=dtype), torch.zeros(2, 3, dtype=dtype))
    expected = probe_step.linear_gradients(heads, x, Term(y))
    monkeypatch.setattr(probe_step, "on_triton", lambda tensor: True)
    found = probe_step.linear_gradients(heads, x, Term(y))
    assert spy.called == (dtype == torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        if dtype == torch.float64:
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
