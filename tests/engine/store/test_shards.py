"""Shards are what Zarr writes, to the byte, and rows read from them are what Zarr reads."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from substyle.engine.store import arrays, shards
from substyle.engine.store.layout import ArrayEntry, Codec, StoreError, StoreSettings
from substyle.engine.store.shards import Shape
from substyle.pipelines.storage import LocalPlace, Place, place

NAMES, ROWS, WIDTH, SHARD = ("identity", "jpeg", "swirl"), 21, 5, 4
ARRAY = ArrayEntry("x", WIDTH, NAMES)
SHAPE = Shape(3, SHARD, WIDTH, np.dtype("float16"), "none")


def values(rows: int = ROWS) -> np.ndarray[Any, np.dtype[np.float16]]:
    return np.random.default_rng(0).normal(size=(3, rows, WIDTH)).astype(np.float16)


def empty(path: Path, codec: Codec = "none") -> Place:
    """An array of a store's form without embeddings."""
    node = place(path) / "a"
    arrays.write(node, arrays.array_metadata(ARRAY, ROWS, StoreSettings(0, 64, SHARD, "float16", codec=codec), {}))
    return node


def shard(node: Place, number: int) -> Place:
    return node / f"c.0.{number}.0"


def filled(node: Place, shape: Shape = SHAPE) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Write all shards but the third, without ``jpeg`` in the second. Returns the embeddings."""
    x_TND = values()
    for number in (0, 1, 3, 4, 5):
        rows = slice(number * SHARD, (number + 1) * SHARD)
        chunks = [x_RD[rows] if (number, t) != (1, 1) else None for t, x_RD in enumerate(x_TND)]
        shard(node, number).write(shards.encode(chunks, shape))
    x_TND[:, 2 * SHARD : 3 * SHARD] = x_TND[1, SHARD : 2 * SHARD] = np.nan
    return x_TND


def test_zarrs_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("zarrs")
    node = empty(tmp_path)
    x_TND = filled(node)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        np.testing.assert_array_equal(np.asarray(zarr.open_array(str(node), mode="r")[:]), x_TND)


CHUNK = SHAPE.chunk_bytes + 4


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d[1:], lambda d: d[:40], lambda d: b"", lambda d: 9 * d]
)
def test_a_file_of_another_length_is_named(tmp_path: Path, change: Any) -> None:  # noqa: ANN401
    path = place(tmp_path / "x")
    path.write(change(b"".join(shards.encode([*values(SHARD)], SHAPE))))
    with pytest.raises(StoreError, match=f"{path}: .*run substyle verify"), shards.opening(path, SHAPE):
        pass
    assert shards.check(path, SHAPE, NAMES, {})[1]


def test_damaged_chunks_are_named(tmp_path: Path) -> None:
    path = place(tmp_path / "x")
    data = bytearray(b"".join(shards.encode([*values(SHARD)], SHAPE)))
    checksums = {name: shards.digest(x_RD.tobytes()) for name, x_RD in zip(NAMES, values(SHARD), strict=True)}
    path.write(bytes(data))
    assert shards.check(path, SHAPE, NAMES, checksums) == (len(data), "")
    data[3] ^= 1
    data[2 * CHUNK + 3] ^= 1
    path.write(bytes(data))
    assert shards.check(path, SHAPE, NAMES, checksums) == (len(data), "checksum mismatch: identity, swirl")
    with shards.opening(path, SHAPE) as found:
        np.testing.assert_array_equal(found.chunk(1), values(SHARD)[1])
        with pytest.raises(StoreError, match="checksum mismatch"):
            found.chunk(0)


@pytest.mark.parametrize("codec", get_args(Codec))
def test_files_are_those_that_zarr_writes(tmp_path: Path, codec: Codec) -> None:
    ours, theirs = empty(tmp_path / "ours", codec), empty(tmp_path / "theirs", codec)
    x_TND = filled(ours, replace(SHAPE, codec=codec))
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(str(theirs), mode="r+")
        for first in (0, 12, 16, 20):
            array[:, first : first + 4] = x_TND[:, first : first + 4]
    with zarr.config.set({"array.write_empty_chunks": False}):
        zarr.open_array(str(theirs), mode="r+")[:, 4:8] = x_TND[:, 4:8]
    for number in (0, 1, 3, 4, 5):
        assert shard(ours, number).read_bytes() == shard(theirs, number).read_bytes()
    np.testing.assert_array_equal(np.asarray(zarr.open_array(str(ours), mode="r")[:]), x_TND)


@pytest.mark.parametrize("codec", get_args(Codec))
@given(
    cells=st.lists(st.tuples(st.integers(0, 2), st.integers(0, SHARD - 1)), max_size=20),
    near=st.sampled_from([0, 10, 1 << 14]),
)
@settings(deadline=None, max_examples=40)
def test_any_rows_of_a_shard(
    tmp_path_factory: pytest.TempPathFactory, codec: Codec, cells: list[tuple[int, int]], near: int
) -> None:
    """Also repeated ones, in any order of the output, and transformations without embeddings."""
    path, shape = place(tmp_path_factory.getbasetemp() / f"{codec}.shard"), replace(SHAPE, codec=codec)
    x_TRD = values(SHARD)
    path.write(shards.encode([x_TRD[0], None, x_TRD[2]], shape))
    x_TRD[1] = np.nan
    t_M, row_M = np.array(sorted(cells), np.int64).reshape(-1, 2).T
    to_M = np.random.default_rng(len(cells)).permutation(len(cells))
    out_RD = np.zeros((len(cells), WIDTH), np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalPlace, "near", near)
        shards.gather(path, shape, t_M, row_M, out_RD, to_M)
    np.testing.assert_array_equal(out_RD[to_M], x_TRD[t_M, row_M])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    path = place(tmp_path / "x")
    with pytest.raises(FileNotFoundError), shards.opening(path, SHAPE):
        pass
    path.mkdir()
    with pytest.raises(StoreError, match=rf"x: .*{os.strerror(errno.EISDIR)}"), shards.opening(path, SHAPE):
        pass
