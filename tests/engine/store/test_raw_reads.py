"""Rows read from chunk files are what zarr reads."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from substyle.engine.store.arrays import read_rows
from substyle.engine.store.layout import StoreError
from substyle.pipelines.storage import LocalPlace

ROWS, WIDTH, CHUNK = 21, 3, 4


def array_at(path: Path, dtype: str = "float16") -> zarr.Array[Any]:
    """An array of a store's form, with a chunk that was never written."""
    form: dict[str, Any] = {"chunks": (CHUNK, WIDTH), "dtype": dtype, "fill_value": float("nan")}
    array = zarr.create_array(str(path), shape=(ROWS, WIDTH), compressors=None, filters=None, **form)
    values = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(dtype)
    array[:8], array[12:] = values[:8], values[12:]
    return array


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, zarr.Array[Any]]]:
    folder = tmp_path_factory.mktemp("arrays")
    return {
        dtype: (folder / f"{dtype}.zarr", array_at(folder / f"{dtype}.zarr", dtype=dtype))
        for dtype in ("float16", "float32")
    }


@given(dtype=st.sampled_from(["float16", "float32"]), ends=st.tuples(*[st.integers(0, ROWS)] * 2))
@settings(deadline=None, max_examples=60)
def test_any_range_of_rows_is_what_zarr_reads(
    arrays: dict[str, tuple[Path, zarr.Array[Any]]], dtype: str, ends: tuple[int, int]
) -> None:
    path, array = arrays[dtype]
    start, stop = sorted(ends)
    out_RD = np.empty((stop - start, WIDTH), dtype)
    read_rows(CHUNK, lambda number: LocalPlace(path) / "c" / str(number) / "0", start, out_RD, "none")
    np.testing.assert_array_equal(out_RD, np.asarray(array[start:stop]))


def test_a_chunk_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    array_at(path)
    chunk = path / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    out_RD = np.empty((8, WIDTH), np.float16)
    with pytest.raises(StoreError, match=r"c/1/0: truncated"):
        read_rows(CHUNK, lambda number: LocalPlace(path) / "c" / str(number) / "0", 0, out_RD, "none")
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises(StoreError, match=rf"c/1/0: .*{os.strerror(errno.EISDIR)}"):
        read_rows(CHUNK, lambda number: LocalPlace(path) / "c" / str(number) / "0", 0, out_RD, "none")
