"""Metadata written here are those that Zarr writes, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from substyle.engine.store import arrays
from substyle.engine.store.layout import METADATA, Codec, Dtype, StoreError, StoreSettings
from substyle.pipelines.storage import place

ATTRIBUTES = {"definition": {"name": "jpeg", "quality": [10, 30]}, "words": 'ü "quoted"'}


@pytest.mark.parametrize("codec", ["none", "zstd", "blosc", "bitround+zstd"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("row", [(3,), (4, 3)])
def test_groups_and_arrays_as_zarr_writes_them(
    tmp_path: Path, row: tuple[int, ...], dtype: Dtype, codec: Codec
) -> None:
    blosc = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=int(dtype[-2:]) // 8)
    theirs, ours = tmp_path / "theirs", place(tmp_path / "ours")
    group = zarr.open_group(str(theirs), mode="w", zarr_format=3, attributes=ATTRIBUTES)
    group.create_array(
        *("a",),
        shape=(5, *row),
        chunks=(2, *row),
        dtype=dtype,
        fill_value=float("nan"),
        compressors={"none": None, "blosc": blosc}.get(codec, ZstdCodec(level=3)),
        filters=None,
        dimension_names=["image", "token", "feature"] if len(row) == 2 else ["image", "feature"],
        attributes=ATTRIBUTES,
    )
    arrays.write(ours, arrays.group(ATTRIBUTES))
    arrays.write(ours / "a", arrays.array_metadata(5, row, StoreSettings(0, 64, 2, dtype, codec=codec), ATTRIBUTES))
    for name in (METADATA, f"a/{METADATA}"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "ours").rglob("*")) == ["a", METADATA, METADATA]


def test_an_array_that_grows_keeps_its_rows(tmp_path: Path) -> None:
    arrays.write(place(tmp_path / "a"), arrays.array_metadata(2, (3,), StoreSettings(0, 64, 2, "float16"), ATTRIBUTES))
    zarr.open_array(str(tmp_path / "a"), mode="r+")[:] = 1.0
    arrays.grow(place(tmp_path / "a"), 5)
    grown = zarr.open_array(str(tmp_path / "a"), mode="r")
    assert grown.shape == (5, 3)
    assert dict(grown.attrs) == ATTRIBUTES
    np.testing.assert_array_equal(np.isnan(grown[:]).all(axis=1), [False, False, True, True, True])


def test_a_node_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/a"):
        arrays.write(place(tmp_path / "file" / "a"), arrays.group({}))
    with pytest.raises(StoreError, match="nowhere"):
        arrays.grow(place(tmp_path / "nowhere"), 3)
