"""Embeddings made elsewhere: what is read of their file, and what the store's dtype holds of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from substyle.engine.store.importer import import_store
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.errors import ConfigError


def write(path: Path, x_ND: np.ndarray, **more: pa.Array) -> Path:
    columns = {"key": [f"k{n}" for n in range(len(x_ND))], "transformation": ["identity"] * len(x_ND)}
    pq.write_table(pa.table({**columns, "embedding": list(x_ND), **more}), path, compression="none")
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
