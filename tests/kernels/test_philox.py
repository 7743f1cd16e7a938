"""Philox against published vectors and a plain loop; the bulk generators and Triton against :func:`words`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import slow_after
from tests.kernels.conftest import Place

from substyle.kernels import philox

# from the known-answer file of the authors' library Random123: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4x32-10 in Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert plain(counter, key) == expected
    words = philox.philox_4x32([np.array([c], np.uint64) for c in counter], [np.array([k], np.uint64) for k in key])
    assert tuple(int(w[0]) for w in words) == expected


def test_words_have_the_documented_counter() -> None:
    keys = philox.image_keys(3, ["a/b.jpg", "ü\udcff"])
    got = philox.words(keys, "elastic", 11, stream=philox.NOISE)
    name = philox.name_word("elastic")
    for i, key in enumerate(int(k) for k in keys):
        blocks = [plain((b, 1, name & 0xFFFFFFFF, name >> 32), (key & 0xFFFFFFFF, key >> 32)) for b in range(3)]
        assert got[i].tolist() == [word for block in blocks for word in block][:11]


def test_words_of_several_transformations_are_those_of_each() -> None:
    keys = philox.image_keys(3, ["a", "b", "c"])
    wanted = [("elastic", 5), ("identity", 0), ("swirl", 8), ("elastic", 1)]
    for (name, count), got in zip(wanted, philox.words_of(keys, wanted), strict=True):
        assert got.shape == (3, count)
        assert np.array_equal(got, philox.words(keys, name, 12)[:, :count])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("count", [0, 7, 256, 257])
def test_bits_are_halves_of_the_words(monkeypatch: pytest.MonkeyPatch, count: int, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(philox, "_compiled", lambda: None)
    elif philox._compiled() is None:
        pytest.skip("no C compiler")
    keys = philox.image_keys(0, ["x", "y"])
    words = philox.words(keys, "noise", -(-count // 2), stream=philox.NOISE)
    expected = np.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(2, -1)[:, :count]
    for key, row in zip(keys, expected, strict=True):
        out = np.full(count + 1, 7, np.uint16)
        philox.bits16(key, "noise", out[:count])
        assert out.tolist() == [*row.tolist(), 7]
    assert philox.bits16_torch(keys, "noise", count, torch.device("cpu")).tolist() == expected.tolist()


@pytest.mark.parametrize("count", slow_after(2, [1025, 9, 0, 1024]))
def test_triton(place: Place, count: int) -> None:
    keys = philox.image_keys(3, ["a/b.jpg", "ü\udcff", "c"])
    for name, stream in (("gaussian_noise", philox.NOISE), ("elastic", philox.PARAMETERS), ("e", 2**31 - 1)):
        got = place.load("philox_triton").bits16(keys, name, count, place.device, stream=stream)
        assert got.dtype == torch.int32
        assert torch.equal(got.cpu(), philox.bits16_torch(keys, name, count, torch.device("cpu"), stream=stream))


def test_uniforms_are_uniform_and_below_one() -> None:
    u = philox.uniforms(philox.image_keys(0, [str(i) for i in range(500)]), "x", 40)
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    chi2 = ((counts - u.size / 64) ** 2 / (u.size / 64)).sum()
    assert chi2 < 110  # 63 degrees of freedom: fails for 1 in 4,000 seeds; the seed is fixed
    assert u.max() < 1.0
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.15
