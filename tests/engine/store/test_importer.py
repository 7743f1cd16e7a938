"""Embeddings made elsewhere: what is read of their file, and what the store's dtype holds of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from substyle.engine.store import importer
from substyle.engine.store.importer import import_store
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.errors import ConfigError


def write(path: Path, x_ND: np.ndarray, first: int = 0) -> Path:
    columns = {"key": [f"k{first + n}" for n in range(len(x_ND))], "transformation": ["identity"] * len(x_ND)}
    pq.write_table(pa.table({**columns, "embedding": list(x_ND)}), path, compression="none")
    return path


def held(path: Path) -> dict[str, np.ndarray]:
    table = load_table(EmbeddingStore.open(path), "mine")
    return dict(zip(table.keys, np.asarray(table.x_TND)[0], strict=True))


def drawn(scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal((20, 8))).astype(np.float32)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, "float16"), (1e-6, "float32"), (1e-8, "float32"), (1e5, "float32")])
def test_a_store_holds_numbers_of_any_size(tmp_path: Path, scale: float, dtype: str) -> None:
    path = write(tmp_path / "x.parquet", drawn(scale))
    import_store(path, tmp_path / "s.zarr", "mine")
    store = EmbeddingStore.open(tmp_path / "s.zarr")
    assert store.settings.dtype == dtype
    for n, row_D in enumerate(drawn(scale)):
        np.testing.assert_allclose(held(tmp_path / "s.zarr")[f"k{n}"], row_D, rtol=1e-3)
    if dtype == "float32":
        with pytest.raises(ConfigError, match="standard deviation"):
            import_store(path, tmp_path / "half.zarr", "mine", dtype="float16")


def test_names_of_backbones_that_are_loaded_are_not_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", drawn())
    with pytest.raises(ConfigError, match="import:package:efficientnet_lite0"):
        import_store(path, tmp_path / "s.zarr", "package:efficientnet_lite0")
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("kind", ["parquet", "folder", "npy"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_in_any_order_and_more_than_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    monkeypatch.setattr(importer, "_ROWS", 7)
    rng = np.random.default_rng(1)
    x_RD = rng.standard_normal((80, 5)).astype(dtype)
    rows = [(f"k{n}", name) for n in range(40) for name in ("identity", "jpeg")]
    order = rng.permutation(len(rows))
    columns = {"key": [rows[r][0] for r in order], "transformation": [rows[r][1] for r in order]}
    table, given = pa.table({**columns, "embedding": list(x_RD[order])}), tmp_path / "given"
    if kind == "parquet":
        pq.write_table(table, given, row_group_size=9)
    elif kind == "folder":
        given.mkdir()
        pq.write_table(table.slice(0, 33), given / "a.parquet")
        pq.write_table(table.slice(33), given / "b.parquet", row_group_size=11)
    else:
        given = tmp_path / "given.npy"
        np.save(given, x_RD[order])
        pa.csv.write_csv(table.drop_columns("embedding"), tmp_path / "rows.csv")
    import_store(given, tmp_path / "s.zarr", "mine", rows=tmp_path / "rows.csv" if kind == "npy" else None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "tmp"))) == []
    found = load_table(EmbeddingStore.open(tmp_path / "s.zarr"), "mine")
    for t, name in enumerate(found.transformations):
        for n, key in enumerate(found.keys):
            np.testing.assert_array_equal(found.x_TND[t, n], x_RD[rows.index((key, name))].astype(np.float16))


def test_the_same_numbers_are_the_same_embeddings_in_any_dtype(tmp_path: Path) -> None:
    half_ND = drawn().astype(np.float16)
    spread = tmp_path / "spread"
    spread.mkdir()
    write(spread / "a.parquet", half_ND[:7])
    write(spread / "b.parquet", half_ND[7:].astype(np.float32), first=7)
    given = [write(tmp_path / dtype, half_ND.astype(dtype)) for dtype in ("float16", "float32", "float64")]
    digests = set()
    for n, path in enumerate((*given, spread)):
        import_store(path, tmp_path / f"{n}.zarr", "mine")
        digests.add(EmbeddingStore.open(tmp_path / f"{n}.zarr").backbone("mine").facts["spec"]["weights_hash"])
        for key, row_D in held(tmp_path / f"{n}.zarr").items():
            np.testing.assert_array_equal(row_D, half_ND[int(key[1:])])
    # of keys, transformations and float32 numbers, as in stores of earlier versions
    keys = sorted(f"k{n}" for n in range(20))
    digest = hashlib.sha256(json.dumps([keys, ["identity"]]).encode())
    digest.update(half_ND[[int(key[1:]) for key in keys]].astype(np.float32).tobytes())
    assert digests == {digest.hexdigest()[:16]}


def test_every_file_of_a_folder_has_embeddings(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", drawn())
    pq.write_table(pa.table({"key": ["z"], "transformation": ["identity"]}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"columns of b\.parquet"):
        import_store(tmp_path, tmp_path / "s.zarr", "mine")
    write(tmp_path / "b.parquet", np.array([["text"]]), first=20)
    with pytest.raises(ConfigError, match="list<element: string>"):
        import_store(tmp_path, tmp_path / "s.zarr", "mine")


def test_what_a_dtype_holds_is_by_standard_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "_ROWS", 32)
    rng = np.random.default_rng(2)
    for _ in range(200):
        count, width = rng.integers(1, 200), rng.integers(1, 120)
        x_RD = rng.standard_normal((count, width)) * 10 ** rng.uniform(-8, 3, width) + 10 ** rng.uniform(-3, 3)
        x_RD[:, rng.random(width) < 0.3] = 0.1  # constant, and not a number of float16
        x_RD = x_RD.astype(np.float32)
        plain_RD = x_RD.astype(np.float64)
        worse_D = (x_RD.astype(np.float16) - plain_RD).std(axis=0) > 0.01 * plain_RD.std(axis=0)
        worse_D &= x_RD.min(axis=0) < x_RD.max(axis=0)
        assert importer._holds("float16", x_RD) == (100 * worse_D.sum() <= width)
    assert not importer._holds("float16", np.full((40, 3), 1e6, np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, dtype: str, number: float) -> None:
    x_ND = drawn().astype(dtype)
    x_ND[11, 3] = number
    with pytest.raises(ConfigError, match="not finite in rows 0 to 19"):
        import_store(write(tmp_path / "x.parquet", x_ND), tmp_path / "s.zarr", "mine")
    assert not (tmp_path / "s.zarr").exists()


def test_a_large_row_group_is_not_held(tmp_path: Path) -> None:
    x_RD = np.random.default_rng(3).standard_normal((80_000, 256)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x_RD.ravel()), x_RD.shape[1])
    pq.write_table(pa.table({"embedding": lists}), tmp_path / "x.parquet", row_group_size=len(x_RD), compression="none")
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        blocks = importer._list_blocks(tmp_path, [str(tmp_path / "x.parquet")])
        read = [np.array_equal(x_BD, x_RD[4096 * i :][:4096]) for i, x_BD in enumerate(blocks)]
    finally:
        pa.set_memory_pool(before)
    assert len(read) == 20
    assert all(read)
    assert pool.max_memory() < x_RD.nbytes / 2


def test_an_array_of_no_row_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 5), np.float16))
    (tmp_path / "x.csv").write_text("key,transformation\n")
    with pytest.raises(ConfigError, match=r"embeddings of x\.npy.*\(0, 5\)"):
        import_store(tmp_path / "x.npy", tmp_path / "s.zarr", "mine", rows=tmp_path / "x.csv")
