"""Gathered and standardised rows compared with float64 arithmetic on every path; dispatch; int8 quantisation."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.probe_arrays import BF16, FLOAT, drawn

from substyle.errors import ConfigError
from substyle.kernels.probe_data import gather, quantise

pytestmark = pytest.mark.usefixtures("one_thread")
STORED = (torch.float16, torch.float32, torch.int8)


def table(stored: torch.dtype, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    if stored != torch.int8:
        return drawn(1, rows, width, scale=3.0).to(stored), None
    values = torch.randint(-127, 128, (rows, width), generator=torch.Generator().manual_seed(1))
    return values.to(torch.int8), drawn(2, rows).abs() / 50


def task(rows: int, width: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row = torch.randint(rows, (count,), generator=torch.Generator().manual_seed(3))
    return row, drawn(4, width), drawn(5, width)


def in_float64(
    x_RD: torch.Tensor, row_B: torch.Tensor, mean_D: torch.Tensor, scale_D: torch.Tensor, scale_R: torch.Tensor | None
) -> torch.Tensor:
    x = x_RD.double()[row_B] * (1.0 if scale_R is None else scale_R.double()[row_B][:, None])
    return (x - mean_D.double()) * scale_D.double()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", [FLOAT, BF16])
def test_on_the_cpu(stored: torch.dtype, dtype: torch.dtype) -> None:
    x_RD, scale_R = table(stored, 13, 33)
    given = x_RD, *task(13, 33, 20)
    out = torch.empty(20, 33, dtype=dtype)
    assert gather(*given, out, scale_R) is out
    expected = in_float64(*given, scale_R)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5 if dtype == FLOAT else 2**-8)
    with pytest.raises(IndexError):
        gather(x_RD, torch.tensor([13]), given[2], given[3], out[:1], scale_R)


def test_a_table_of_another_type_is_refused_off_the_cpu() -> None:
    table_RD = torch.empty(3, 4, dtype=torch.float64, device="meta")
    with pytest.raises(ConfigError) as caught:
        gather(table_RD, torch.tensor([1]), torch.zeros(4), torch.ones(4), torch.empty(1, 4))
    assert caught.value.field == "table.dtype"


def test_rows_are_rounded_to_within_half_a_step() -> None:
    x = drawn(1, 9, 40, scale=4.0).half()
    x[4] = 2.5
    mean, scale = drawn(2, 40), drawn(3, 40).abs() + 0.1
    scale[7] = 0.0
    q_BD, factor_B = quantise(x, mean, scale)
    assert q_BD.dtype == torch.int8
    z = (x.float() - mean) * scale
    assert ((q_BD * factor_B[:, None] - z).abs() <= 0.5001 * factor_B[:, None]).all()
    assert (q_BD.abs().amax(1) == 127).all()
    assert not q_BD[:, 7].any()
    nothing, none = quantise(torch.zeros(2, 3).half(), torch.zeros(3), torch.ones(3))
    assert not nothing.any()
    assert not none.any()
    for bad in (float("nan"), float("inf")):
        x[2, 5] = bad
        assert quantise(x, mean, scale)[1].isfinite().tolist() == [i != 2 for i in range(9)]
