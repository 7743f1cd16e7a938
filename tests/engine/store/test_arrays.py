"""Metadata written here are those that Zarr writes, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from substyle.engine.store import arrays
from substyle.engine.store.layout import METADATA, ArrayEntry, Codec, Dtype, OverflowError16, StoreError, StoreSettings
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


def test_an_array_that_grows_keeps_its_rows(tmp_path: Path) -> None:
    array = ArrayEntry("x", 3, ("identity", "jpeg"))
    arrays.write(place(tmp_path / "a"), arrays.array_metadata(array, 2, StoreSettings(0, 64, 2, "float16"), ATTRIBUTES))
    zarr.open_array(str(tmp_path / "a"), mode="r+")[:] = 1.0
    arrays.grow(place(tmp_path / "a"), 5)
    grown = zarr.open_array(str(tmp_path / "a"), mode="r")
    assert grown.shape == (2, 5, 3)
    assert dict(grown.attrs) == ATTRIBUTES
    np.testing.assert_array_equal(np.isnan(grown[:]).all(axis=(0, 2)), [False, False, True, True, True])


def test_a_node_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/a"):
        arrays.write(place(tmp_path / "file" / "a"), arrays.group({}))
    with pytest.raises(StoreError, match="nowhere"):
        arrays.grow(place(tmp_path / "nowhere"), 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numbers_are_rounded_as_numpy_rounds_them(dtype: type[np.floating]) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        x_RD = np.concatenate([bits[np.abs(bits) < 65520], [65504, 6e-8, 2.98e-8, -0.0, np.nan, -np.inf]]).astype(dtype)
    x_RD = x_RD[: len(x_RD) // 8 * 8].reshape(-1, 8)[:, ::2]  # not contiguous
    x_RD.flags.writeable = False
    found_RD = arrays.cast(x_RD, StoreSettings(0, 64, 2, "float16"), "x", exact=True)
    np.testing.assert_array_equal(found_RD, x_RD.astype(np.float16))


@pytest.mark.parametrize("limit", [65520.0, -65520.0])
def test_the_least_number_that_overflows(limit: float) -> None:
    settings = StoreSettings(0, 64, 2, "float16")
    within = np.array([[np.nextafter(np.float32(limit), np.float32(0)), np.inf, np.nan]], np.float32)
    assert np.abs(arrays.cast(within, settings, "x", exact=True)[0, 0]) == 65504
    with pytest.raises(OverflowError16):
        arrays.cast(np.array([[limit]], np.float32), settings, "x", exact=True)
