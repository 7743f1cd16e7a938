"""The compiled hidden layer and AdamW step, against float64 arithmetic, and on any number of threads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.kernels.probe_arrays import BF16, BOTH, COMPILED, drawn, on_threads

from substyle.kernels import probe_native
from substyle.kernels.probe_heads import BETA1, BETA2, EPS

pytestmark = COMPILED


def hidden(z: torch.Tensor, bias: torch.Tensor, kept: torch.Tensor | None, factor: float) -> torch.Tensor:
    z = z.clone()
    mask, stride = (None, 0) if kept is None else (kept.data_ptr(), kept.stride(0))
    probe_native.library().probe_hidden(
        z.data_ptr(), *z.shape, bias.data_ptr(), mask, stride, factor, z.dtype == BF16, torch.get_num_threads()
    )
    return z


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (7, 96), (33, 70)])
def test_hidden_layer_and_its_gradient(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Masks may be a slice of wider rows; where a value is NaN it goes on, and so does its gradient."""
    z, bias = drawn(0, *shape, dtype=dtype), drawn(1, shape[0])
    z[-1, -1] = float("nan")
    kept = (drawn(2, shape[0], shape[1] + 9) > -0.5)[:, 4:-5]
    kept[-1, -1] = True
    for mask, factor in ((None, 1.0), (kept, 1.25)):
        live = torch.ones(shape, dtype=torch.bool) if mask is None else mask
        expected = torch.where(live, (z.float() + bias[:, None]).relu() * factor, 0.0).to(dtype)
        forward = on_threads(lambda mask=mask, factor=factor: hidden(z, bias, mask, factor))
        for result in forward:
            torch.testing.assert_close(result, expected, atol=0, rtol=0, equal_nan=True)
        g = drawn(3, *shape, dtype=dtype)
        expected_g = torch.where(expected <= 0, 0.0, g.float() * factor)

        def back(h: torch.Tensor = expected, g: torch.Tensor = g, f: float = factor) -> SimpleNamespace:
            made, dbias = g.clone(), torch.empty(len(g))
            probe_native.library().probe_hidden_back(
                made.data_ptr(), h.data_ptr(), *g.shape, f, dbias.data_ptr(), g.dtype == BF16, torch.get_num_threads()
            )
            return SimpleNamespace(g=made, dbias=dbias)

        results = on_threads(back)
        for result in results:
            assert torch.equal(result.g, expected_g.to(dtype))
            torch.testing.assert_close(result.dbias.double(), expected_g.double().sum(1), atol=1e-5, rtol=1e-5)
            assert torch.equal(result.dbias, results[0].dbias)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (2, 4096), (3, 9001)])
@pytest.mark.parametrize("copied", [False, True])
def test_adamw(dtype: torch.dtype, shape: tuple[int, int], copied: bool) -> None:
    """Against float64 over a wide range of gradients; both sides of the blocks of 4,096."""
    heads, size = shape
    g = (drawn(0, *shape) * 10 ** drawn(1, *shape, scale=3.0)).to(dtype)
    w, m, v = drawn(2, *shape), drawn(3, *shape), drawn(4, *shape).abs()
    rate, keep = drawn(5, heads).abs() * 1e-2, 1 - drawn(6, heads).abs() * 1e-3
    unbias = 1.0 / (1.0 - BETA2**5)
    mean = BETA1 * m.double() + (1 - BETA1) * g.double()
    square = BETA2 * v.double() + (1 - BETA2) * g.double() ** 2
    weight = w * keep[:, None].double() - rate[:, None] * mean / ((square * unbias).sqrt() + EPS)

    def work() -> list[torch.Tensor]:
        own = [t.clone() for t in (w, m, v)]
        copy = torch.zeros(heads, size, dtype=BF16)
        at = [t.data_ptr() for t in own]
        probe_native.library().probe_adamw(
            at[0], g.data_ptr(), at[1], at[2], copy.data_ptr() if copied else None, heads, size,
            rate.data_ptr(), keep.data_ptr(), BETA1, BETA2, unbias, EPS, dtype == BF16, torch.get_num_threads(),
        )  # fmt: skip
        assert torch.equal(copy, own[0].to(BF16) if copied else torch.zeros_like(copy))
        return own

    results = on_threads(work)
    for result, expected in zip(results[0], (weight, mean, square), strict=True):
        torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-5)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_subnormal_gradients_count_as_nothing_and_the_thread_is_left_as_it_was() -> None:
    g, w = torch.full((1, 64), 1e-40), torch.ones(1, 64)
    m, v = torch.zeros(1, 64), torch.zeros(1, 64)
    rate, keep = torch.ones(1), torch.ones(1)
    probe_native.library().probe_adamw(
        w.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), None, 1, 64,
        rate.data_ptr(), keep.data_ptr(), BETA1, BETA2, 1.0, EPS, 0, 1,
    )  # fmt: skip
    assert (w - 1.0).abs().max() < 1e-30
    assert np.float32(1e-40) * np.float32(0.5) > 0
    assert (torch.full((64,), 1e-40) * 0.5 > 0).all()


def test_reasons_of_kernels() -> None:
    probe_native.check(0)
    with pytest.raises(MemoryError):
        probe_native.check(1)
    with pytest.raises(IndexError):
        probe_native.check(2)
