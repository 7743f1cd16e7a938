"""Manifests of any content, with and without the digest that their names should carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.parquet import columns, parquet, rows_of, spoilt_parquet
from tests.fuzz.stores import Sound, describe, read

from substyle.engine.store import manifest
from substyle.engine.store.files import digest
from substyle.engine.store.layout import SPLITS, StoreError
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.store import EmbeddingStore

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "key": pa.string(),
        "label": pa.int32(),
        "class_name": pa.string(),
        "split": pa.string(),
        "given": pa.string(),
    }
)


@pytest.fixture
def grown(sound: Sound) -> Sound:
    """The store with a second segment: an image of a new class, one of an old class and one without."""
    store = EmbeddingStore.open(sound.path)
    store.add_images(["a", "b", "c"], np.array([2, 0, -1]), ["cat", "dog", "owl"], np.array([0, 1, 2], np.int8))
    return describe(sound.path)


def segment(store: Sound, number: int) -> Path:
    return manifest.segments(store.path)[number]


@pytest.mark.parametrize("number", [0, 1])
def test_another_content_is_refused(grown: Sound, number: int, cases: int) -> None:
    path = segment(grown, number)
    data = path.read_bytes()

    def check(content: bytes | None) -> None:
        put(path, content)
        answers = read(grown)
        assert content == data or answers <= 3  # the journal and the backbones can still be read

    examine(check, st.one_of(spoilt_parquet(data, SCHEMA), st.none()), cases=cases // 4)


@pytest.mark.parametrize("number", [0, 1])
def test_content_made_on_purpose_is_refused_or_read_as_it_is(grown: Sound, number: int, cases: int) -> None:
    path = segment(grown, number)
    data = path.read_bytes()
    path.unlink()

    def check(content: bytes) -> None:
        forged = path.with_name(f"segment-{number:05d}-{digest(content)}.parquet")
        put(forged, content)
        try:
            read(grown, exact=False)
            loaded = attempt(EmbeddingStore.open(grown.path).manifest, names=grown.names)
            if loaded is not None:
                assert_says(
                    loaded, [row for file in manifest.segments(grown.path) for row in rows_of(file.read_bytes())]
                )
        finally:
            forged.unlink()

    examine(check, spoilt_parquet(data, SCHEMA), cases=cases // 4)


def assert_says(loaded: Manifest, rows: list[dict[str, Any]]) -> None:
    """A manifest holds these rows, each image once, each class under one label."""
    assert loaded.row_N.tolist() == [row["row"] for row in rows]
    assert list(loaded.keys) == [row["key"] for row in rows]
    assert len(set(loaded.keys)) == len(rows)
    assert (np.diff(loaded.row_N) > 0).all()
    assert loaded.rows < 100
    names = [None if label < 0 else loaded.class_names[label] for label in loaded.label_N.tolist()]
    assert names == [row["class_name"] for row in rows]
    assert len(set(loaded.class_names)) == len(loaded.class_names)
    assert [SPLITS[code] for code in loaded.split_N.tolist()] == [row["split"] for row in rows]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"row": None}, "rows 0 to "),
        ({"row": -1}, "rows 0 to "),
        ({"row": 1}, "rows 0 to "),
        ({"row": 2**62}, "rows 0 to "),
        ({"key": None}, "keys"),
        ({"key": "1.jpg"}, "keys"),
        ({"split": None}, "splits"),
        ({"split": "testing"}, "splits"),
        ({"label": None}, "labels"),
        ({"label": -2}, "labels"),
        ({"label": 7}, "labels"),
        ({"label": -1}, "labels"),
        ({"class_name": None}, "labels"),
        ({"class_name": "owl"}, "labels"),
        ({"label": 2}, "labels"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(sound: Sound, changes: dict[str, Any], named: str) -> None:
    path = segment(sound, 0)
    rows = rows_of(path.read_bytes())
    rows[0].update(changes)
    path.unlink()
    table = columns(rows, SCHEMA)
    assert table is not None
    content = parquet(table)
    put(path.with_name(f"segment-00000-{digest(content)}.parquet"), content)
    with pytest.raises(StoreError, match=f"images.parquet.*{named}"):
        EmbeddingStore.open(sound.path).manifest()
    assert read(sound, exact=False) == 3


@pytest.mark.parametrize(
    ("keys", "labels", "names"),
    [
        (["0.jpg"], [0], ["cat", "dog"]),
        (["x", "x"], [0, 1], ["cat", "dog"]),
        (["\udcff"], [0], ["cat", "dog"]),
        (["x"], [3], ["cat", "dog", "owl", "cow"]),
        (["x"], [0], ["dog", "cat"]),
    ],
)
def test_what_could_not_be_read_is_not_written(
    sound: Sound, keys: list[str], labels: list[int], names: list[str]
) -> None:
    store = EmbeddingStore.open(sound.path)
    with pytest.raises(StoreError, match=f"{sound.path}/images.parquet: "):
        store.add_images(keys, np.array(labels), names, np.zeros(len(keys), np.int8))
    assert read(sound) == 6
