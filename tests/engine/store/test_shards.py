"""Shards are what Zarr writes, to the byte, and rows read from them are what Zarr reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from substyle.engine.store import arrays, shards
from substyle.engine.store.layout import ArrayEntry, Codec, StoreError, StoreSettings
from substyle.engine.store.shards import Shape
from substyle.pipelines.storage import Place, place

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
