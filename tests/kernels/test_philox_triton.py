"""Random numbers in Triton, bit for bit against the reference."""

from __future__ import annotations

import numpy as np
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


@pytest.mark.parametrize("key", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_keys_of_every_kind(place: Place, key: int) -> None:
    keys = np.array([key], np.uint64)
    got = place.load("philox_triton").bits16(keys, "n", 40, place.device, dtype=torch.uint16)
    assert got.cpu().numpy().tolist() == philox.bits16_torch(keys, "n", 40, CPU).tolist()


def test_no_images(place: Place) -> None:
    keys = philox.image_keys(0, [])
    assert place.load("philox_triton").bits16(keys, "n", 5, place.device).shape == (0, 5)


@pytest.mark.parametrize("name", ["gaussian_noise", "elastic", "dropout", "e"])
def test_name_words_keep_their_bits(place: Place, name: str) -> None:
    low, high = place.load("philox_triton").name_words(name)
    assert -(2**31) <= low < 2**31
    assert -(2**31) <= high < 2**31
    assert (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32 == philox.name_word(name)
