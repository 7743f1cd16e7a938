"""Tokens in a store: arrays (N, P, D) for every Zarr reader, rows of P · D numbers inside, and their means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from tests.engine.store.test_store import FOUND, SETTINGS, facts, make, note

from substyle.engine.store.catalog import files, read
from substyle.engine.store.layout import Codec, DifferentError, StoreError, StoreSettings
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, open_table
from substyle.engine.store.tokens import averaged
from substyle.engine.store.verify import verify
from substyle.pipelines.storage import Place

NAME, P, D = "timm:x@tokens=2", 4, 3


def of_tokens(tokens: int = P) -> dict[str, Any]:
    made = facts(NAME, dim=P * D)
    return made | {"spec": made["spec"] | {"tokens": tokens}}


def filled(path: Place, codec: Codec = "none") -> tuple[EmbeddingStore, np.ndarray[Any, np.dtype[np.float32]]]:
    """Six images in two shards, by one backbone without and one with tokens."""
    store, _ = make(path, settings=StoreSettings(**{**vars(SETTINGS), "codec": codec}))
    entry = store.ensure_backbone(of_tokens(), FOUND)
    x_TND = np.random.default_rng(0).normal(size=(2, 6, P * D)).astype(np.float32)
    for shard in range(2):
        own = slice(4 * shard, 4 * shard + 4)
        rows = {d.name: x_TND[t, own] for t, d in enumerate(FOUND)}
        notes = [note(i) for i in range(6)[own]]
        store.write_shard(entry, shard, rows, notes, seconds=1.0, run="r")
    return EmbeddingStore.open(path), x_TND.astype(np.float16)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_zarr_reads_tokens(tmp_path: Path, codec: Codec) -> None:
    store, x_TND = filled(tmp_path / "s.zarr", codec)
    entry = store.backbone(NAME)
    for t, name in enumerate(("identity", "jpeg")):
        array = zarr.open_array(str(tmp_path / "s.zarr" / "embeddings" / entry.slug / name), mode="r")
        assert (array.shape, array.chunks) == ((6, P, D), (4, P, D))
        assert array.metadata.dimension_names == ("image", "token", "feature")  # type: ignore[union-attr]
        np.testing.assert_array_equal(array[:], x_TND[t].reshape(6, P, D))
    assert (entry.tokens, entry.dim, entry.shape) == (P, P * D, (P, D))


def test_rows_and_labelled_arrays(disk: Place) -> None:
    store, x_TND = filled(disk / "s.zarr")
    loaded, opened = load_table(store, NAME), open_table(store, NAME)
    np.testing.assert_array_equal(loaded.x_TND, x_TND)
    assert (opened.tokens, opened.width) == (P, P * D)
    np.testing.assert_array_equal(opened.take(np.array([1, 0, 1]), np.array([5, 2, 0])), x_TND[[1, 0, 1], [5, 2, 0]])
    pytest.importorskip("xarray")
    labelled = opened.to_xarray()
    assert labelled.dims == ("transformation", "image", "token", "feature")
    np.testing.assert_array_equal(labelled.values, x_TND.reshape(2, 6, P, D))


def test_means_over_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazily, in pieces, and from memory: the same numbers, rounded once."""
    store, x_TND = filled(tmp_path / "s.zarr")
    expected = x_TND.reshape(2, 6, P, D).astype(np.float32).mean(2).astype(np.float16)
    lazy, loaded = averaged(open_table(store, NAME)), averaged(load_table(store, NAME))
    assert (lazy.tokens, lazy.width, loaded.width) == (0, D, D)
    np.testing.assert_array_equal(loaded.x_TND, expected)
    t_B, n_B = np.array([1, 0, 1, 1]), np.array([5, 2, 0, 5])
    for piece in (1, 1 << 20):
        monkeypatch.setattr("substyle.engine.store.tokens._PIECE", piece)
        assert not isinstance(lazy.x_TND, np.ndarray)
        np.testing.assert_array_equal(lazy.x_TND.whole(), expected)
        np.testing.assert_array_equal(lazy.take(t_B, n_B), expected[t_B, n_B])
        np.testing.assert_array_equal(loaded.take(1, n_B), lazy.take(1, n_B))
        part = np.empty((3, D), np.float16)
        lazy.part(1, 2, 5, part)
        np.testing.assert_array_equal(part, expected[1, 2:5])
    other = open_table(store, NAME)
    assert averaged(averaged(other)).width == D


def test_a_store_of_tokens_is_verified(home: Place) -> None:
    """Chunks are found two folders deeper; a damaged one is named, and leftovers are not foreign."""
    store, _ = filled(home / "s.zarr")
    assert verify(store.path, quiet=True).ok
    entry = store.backbone(NAME)
    chunk = store.chunk_path(entry.slug, "jpeg", 1)
    assert str(chunk).endswith("jpeg/c/1/0/0")
    data = chunk.read_bytes()
    for damaged in (data[:-1], b"\0" * len(data)):
        chunk.write(damaged)
        found = verify(store.path, note=False, quiet=True)
        assert found.files("chunk") == (f"embeddings/{entry.slug}/jpeg/c/1/0/0",)
        assert found.broken == {(1, entry.slug): {"jpeg"}}
    chunk.remove()
    with pytest.raises(StoreError, match="missing or truncated"):
        open_table(store, NAME)


def test_another_number_of_tokens_is_refused(tmp_path: Path) -> None:
    store, _ = filled(tmp_path / "s.zarr")
    with pytest.raises(DifferentError, match="tokens 4 in the store, 2 now"):
        store.ensure_backbone(of_tokens(2), FOUND)
    other = EmbeddingStore.create(tmp_path / "o.zarr", SETTINGS)
    other.add_images(["a"], np.zeros(1, np.int64), ["x"], np.zeros(1, np.int8))
    other.ensure_backbone(of_tokens(5), FOUND)  # 12 numbers are not five tokens
    with pytest.raises(StoreError, match="damaged catalog file"):
        read(files(other.path))


def test_metadata_of_tokens_are_written_again(tmp_path: Path) -> None:
    store, x_TND = filled(tmp_path / "s.zarr")
    path = tmp_path / "s.zarr" / "embeddings" / store.backbone(NAME).slug / "jpeg" / "zarr.json"
    whole = json.loads(path.read_bytes())
    path.write_bytes(b"{}")
    assert verify(store.path, quiet=True).files("metadata")
    assert EmbeddingStore.open(store.path).repair()
    assert json.loads(path.read_bytes()) == whole
    np.testing.assert_array_equal(load_table(EmbeddingStore.open(store.path), NAME).x_TND, x_TND)
