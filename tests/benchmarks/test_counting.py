"""Counts of what runs against sums by hand, eager and fused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from benchmarks.counting import META, Counter
from torch.nn import functional

from substyle.kernels import dispatch, warp


def moved(work: Callable[[torch.Tensor], torch.Tensor], *, fused: bool, device: torch.device = META) -> list[float]:
    """Bytes of each launch of some work on 1,000 float32 numbers, whose result is written."""
    x = torch.empty(2, 5, 10, 10, device=device)
    with Counter(device, fused=fused) as counter:
        counter._write([work(x)])
    return [launch.moved for launch in counter.launches]


def _chain(x: torch.Tensor) -> torch.Tensor:
    return (torch.relu(x) + 1).to(torch.float16)


def _normalised(x: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x * 2, dim=(2, 3), correction=0, keepdim=True)
    return (x * 2 - mean) * torch.rsqrt(variance)


def _padded_convolution(x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), "reflect"), torch.empty(3, 5, 3, 3, device=x.device))


@pytest.mark.parametrize(
    ("work", "eager", "fused"),
    [
        (_chain, [8000, 8000, 6000], [6000]),
        # statistics of 10 maps; then a second pass over the map
        (_normalised, [8000, 4080, 8000, 8040, 80, 8040], [4080, 8080]),
        # padding is written, since the product reads memory; products in 16 bits per number
        (_padded_convolution, [4000 + 5760, 2 * (1440 + 135 + 600)], [4000 + 5760, 2 * (1440 + 135 + 600)]),
        (lambda x: x.add_(1), [8000], [8000]),
        (lambda x: torch.zeros_like(x).copy_(x), [4000, 8000], [4000, 8000]),
        (lambda x: x.view(10, 100).t()[3], [], []),
        (torch.empty_like, [], []),
        (lambda x: x[:1].expand(4, 5, 10, 10) + x[0, :, :1, :1], [2000 + 20 + 8000], [2000 + 8000]),
    ],
)
def test_bytes_by_hand(work: Callable[[torch.Tensor], torch.Tensor], eager: list[float], fused: list[float]) -> None:
    assert moved(work, fused=False) == eager
    assert moved(work, fused=True) == fused
    assert moved(work, fused=False, device=torch.device("cpu")) == eager


def test_the_host_and_copies_from_it_are_not_counted() -> None:
    with Counter() as counter:
        there = dispatch.upload(np.zeros(7, np.float32) + 1, META)
        torch.ones(5).add(1)
        there + 1
    assert [launch.moved for launch in counter.launches] == [56.0]


def test_triton_kernels_move_each_tensor_once() -> None:
    canvas = torch.empty(4, 8, 8, 3, dtype=torch.uint8, device=META)
    field = torch.empty(4, 2, 8, 8, device=META)
    with Counter() as counter, dispatch.watched(counter.triton):
        assert warp.remap(canvas, field).shape == canvas.shape
    assert [launch.moved for launch in counter.launches] == [2 * canvas.numel() + field.nbytes]


def test_compiled_functions_are_counted_as_fused() -> None:
    x = torch.empty(2, 5, 10, 10, device=META)
    with Counter() as counter:
        counter.compiled(_chain)(x)
        _chain(x)
    assert [launch.moved for launch in counter.launches] == [6000, 8000, 8000, 6000]


def test_a_compiled_function_that_writes_to_what_it_is_given_is_one_kernel() -> None:
    table, rows = torch.empty(30, 4, device=META), torch.zeros(6, dtype=torch.int64, device=META)
    out = torch.empty(6, 4, dtype=torch.bfloat16, device=META)

    mean, scale, factor = (torch.empty(size, device=META) for size in (4, 4, 30))

    def gather(out: torch.Tensor, table: torch.Tensor, rows: torch.Tensor) -> None:
        values = table.index_select(0, rows).mul_(factor.index_select(0, rows)[:, None])
        out.copy_(values.sub_(mean).mul_(scale))

    with Counter() as counter:
        counter.compiled(gather)(out, table, rows)
    assert [launch.moved for launch in counter.launches] == [
        sum(t.nbytes for t in (table, rows, out, mean, scale, factor))
    ]
