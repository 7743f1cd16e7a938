"""Rows of a table against float64 arithmetic; int8 quantisation; dropout by documented counters."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.kernels.conftest import drawn

from substyle.errors import ConfigError
from substyle.kernels import philox, probe_data
from substyle.kernels.probe_data import gather, quantise

pytestmark = pytest.mark.usefixtures("one_thread")
STORED = (torch.float16, torch.float32, torch.int8)


def table(stored: torch.dtype, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    if stored != torch.int8:
        return drawn(1, rows, width, scale=3.0).to(stored), None
    values = torch.randint(-127, 128, (rows, width), generator=torch.Generator().manual_seed(1))
    return values.to(torch.int8), drawn(2, rows).abs() / 50


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_cpu(stored: torch.dtype, dtype: torch.dtype) -> None:
    x_RD, scale_R = table(stored, 13, 33)
    row_B = torch.randint(13, (20,), generator=torch.Generator().manual_seed(3))
    mean_D, factor_D = drawn(4, 33), drawn(5, 33)
    out = torch.empty(20, 33, dtype=dtype)
    assert gather(x_RD, row_B, mean_D, factor_D, out, scale_R) is out
    x = x_RD.double()[row_B] * (1.0 if scale_R is None else scale_R.double()[row_B][:, None])
    expected = (x - mean_D.double()) * factor_D.double()
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2**-8)
    with pytest.raises(IndexError):
        gather(x_RD, torch.tensor([13]), mean_D, factor_D, out[:1], scale_R)


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


# --- dropout ----------------------------------------------------------------------------------------------------------

SEEDS = [7, -1, 2**63 + 5]


def masks(seeds: Sequence[int], first: int, threshold: int, steps: int, *shape: int) -> torch.Tensor:
    kept = torch.empty(steps, len(seeds), *shape, dtype=torch.bool)
    probe_data.draw_masks(kept, seeds, first, threshold)
    return kept


@pytest.mark.parametrize("step", [3, 2**32 - 1])
def test_bytes_have_the_documented_counter(step: int) -> None:
    name = philox.name_word("dropout")
    kept = {level: masks([7, -1], step, level, 1, 5, 8) for level in range(257)}
    drawn = sum(mask[0].flatten(1).int() for mask in kept.values()) - 1  # a byte is kept by all thresholds up to itself
    for row, key in zip(drawn, (7, 2**64 - 1), strict=True):
        for j in (0, 1, 5, 15, 16, 39):
            counter = [np.array([c], np.uint64) for c in (j // 16, step, name & 0xFFFFFFFF, name >> 32)]
            words = philox.philox_4x32(counter, [np.array([k], np.uint64) for k in (key & 0xFFFFFFFF, key >> 32)])
            word = int(words[j % 16 // 4][0])
            assert row[j] == word >> 8 * (j % 4) & 0xFF


def test_seed_step_and_unit_alone_decide() -> None:
    whole = masks([1, 2, 3], 9, 128, 2, 10, 10)
    assert torch.equal(masks([2], 9, 128, 1, 6, 10)[0, 0], whole[0, 1, :6])
    assert torch.equal(masks([2], 10, 128, 1, 10, 10)[0, 0], whole[1, 1])
    for a, b in ((whole[0, 0], whole[0, 1]), (whole[0, 1], whole[1, 1])):
        assert 0.3 < (a == b).double().mean() < 0.7


@pytest.mark.parametrize("shape", [(1, 1), (33, 32)])
@pytest.mark.parametrize(("first", "threshold"), [(0, 51), (2**32 - 2, 128)])
def test_a_gpu_draws_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], first: int, threshold: int
) -> None:
    """Its branch, computed on a CPU."""
    expected = masks(SEEDS, first, threshold, 2, *shape)
    found = torch.empty_like(expected)
    flat = found.flatten(2)
    elsewhere = SimpleNamespace(shape=flat.shape, device=SimpleNamespace(type="cuda"))
    cpu, empty, ge = torch.device("cpu"), torch.empty, torch.ge
    monkeypatch.setattr(probe_data, "upload", lambda values, device: torch.from_numpy(values))
    monkeypatch.setattr(torch, "empty", lambda *given, dtype, device: empty(*given, dtype=dtype, device=cpu))
    monkeypatch.setattr(torch, "ge", lambda a, b, *, out: ge(a, b, out=flat))
    probe_data.draw_masks(SimpleNamespace(flatten=lambda start: elsewhere), SEEDS, first, threshold)  # type: ignore[arg-type]
    assert torch.equal(found, expected)
