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
from tests.fuzz.mutations import garbage, junk, spoilt
from tests.fuzz.parquet import parquet, spoilt_parquet

from substyle.engine.importing import import_store
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.load import load_table
from substyle.kernels.errors import SubstyleError

KEYS, NAMES = ("a", "b", "c"), ("identity", "jpeg")
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "transformation": pa.string(),
        "label": pa.string(),
        "split": pa.string(),
        "embedding": pa.list_(pa.float32()),
    }
)
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


def arrays() -> st.SearchStrategy[bytes]:
    """Arrays of every kind of number and shape, right ones among them."""
    shapes = st.sampled_from([(6, 2), (6, 2), (6, 1), (6, 0), (5, 2), (0, 2), (6,), (), (6, 2, 1), (1, 6, 2)])
    kinds = st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "i8", "u8", "?", "c8", "S3", "U2", "M8[s]", "m8[s]", "V4", "f4,i4"])
    values = st.sampled_from([0, 1, 60_000, 65_519, 65_520, 1e30, 1e39, 1e300, np.nan, np.inf, -(2**62)])

    def make(shape: tuple[int, ...], kind: str, value: float) -> bytes:
        array = np.zeros(shape, kind)
        if array.size and array.dtype.kind in "fiuc":
            with np.errstate(all="ignore"):
                array.flat[-1] = np.array(value).astype(array.dtype)
        return npy(array)

    return st.builds(make, shapes, kinds, values)


def assert_holds(store: Path, backbone: str, x_RD: Any, rows: list[dict[str, Any]]) -> None:  # noqa: ANN401
    """A store holds these rows, and nothing else."""
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


@pytest.fixture
def place(tmp_path: Path) -> Any:  # noqa: ANN401
    """Names of stores, one after another; the one before is removed."""

    def names() -> Any:  # noqa: ANN401
        for number in itertools.count():
            shutil.rmtree(tmp_path / f"{number - 1}.zarr", ignore_errors=True)
            yield tmp_path / f"{number}.zarr"

    return names()


def test_any_parquet(tmp_path: Path, cases: int, place: Any) -> None:  # noqa: ANN401
    path = tmp_path / "made.parquet"
    names = (path.name, "embedding", "column", "split", "transformation", "label", "key")

    def check(content: bytes | None) -> None:
        put(path, content)
        store = next(place)
        if attempt(import_store, path, store, "import:x", names=names) is None:
            assert not store.exists(), "what cannot be imported leaves a store"
            return
        rows = pq.read_table(path).to_pylist()
        assert_holds(store, "import:x", [row["embedding"] for row in rows], rows)

    examine(check, st.one_of(spoilt_parquet(parquet(pa.Table.from_pylist(ROWS, SCHEMA)), SCHEMA), st.none()), cases=cases // 2)


def test_any_array(tmp_path: Path, cases: int, place: Any) -> None:  # noqa: ANN401
    path, rows = tmp_path / "made.npy", tmp_path / "rows.csv"
    rows.write_bytes(csv(ROWS))
    good = npy(np.arange(12, dtype=np.float32).reshape(6, 2))

    def check(content: bytes | None) -> None:
        put(path, content)
        store = next(place)
        if attempt(import_store, path, store, "import:x", rows=rows, names=(path.name, "embedding")) is None:
            assert not store.exists()
            return
        assert_holds(store, "import:x", np.load(path), ROWS)

    examine(check, st.one_of(arrays(), spoilt(good), garbage(), st.none()), cases=cases // 4)


def test_any_list_of_rows(tmp_path: Path, cases: int, place: Any) -> None:  # noqa: ANN401
    path, rows = tmp_path / "made.npy", tmp_path / "rows.csv"
    x_RD = np.arange(12, dtype=np.float32).reshape(6, 2)
    path.write_bytes(npy(x_RD))
    names = (path.name, rows.name, "embedding", "column", "split", "transformation", "label", "--rows")
    cells = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SCHEMA.names[:-1]), junk()), max_size=3)

    def with_cells(changes: list[tuple[int, str, Any]]) -> bytes:
        made = [dict(row) for row in ROWS]
        for at, name, value in changes:
            made[at][name] = str(value)[:300]
        return "\n".join(
            [",".join(SCHEMA.names[:-1]), *(",".join(str(row[name]) for name in SCHEMA.names[:-1]) for row in made)]
        ).encode("utf-8", "surrogatepass")

    def check(content: bytes | None) -> None:
        put(rows, content)
        store = next(place)
        if attempt(import_store, path, store, "import:x", rows=rows, names=names) is None:
            assert not store.exists()
            return
        table = load_table(EmbeddingStore.open(store), "import:x")
        assert {tuple(x_D) for x_D in table.x_TND.reshape(-1, 2).tolist()} == {tuple(x_D) for x_D in x_RD.tolist()}

    examine(check, st.one_of(cells.map(with_cells), spoilt(csv(ROWS)), garbage(), st.none()), cases=cases // 4)


@pytest.mark.parametrize("name", ["", " ", "/", "..", "é", "\udcff", "\ud800", "a\x00b", "a\nb", "x" * 5_000, "onnx:/é ü.onnx"])
def test_any_name_of_a_backbone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), path)
    store = tmp_path / "s.zarr"
    try:
        import_store(path, store, name)
    except SubstyleError as error:
        assert "backbone" in str(error)
        assert not store.exists()
    else:
        assert_holds(store, name, [row["embedding"] for row in ROWS], ROWS)
