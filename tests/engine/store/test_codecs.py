"""Compressed chunks hold the values that a codec keeps, for this engine and for any Zarr reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from tests.engine.store.test_store import FOUND, SETTINGS, by_zarr, facts, make, note

from substyle.engine.store import arrays
from substyle.engine.store.layout import Codec, Dtype
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, open_table
from substyle.engine.store.verify import verify
from substyle.pipelines.storage import Place

CODECS: tuple[Codec, ...] = get_args(Codec)


def filled(
    path: Place,
    codec: Codec,
    dtype: Dtype = "float16",
    gate: dict[str, float] | None = {"cosine_min": 1.0},  # noqa: B006
) -> tuple[EmbeddingStore, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    """A store of six images in two shards, the last of which is short, and what it was given."""
    store, _ = make(path, settings=dataclasses.replace(SETTINGS, codec=codec, dtype=dtype))
    entry = store.ensure_backbone({**facts("timm:z"), "gate": gate}, FOUND)
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=(6, 3)).astype(np.float32) for name in ("identity", "jpeg")}
    given["jpeg"][5] = np.nan
    for shard, own in ((0, slice(0, 4)), (1, slice(4, 6))):
        notes = [note(row, reason="truncated" if row == 5 else "") for row in range(*own.indices(6))]
        part = {name: x[own] for name, x in given.items()}
        store.write_shard(entry, shard, part, notes, seconds=1.0, run="r")
    kept = {name: arrays.rounded(x.astype(dtype), codec if gate else "none") for name, x in given.items()}
    return EmbeddingStore.open(path), kept


def homes(codecs: tuple[Codec, ...]) -> list[Any]:
    """Every codec on a disk, and one in a bucket, which gets the same bytes."""
    return [*(("disk", codec) for codec in codecs), pytest.param("bucket", "bitround+zstd", marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("home", "codec"), homes(CODECS), indirect=["home"])
def test_every_codec_is_read_by_zarr_and_by_us(home: Place, codec: Codec, dtype: Dtype) -> None:
    store, kept = filled(home / "s.zarr", codec, dtype)
    entry = store.backbone("timm:z")
    for name, x in kept.items():
        array = store.catalog.array(entry.slug, name)
        t = array.transformations.index(name)
        np.testing.assert_array_equal(np.asarray(by_zarr(array.node(store.path))[t]), x)
        for start, stop in ((0, 6), (1, 3), (3, 5), (5, 6), (2, 2)):
            np.testing.assert_array_equal(store.read(entry, name, start, stop), x[start:stop])
    whole = load_table(store, entry.name)
    np.testing.assert_array_equal(whole.x_TND, np.stack([x[:5] for x in kept.values()]))
    t_B, n_B = np.array([1, 0, 1, 0]), np.array([4, 2, 0, 2])
    np.testing.assert_array_equal(open_table(store, entry.name).take(t_B, n_B), whole.x_TND[t_B, n_B])
    size = sum(len(store.shard_path(entry.slug, "jpeg", shard).read_bytes()) for shard in (0, 1))
    assert store.stored_bytes(entry, list(kept)) == size
    assert verify(home / "s.zarr", note=False, quiet=True).ok


def test_embeddings_without_a_gate_are_not_rounded(tmp_path: Path) -> None:
    """Image statistics lose accuracy, and imported embeddings are what the user gave."""
    store, kept = filled(tmp_path / "s.zarr", "bitround+zstd", gate=None)
    np.testing.assert_array_equal(store.read(store.backbone("timm:z"), "jpeg"), kept["jpeg"])


@given(
    x=numpy_arrays(np.float32, st.integers(1, 40), elements=st.floats(-6e4, 6e4, width=32, allow_subnormal=False)),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_rounding_keeps_the_precision_of_bfloat16(x: np.ndarray, dtype: str) -> None:  # type: ignore[type-arg]
    cast = x.astype(dtype)
    kept = arrays.rounded(cast, "bitround+zstd")
    assert kept.dtype == cast.dtype
    smallest = np.finfo(dtype).smallest_normal  # type: ignore[arg-type]
    normal = np.abs(cast) >= smallest
    assert (np.abs(kept - cast.astype(np.float64)) <= np.abs(cast) * 2.0**-8 + (~normal) * smallest).all()
    np.testing.assert_array_equal(arrays.rounded(kept, "bitround+zstd"), kept)
    for lossless in ("none", "zstd", "blosc"):
        assert arrays.rounded(cast, lossless) is cast


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
@pytest.mark.parametrize("rows", [1, 3, 1000, 1 << 20])
def test_a_chunk_of_another_size_is_refused_before_it_is_decoded(
    codec: Codec, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(arrays.encode(np.zeros((rows, 64), np.float16), codec))
    assert arrays.decode(data, codec, np.dtype(np.float16), (rows, 64)).shape == (rows, 64)

    def fail(_: Codec) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(arrays, "_codec", fail)
    for other in (rows + 1, 2 * rows + 2):
        with pytest.raises(ValueError, match=f"{rows * 128} bytes, expected"):
            arrays.decode(data, codec, np.dtype(np.float16), (other, 64))
