"""The contracting convolution: plain torch against float64 sums, and Triton against plain torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from tests.conftest import slow_after
from tests.kernels.conftest import Place

from substyle.errors import ConfigError
from substyle.kernels import contraction


class Case(NamedTuple):
    """Arguments of a contraction."""

    x_XBHWC: torch.Tensor
    factor_GBC: torch.Tensor
    offset_GBC: torch.Tensor
    kernel_TCO: torch.Tensor


def case(
    *,
    styles: int = 2,
    own: bool = True,
    batch: int = 2,
    sides: tuple[int, int] = (6, 10),
    channels: tuple[int, int] = (16, 32),
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Case:
    """Random maps whose normalised values are of both signs."""
    rng = np.random.default_rng(sides[0] + channels[1])

    def drawn(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(device)

    x = drawn(styles if own else 1, batch, *sides, channels[0]).to(dtype)
    factor, offset = drawn(styles, batch, channels[0]), drawn(styles, batch, channels[0])
    return Case(x, factor, offset, contraction.taps(drawn(channels[1], channels[0], 3, 3)).to(dtype))


def test_reference_is_the_definition() -> None:
    """Each result summed alone, in float64."""
    given = case(sides=(4, 6))
    x, factor, offset, kernel = (each.double().numpy() for each in given)
    made, mean_GBO, variance_GBO = contraction.contract_reference(*given)
    assert made.shape == (2, 2, 2, 3, 32)
    y = np.maximum(x * factor[:, :, None, None] + offset[:, :, None, None], 0)
    padded = np.pad(y, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    expected = np.zeros(made.shape)
    for row, column, i, j in np.ndindex(2, 3, 3, 3):
        expected[:, :, row, column] += padded[:, :, 2 * row + i, 2 * column + j] @ kernel[3 * i + j]
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean_GBO.numpy(), expected.mean((2, 3)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance_GBO.numpy(), expected.var((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("own", slow_after(1, [True, False]))
@pytest.mark.parametrize(
    ("sides", "channels"),
    # 15, 256, 1 and 255 pixels
    slow_after(1, [((6, 10), (16, 32)), ((32, 32), (32, 32)), ((2, 2), (16, 16)), ((34, 30), (32, 16))]),
)
def test_triton(place: Place, own: bool, sides: tuple[int, int], channels: tuple[int, int]) -> None:
    given = case(own=own, sides=sides, channels=channels, device=place.device)
    got = place.load("contraction_triton").contract(*given)
    for ours, expected in zip(got, contraction.contract_reference(*given), strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_triton_in_16_bits(place: Place, dtype: torch.dtype) -> None:
    """Maps differ by a rounding; statistics are those of the maps that are returned."""
    if dtype == torch.bfloat16 and place.device.type == "cpu":
        pytest.skip("the interpreter multiplies the bit patterns of bfloat16")
    given = case(styles=3, own=False, sides=(24, 24), dtype=dtype, device=place.device)
    made, mean, variance = place.load("contraction_triton").contract(*given)
    expected, _, _ = contraction.contract_reference(*given)
    assert made.dtype == expected.dtype == dtype
    torch.testing.assert_close(made.float(), expected.float(), rtol=2 * torch.finfo(dtype).eps, atol=0.02)
    true_variance, true_mean = torch.var_mean(made.double(), dim=(2, 3), correction=0)
    torch.testing.assert_close(mean.double(), true_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), true_variance, rtol=1e-5, atol=1e-5)


def test_bad_input_is_named(place: Place) -> None:
    load, given = place.load("contraction_triton").contract, case(device=place.device)
    for position, value, field in (
        (0, given.x_XBHWC[:, :, :5].contiguous(), "x.shape"), (0, given.x_XBHWC[:, :1], "factor.shape"),
        (1, given.factor_GBC.double(), "factor.dtype"), (2, given.offset_GBC[:1], "offset.shape"),
        (3, given.kernel_TCO.half(), "kernel.dtype"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            load(*given[:position], value, *given[position + 1 :])
        assert caught.value.field == field


def test_other_numbers_of_channels_are_computed_by_torch() -> None:
    """On the meta device, where launches are counted and torch's operations run as usual."""
    for channels in ((16, 32), (8, 16), (16, 3), (48, 16)):
        given = case(channels=channels, device=torch.device("cpu"))
        made, mean, _ = contraction.contract(*(each.to("meta") for each in given))
        assert made.shape == (2, 2, 3, 5, channels[1])
        assert mean.shape == (2, 2, channels[1])
