"""Embeddings made elsewhere, of any content: refused by name, or every number stands in the store."""

from __future__ import annotations

import io
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.parquet import parquet, spoilt_parquet

from substyle.engine.store.importer import import_store
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.errors import SubstyleError

KEYS, NAMES = ("a", "b", "c"), ("identity", "jpeg")
TEXTS = ("key", "transformation", "label", "split")
SCHEMA = pa.schema(dict.fromkeys(TEXTS, pa.string()) | {"embedding": pa.list_(pa.float32())})
ROWS: list[dict[str, Any]] = [
    {
        "key": key,
        "transformation": name,
        "label": "even" if n % 2 else "odd",
        "split": ("train", "val", "test")[n],
        "embedding": [n + 0.5, -1.0],
    }
    for n, key in enumerate(KEYS)
    for name in NAMES
]


def npy(array: Any) -> bytes:  # noqa: ANN401
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def csv(rows: list[dict[str, Any]]) -> bytes:
    names = list(SCHEMA.names[:-1])
    return "\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]).encode()


def assert_holds(store: Path, backbone: str, x_RD: Any, rows: list[dict[str, Any]]) -> None:  # noqa: ANN401
    opened = EmbeddingStore.open(store)
    table = load_table(opened, backbone)
    assert np.isfinite(table.x_TND).all()
    assert len(rows) == len(table.keys) * len(table.transformations)
    for row, x_D in zip(rows, np.asarray(x_RD, np.float32), strict=True):
        t, n = table.transformations.index(row["transformation"]), table.keys.index(row["key"])
        np.testing.assert_array_equal(table.x_TND[t, n], x_D.astype(opened.settings.dtype))
        if row.get("label"):
            assert table.class_names[table.label_N[n]] == str(row["label"])
        else:
            assert table.label_N[n] == -1


def test_any_parquet(tmp_path: Path, cases: int) -> None:
    path, numbers = tmp_path / "made.parquet", itertools.count()
    names = (path.name, "embedding", "column", "split", "transformation", "label", "key")

    def check(content: bytes | None) -> None:
        put(path, content)
        store = tmp_path / f"{next(numbers)}.zarr"
        if attempt(import_store, path, store, "import:x", names=names) is None:
            assert not store.exists(), "what cannot be imported leaves a store"
            return
        rows = pq.read_table(path).to_pylist()
        assert_holds(store, "import:x", [row["embedding"] for row in rows], rows)
        shutil.rmtree(store)

    examine(
        check,
        st.one_of(spoilt_parquet(parquet(pa.Table.from_pylist(ROWS, SCHEMA)), SCHEMA), st.none()),
        cases=cases // 2,
    )


def changed_rows(at: int = 1, **changes: object) -> pa.Table:
    return pa.Table.from_pylist([row | changes if n == at else row for n, row in enumerate(ROWS)], SCHEMA)


def with_column(name: str, column: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    return table.set_column(table.column_names.index(name), name, column)


FOUND = [
    (changed_rows(embedding=[1.0]), "embedding of made.parquet: got 'lists of several lengths'"),
    (changed_rows(embedding=[None, 1.0]), "finite numbers"),
    (changed_rows(key=None), "key of made.parquet: got '.* row 1'"),
    (changed_rows(transformation=None), "transformation of made.parquet: got '.* row 1'"),
    (changed_rows(label="third"), "label of a: got 'odd and third'"),  # the first row's was taken in silence
    (changed_rows(split="test"), "split of a: got 'train and test'"),
    (with_column("embedding", pa.array([["1", "2"]] * 6)), "got 'list<.*string>'; allowed: lists of numbers"),
    (with_column("embedding", pa.array([[]] * 6, pa.list_(pa.float32()))), r"got 'array \(6, 0\)"),
    (with_column("embedding", pa.array([[1e300, 0.0]] * 6)), "within float32's range"),
    (with_column("key", pa.array([[1]] * 6)), "made.parquet: "),
    (pa.Table.from_pylist(ROWS, SCHEMA).append_column("key", pa.array(["a"] * 6)), "made.parquet"),
    (pa.table({}), "columns of made.parquet"),
]


@pytest.mark.parametrize(("table", "named"), FOUND)
def test_parquet_that_is_not_embeddings_is_refused(tmp_path: Path, table: pa.Table, named: str) -> None:
    path = tmp_path / "made.parquet"
    path.write_bytes(parquet(table))
    with pytest.raises(SubstyleError, match=named):
        import_store(path, tmp_path / "s.zarr", "import:x")
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", ": "),
        (b"\x93NUMPY\x01\x00\x0a\x00{'a': (((\n" + bytes(48), ": "),
        (npy(np.zeros((6, 2), "S3")), "an array of |S3"),
        (npy(np.zeros((6, 2), "c8")), "an array of complex64"),
        (npy(np.zeros(())), "finite numbers"),
        (npy(np.full((6, 2), 1e300)), "within float32's range"),  # it was stored as infinity
        (npy(np.zeros((6, 2)))[:8] + npy(np.zeros((6, 2)))[8:].replace(b"(6, 2)", b"(6000000000000, 2)"), ": "),
    ],
)
def test_arrays_that_are_not_embeddings_are_refused(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "made.npy").write_bytes(content)
    (tmp_path / "rows.csv").write_bytes(csv(ROWS))
    with pytest.raises(SubstyleError, match=f"made.npy.*{named}"):
        import_store(tmp_path / "made.npy", tmp_path / "s.zarr", "import:x", rows=tmp_path / "rows.csv")
    assert not (tmp_path / "s.zarr").exists()
