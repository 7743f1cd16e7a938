"""The compiled gather of features, against float64 arithmetic, and on any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.kernels.probe_arrays import BF16, BOTH, COMPILED, FLOAT, on_threads

from substyle.kernels import probe_native

pytestmark = COMPILED


def gathered(
    x_RD: np.ndarray, row_B: np.ndarray, mean_D: np.ndarray, scale_D: np.ndarray, dtype: torch.dtype
) -> torch.Tensor:
    out = torch.full((len(row_B) + 1, x_RD.shape[1]), 7.0, dtype=dtype)
    probe_native.gather(x_RD, row_B, torch.from_numpy(mean_D), torch.from_numpy(scale_D), out[:-1])
    assert (out[-1] == 7.0).all()  # nothing is written beyond the end
    return out[:-1]


@BOTH
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("width", [1, 33, 256])
def test_gather(dtype: torch.dtype, kind: type, width: int) -> None:
    rng = np.random.default_rng(width)
    x_RD = (rng.normal(size=(19, width)) * 3).astype(kind)
    row_B = rng.integers(0, 19, 37)
    mean_D, scale_D = rng.normal(size=(2, width)).astype(np.float32)
    expected = torch.from_numpy((x_RD[row_B].astype(np.float32) - mean_D) * scale_D).to(dtype)
    results = on_threads(lambda: gathered(x_RD, row_B, mean_D, scale_D, dtype))
    assert all(torch.equal(result, expected) for result in results)


@BOTH
@pytest.mark.parametrize("flush", [False, True])
def test_every_float16_is_read_as_numpy_reads_it(dtype: torch.dtype, flush: bool) -> None:
    """All 65,536: subnormal numbers, infinities and every NaN, also where the thread takes subnormals for 0."""
    x_RD = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    one, zero = np.ones(256, np.float32), np.zeros(256, np.float32)
    expected = torch.from_numpy(x_RD.astype(np.float32)).to(dtype)
    torch.set_num_threads(1)
    torch.set_flush_denormal(flush)
    try:
        result = gathered(x_RD, np.arange(256), zero, one, dtype)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(result, expected, atol=0, rtol=0, equal_nan=True)


def test_every_nan_of_float32_stays_one() -> None:
    x_RD = np.array([[0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000]], np.uint32).view(np.float32)
    assert gathered(x_RD, np.zeros(2, np.int64), np.zeros(4, np.float32), np.ones(4, np.float32), BF16).isnan().all()


@pytest.mark.parametrize("row", [-1, 3])
def test_gather_refuses_rows_that_are_not_there(row: int) -> None:
    x_RD = np.zeros((3, 4), np.float32)
    with pytest.raises(IndexError):
        gathered(x_RD, np.array([0, row]), np.zeros(4, np.float32), np.ones(4, np.float32), FLOAT)


@pytest.mark.parametrize(
    ("x_RD", "out"),
    [
        (np.zeros((3, 4), np.float32), torch.zeros(1, 4)),
        (np.zeros((3, 4), np.float32), torch.zeros(2, 3)),
        (np.zeros((3, 4), np.float32), torch.zeros(4, 2).T),
        (np.zeros((3, 4), np.float32), torch.zeros(2, 4, dtype=torch.float16)),
        (np.zeros((4, 3), np.float32).T, torch.zeros(2, 4)),
        (np.zeros((3, 4), np.float64), torch.zeros(2, 4)),
        (np.zeros((3, 4), ">f2"), torch.zeros(2, 4)),
    ],
    ids=["rows", "width", "out strides", "out dtype", "strides", "float64", "byte order"],
)
def test_gather_refuses_arrays_of_another_shape(x_RD: np.ndarray, out: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"rows|for"):
        probe_native.gather(x_RD, np.zeros(2, np.int64), torch.zeros(4), torch.ones(4), out)


def test_gather_of_no_row() -> None:
    probe_native.gather(
        np.zeros((0, 4), np.float16), np.empty(0, np.int64), torch.zeros(4), torch.ones(4), torch.empty(0, 4)
    )


def test_gather_beyond_four_gigabytes(tmp_path: Path) -> None:
    """The last row of a sparse file of 5.0e9 bytes, which 32 bits cannot count."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2 * 768 * 3_300_000)
    x_RD = np.memmap(path, np.float16, "r+", shape=(3_300_000, 768))
    x_RD[-1] = 3.0
    last = gathered(x_RD, np.array([3_299_999, 0]), np.ones(768, np.float32), np.ones(768, np.float32), FLOAT)
    assert (last[0] == 2.0).all()
    assert (last[1] == -1.0).all()
