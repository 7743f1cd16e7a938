"""Rows that are read from a store when they are asked for are those of the table in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import put
from tests.engine.store.test_store import make, note, rows

from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table, open_table
from substyle.pipelines.storage import LocalPlace, Place


def filled(path: Place) -> Place:
    """Ten images in three shards, two of them quarantined: rows are not all that lie between the first and the last."""
    store, entry = make(path, images=10)
    for shard in range(3):
        own = range(4 * shard, min(4 * shard + 4, 10))
        notes = [note(i, "broken" if i in (2, 7) else "") for i in own]
        store.write_shard(entry, shard, rows(shard, len(own)), notes, seconds=1.0, run="r")
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingTable, EmbeddingTable]:
    store = EmbeddingStore.open(filled(tmp_path_factory.mktemp("store") / "s.zarr"))
    return load_table(store, "timm:x"), open_table(store, "timm:x")


@given(cells=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7)), max_size=30))
@settings(deadline=None, max_examples=60)
def test_any_rows_in_any_order(both: tuple[EmbeddingTable, EmbeddingTable], cells: list[tuple[int, int]]) -> None:
    """Also the same row twice, and none at all; with rows read through and with a call for each."""
    loaded, opened = both
    t_B, n_B = np.array(cells, np.int64).reshape(-1, 2).T
    expected = loaded.take(t_B, n_B)
    with pytest.MonkeyPatch.context() as patch:
        for near in (1 << 14, -1):
            patch.setattr(LocalPlace, "near", near)
            np.testing.assert_array_equal(opened.take(t_B, n_B), expected)
    for table in both:
        into = np.zeros((len(cells) + 1, 3), np.float16)
        assert table.take(t_B, n_B, into[:-1]).base is into
        np.testing.assert_array_equal(into[:-1], expected)
        assert not into[-1].any()


@pytest.mark.parametrize(("first", "last"), [(0, 8), (0, 2), (1, 5), (4, 8), (3, 4)])
def test_any_part_of_a_transformation(both: tuple[EmbeddingTable, EmbeddingTable], first: int, last: int) -> None:
    loaded, opened = both
    parts = [np.zeros((last - first, 3), np.float16) for _ in both]
    for table, part in zip(both, parts, strict=True):
        table.take(1, np.arange(first, last), part)
    np.testing.assert_array_equal(parts[0], loaded.take(1, np.arange(first, last)))
    np.testing.assert_array_equal(parts[1], parts[0])
    np.testing.assert_array_equal(opened.take(1, np.arange(first, last)), parts[0])


def test_a_labelled_array(both: tuple[EmbeddingTable, EmbeddingTable]) -> None:
    pytest.importorskip("xarray")
    loaded, _ = both
    for table in both:
        array = table.to_xarray()
        assert array.dims == ("transformation", "image", "feature")
        assert array.name == "timm:x"
        jpeg = array.sel(transformation="jpeg", image="4.jpg")
        np.testing.assert_array_equal(jpeg, loaded.take(1, np.array([loaded.keys.index("4.jpg")]))[0])
        assert (str(jpeg["class"].item()), str(jpeg.split.item()), str(jpeg.kind.item())) == (
            "cat",
            "train",
            "quality",
        )
        assert array.where(array["class"] == "dog", drop=True).sizes["image"] == 4
        assert bool(array.distinct.sel(transformation="identity").all())
    unlabelled = replace(loaded, label_N=np.full(8, -1), class_names=("cat", "dog"))
    assert set(unlabelled.to_xarray()["class"].values) == {""}
    assert "class" not in replace(loaded, class_names=()).to_xarray().coords


def test_xarray_opens_the_arrays_of_a_store(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    store = EmbeddingStore.open(filled(tmp_path / "s.zarr"))
    (entry,) = store.backbones()
    tree = xarray.open_datatree(tmp_path / "s.zarr", engine="zarr", consolidated=False)
    array = store.catalog.array(entry.slug, "jpeg")
    found = tree[f"embeddings/{entry.slug}/{array.name}"]
    assert found.dims == (f"transformation_{array.name}", "image", "feature")
    assert [each["name"] for each in found.attrs["substyle"]["transformations"]] == ["identity", "jpeg"]
    np.testing.assert_array_equal(found[1], store.read(entry, "jpeg"))


@pytest.mark.parametrize("near", [1 << 20, 0])
def test_rows_are_the_same_on_a_disk_and_in_a_bucket(
    both: tuple[EmbeddingTable, EmbeddingTable], home: Place, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(home), "near", near)
    loaded, _ = both
    store = EmbeddingStore.open(filled(home / "s.zarr"))
    table = open_table(store, "timm:x")
    t_B, n_B = np.array([1, 0, 0, 1, 1, 0]), np.array([7, 0, 6, 2, 7, 1])
    np.testing.assert_array_equal(table.take(t_B, n_B), loaded.take(t_B, n_B))
    np.testing.assert_array_equal(load_table(store, "timm:x").x_TND, loaded.x_TND)
    chunk = store.shard_path(store.backbone("timm:x").slug, "jpeg", 0)
    put(chunk, chunk.read_bytes()[:7])
    for _ in range(2):
        with pytest.raises(StoreError, match=r"c\.0\.0\.0: .*run substyle verify"):
            table.take(np.array([1]), np.array([1]))
        chunk.remove()
