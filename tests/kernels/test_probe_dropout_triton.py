"""Keyed dropout in Triton is bit-identical to the reference."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.conftest import Place

from substyle.kernels import probe_data

CPU = torch.device("cpu")
SEEDS = [7, -1, 2**63 + 5]


def drawn(step: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return probe_data.device_keys(SEEDS, device), probe_data.device_steps([step], device)


@pytest.mark.parametrize("shape", [(5, 37), (1, 1), (33, 32)])
@pytest.mark.parametrize(("step", "threshold"), [(0, 51), (2**32 - 1, 128)])
def test_masks(place: Place, shape: tuple[int, int], step: int, threshold: int) -> None:
    got = torch.ones(3, *shape, device=place.device)
    place.load("probe_data_triton").relu_drop_(got, *drawn(step, place.device), threshold)
    assert torch.equal(got.cpu().bool(), probe_data.masks(SEEDS, step, threshold, shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [3, 6])
def test_relu_drop(place: Place, dtype: torch.dtype, heads: int) -> None:
    expected = torch.randn(heads, 11, 97, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected[:, 0, :8] = float("nan")  # some of them are dropped
    expected[:, 1, :8] = float("inf")
    got = expected.clone().to(place.device)
    assert place.load("probe_data_triton").relu_drop_(got, *drawn(3, place.device), 128) is got
    probe_data.relu_drop_(expected, *drawn(3, CPU), 128)
    assert torch.equal(got.cpu().nan_to_num(9), expected.nan_to_num(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", [0, 2**32 - 1])
def test_relu_drop_after_a_bias(place: Place, dtype: torch.dtype, step: int) -> None:
    """Seeds and step are read from the device. Values are small integers, so results are exact."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.randint(-8, 9, (6, 5, 67), generator=generator).to(dtype)
    bias = torch.randint(-8, 9, (6, 5), generator=generator).float()
    got = expected.clone().to(place.device)
    place.load("probe_data_triton").relu_drop_(got, *drawn(step, place.device), 100, bias.to(place.device))
    probe_data.relu_drop_(expected.add_(bias[:, :, None]), *drawn(step, CPU), 100)
    assert torch.equal(got.cpu(), expected)
    assert 0.2 < float((expected > 0).double().mean()) < 0.5


def test_no_units(place: Place) -> None:
    none = torch.empty(3, 0, 5, device=place.device)
    assert place.load("probe_data_triton").relu_drop_(none, *drawn(0, place.device), 1).shape == (3, 0, 5)
