"""Random numbers in Triton, bit for bit against the reference."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import slow_after
from tests.kernels.conftest import Place

from substyle.kernels import philox

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", slow_after(2, [1025, 9, 0, 1, 7, 8, 1023, 1024, 2500]))
def test_bits_are_those_of_the_reference(place: Place, count: int) -> None:
    made = place.load("philox_triton")
    keys = philox.image_keys(3, ["a/b.jpg", "ü\udcff", "c"])
    for name, stream in (("gaussian_noise", philox.NOISE), ("elastic", philox.PARAMETERS), ("e", 2**31 - 1)):
        got = made.bits16(keys, name, count, place.device, stream=stream)
        assert got.dtype == torch.int32
        assert torch.equal(got.cpu(), philox.bits16_torch(keys, name, count, CPU, stream=stream))
