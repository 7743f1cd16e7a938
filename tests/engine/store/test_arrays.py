"""Metadata written here are those that Zarr writes, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from substyle.engine.store import arrays
from substyle.engine.store.layout import METADATA, ArrayEntry, Codec, Dtype, OverflowError16, StoreSettings
from substyle.pipelines.storage import place

ATTRIBUTES = {"definition": {"name": "jpeg", "quality": [10, 30]}, "words": 'ü "quoted"'}


@pytest.mark.parametrize("codec", ["none", "zstd", "blosc", "bitround+zstd"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_groups_and_arrays_as_zarr_writes_them(tmp_path: Path, dtype: Dtype, codec: Codec) -> None:
    blosc = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=int(dtype[-2:]) // 8)
    compressors = {"none": [], "blosc": [blosc]}.get(codec, [ZstdCodec(level=3)])
    array = ArrayEntry("x", 3, ("identity", "jpeg"))
    theirs, ours = tmp_path / "theirs", place(tmp_path / "ours")
    group = zarr.open_group(str(theirs), mode="w", zarr_format=3, attributes=ATTRIBUTES)
    group.create_array(
        *("a",),
        shape=(2, 5, 3),
        chunks=(1, 2, 3),
        shards=(2, 2, 3),
        chunk_key_encoding={"name": "default", "separator": "."},
        dtype=dtype,
        fill_value=float("nan"),
        compressors=[*compressors, Crc32cCodec()],
        filters=None,
        dimension_names=[f"transformation_{array.name}", "image", "feature"],
        attributes=ATTRIBUTES,
    )
    arrays.write(ours, arrays.group(ATTRIBUTES))
    arrays.write(ours / "a", arrays.array_metadata(array, 5, StoreSettings(0, 64, 2, dtype, codec=codec), ATTRIBUTES))
    for name in (METADATA, f"a/{METADATA}"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "ours").rglob("*")) == ["a", METADATA, METADATA]


@pytest.mark.parametrize("limit", [65520.0, -65520.0])
def test_the_least_number_that_overflows(limit: float) -> None:
    settings = StoreSettings(0, 64, 2, "float16")
    within = np.array([[np.nextafter(np.float32(limit), np.float32(0)), np.inf, np.nan]], np.float32)
    assert np.abs(arrays.cast(within, settings, "x", exact=True)[0, 0]) == 65504
    with pytest.raises(OverflowError16):
        arrays.cast(np.array([[limit]], np.float32), settings, "x", exact=True)
