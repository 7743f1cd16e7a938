"""``probe_step_gpu`` compared with ``probe_step``, in torch and in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tests.conftest import slow_after
from tests.kernels.conftest import Place
from tests.kernels.probe_arrays import (
    BATCH,
    BF16,
    FLOAT,
    TOLERANCE,
    assert_same_course,
    draw,
    make_heads,
    some_terms,
)

from substyle.kernels import probe_data, probe_step, probe_step_gpu
from substyle.kernels.probe_heads import BETA1, BETA2, Heads
from substyle.kernels.probe_step_gpu import Dropped, Loss, Rates, schedule, shares

pytestmark = pytest.mark.usefixtures("one_thread")
LR, DECAY, SEEDS, THRESHOLD = [1e-2, 3e-3, 1e-2, 1e-3], [0.1, 0.0, 0.1, 1.0], [5, 6], 64
SHARES = (0.5, 1.0, 0.25)


def by_host(heads: Heads, kind: str, dtype: torch.dtype, dropped: bool) -> list[torch.Tensor]:
    losses = []
    for i, share in enumerate(SHARES):
        x, y = draw(i, dtype)
        kept = None
        if dropped:
            shape = heads.w1.shape[1], BATCH
            layers = range(len(heads.layers) - 1)
            seeds = [[seed + layer for seed in SEEDS] for layer in layers]
            kept = torch.cat([probe_data.masks(own, i, THRESHOLD, shape) for own in seeds], 1)
        rates = [share * lr for lr in LR]
        losses.append(probe_step.step(heads, x, some_terms(kind, y), rates, DECAY, kept_SHB=kept, keep=0.75))
    return losses


def by_device(heads: Heads, kind: str, dtype: torch.dtype, dropped: bool, device: torch.device) -> list[torch.Tensor]:
    """Between steps only the contents of tensors change, as in a CUDA graph."""
    losses, numbers = [], torch.from_numpy(schedule(SHARES, 0)).to(device)
    rates = Rates(torch.tensor(LR, device=device), torch.tensor(DECAY, device=device), torch.empty(3, device=device))
    step_1 = torch.zeros(1, dtype=torch.int32, device=device)
    keys = torch.stack([probe_data.device_keys([seed + layer for seed in SEEDS], device) for layer in range(3)])
    out = Dropped(keys, step_1, THRESHOLD) if dropped else None
    for i, now_3 in enumerate(numbers):
        x, y = draw(i, dtype)
        rates.now_3.copy_(now_3)
        step_1.fill_(i)
        parts = [
            Loss(
                t.target_B.to(device), t.rows, t.outputs, shares(t, 4, len(t.target_B), torch.device("cpu")).to(device)
            )
            for t in some_terms(kind, y)
        ]
        losses.append(probe_step_gpu.step_on_gpu(heads, x.to(device), parts, rates, out).sum(1).cpu())
    return losses


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", ["one", "weights", "two", "gaps"])
@pytest.mark.parametrize(("hidden", "dropped", "depth"), [(0, False, 1), (24, False, 1), (24, True, 1), (24, True, 2)])
def test_in_torch(dtype: torch.dtype, kind: str, hidden: int, dropped: bool, depth: int) -> None:
    ours, theirs = (make_heads(hidden, depth=depth) for _ in range(2))
    losses = by_device(ours, kind, dtype, dropped, torch.device("cpu"))
    for a, b in zip(losses, by_host(theirs, kind, dtype, dropped), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])
    assert_same_course(ours, theirs, make_heads(hidden, depth=depth), dtype)
    if dtype == FLOAT:  # steps of Adam hardly depend on the scale of a gradient
        for a, b in zip(ours.first, theirs.first, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE[dtype])
    for place in (0, 2)[: 1 + bool(hidden)]:
        assert torch.equal(ours.lowered(place, BF16), ours.parameters[place].to(BF16))


@pytest.mark.parametrize("dtype", slow_after(1, [FLOAT, BF16]), ids=["float32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "hidden", "dropped", "depth"),
    slow_after(1, [("one", 0, False, 1), ("two", 24, True, 1), ("weights", 24, False, 1), ("one", 24, True, 2)]),
)
def test_in_triton(
    place: Place, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str, hidden: int, dropped: bool, depth: int
) -> None:
    kernels, drops = place.load("probe_step_triton"), place.load("probe_data_triton")
    spies = [Mock(wraps=kernels.cross_entropy_), Mock(wraps=kernels.adamw_), Mock(wraps=drops.relu_drop_)]
    for module, name, spy in zip(
        (kernels, kernels, drops), ("cross_entropy_", "adamw_", "relu_drop_"), spies, strict=True
    ):
        monkeypatch.setattr(module, name, spy)
    theirs = make_heads(hidden, depth=depth)
    expected = by_host(theirs, kind, dtype, dropped)
    for module in (probe_step_gpu, probe_data):
        monkeypatch.setattr(module, "on_triton", lambda tensor: True)
    ours = make_heads(hidden, depth=depth)
    there = Heads(*(p.to(place.device) for p in ours.parameters))
    losses = by_device(there, kind, dtype, dropped, place.device)
    terms = len(some_terms(kind, draw(0)[1]))
    assert [spy.call_count for spy in spies] == [3 * terms, 3 * len(ours.parameters), 3 * dropped * depth]
    for a, b in zip(losses, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])
    back = Heads(*(p.cpu() for p in there.parameters))
    assert_same_course(back, theirs, make_heads(hidden, depth=depth), dtype)
    if dtype == BF16:
        # the interpreter truncates to bfloat16, a GPU rounds
        copy = there.lowered(0, BF16).float()
        torch.testing.assert_close(copy, there.w1, atol=1e-30, rtol=2**-7)
        assert spies[1].call_args_list[0].args[7] is there.lowered(0, BF16)


def test_gradients_lie_where_the_logits_were() -> None:
    """If one loss covers all rows and outputs; otherwise the gradient of the rest is 0."""
    logits, bias = torch.randn(2, 5, 7), torch.randn(2, 5)
    share, y = torch.full((2, 1), 1 / 7), torch.randint(5, (7,))
    expected_loss, expected = probe_step.cross_entropy(logits + bias[:, :, None], y)
    for loss, in_place in (
        (Loss(y, slice(0, 7), slice(0, 5), share), True),
        (Loss(y, slice(None), slice(None), share), True),
        (Loss(y[:6], slice(0, 6), slice(0, 5), share), False),
    ):
        given = logits.clone()
        total, gradient = probe_step_gpu._loss(given, bias, [loss])
        assert (gradient is given) is in_place
        if in_place:
            torch.testing.assert_close(total.sum(1), expected_loss)
            torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(given, logits)
            assert not gradient[:, :, 6].any()


def test_the_schedule_counts_on() -> None:
    whole = schedule([0.1, 0.2, 0.3], 0)
    np.testing.assert_array_equal(np.concatenate([schedule([0.1], 0), schedule([0.2, 0.3], 1)]), whole)
    np.testing.assert_allclose(whole[:, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(whole[2, 1:], [1 - BETA1**3, 1 - BETA2**3], rtol=1e-6)


@pytest.mark.parametrize("used", [True, False])
def test_forks(monkeypatch: pytest.MonkeyPatch, fake_kernels: Callable[[str], Mock], used: bool) -> None:
    kernels, drops = fake_kernels("probe_step_triton"), fake_kernels("probe_data_triton")
    kernels.cross_entropy_.return_value = torch.zeros(4, BATCH)
    drops.relu_drop_.side_effect = lambda hidden, *given: hidden
    for module in (probe_step_gpu, probe_data):
        monkeypatch.setattr(module, "on_triton", lambda tensor: used)
    by_device(make_heads(8), "one", FLOAT, True, torch.device("cpu"))
    assert [f.called for f in (kernels.cross_entropy_, kernels.adamw_, drops.relu_drop_)] == [used] * 3


@pytest.fixture
def fake_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Mock]:
    from tests.kernels.test_dispatch import fake

    return lambda name: fake(monkeypatch, name)
