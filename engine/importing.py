"""Embeddings made elsewhere, taken into a store of their own: then probe, analyze and report work as on any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from substyle.engine.store import journal, lock
from substyle.engine.store.embeddings import EmbeddingStore, StoreSettings, new_run_id
from substyle.engine.store.splits import assign
from substyle.engine.table import UNLABELLED
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.pipelines.plugins import load_all
from substyle.pipelines.transforms import base

SHARD_ROWS = 1024


def import_store(
    embeddings: Path, store_path: Path, backbone: str, *, rows: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Make a store from embeddings in a file.

    Args:
        embeddings: a Parquet file with columns ``key``, ``transformation``, ``embedding`` (a list of numbers), and
            optionally ``label`` (class name) and ``split`` (train, val, test); or a ``.npy`` array (rows, D).
        store_path: the new store.
        backbone: what to call the embeddings.
        rows: for ``.npy``: a CSV file with the columns above but ``embedding``, one line for each row.
        seed: seed of the splits where none are given.

    Returns:
        ``{"store", "backbone", "images", "transformations", "dim"}``.

    Raises:
        ConfigError: a file that is not as above, an unknown transformation, or an image that lacks one of them.
    """
    table, x_RD = _read(embeddings, rows)
    keys_R, names_R = table["key"].to_pylist(), table["transformation"].to_pylist()
    load_all()
    order = {name: t for t, name in enumerate(dict.fromkeys(["identity", *names_R]))}
    definitions = {name: base.get(name) for name in order}
    first = {key: r for r, key in reversed(list(enumerate(keys_R)))}
    keys = sorted(first)
    number = {key: n for n, key in enumerate(keys)}
    at_TN = np.full((len(order), len(keys)), -1, dtype=np.int64)
    for r, (key, name) in enumerate(zip(keys_R, names_R, strict=True)):
        if at_TN[order[name], number[key]] >= 0:
            raise ConfigError("embeddings", f"{key}, {name}", "each (key, transformation) once")
        at_TN[order[name], number[key]] = r
    if (at_TN < 0).any():
        t, n = np.argwhere(at_TN < 0)[0].tolist()
        raise ConfigError("embeddings", f"no {list(order)[t]} of {keys[n]}", "every transformation of every image")

    label_N, class_names = _labels([table["label"][first[key]].as_py() for key in keys])
    splits = [table["split"][first[key]].as_py() for key in keys]
    split_N = assign(keys, label_N.tolist(), splits, seed=seed)
    dtype = "float16" if np.abs(x_RD).max(initial=0.0) < 6e4 else "float32"
    shard_rows = min(SHARD_ROWS, 1 << max(len(keys) - 1, 1).bit_length())
    store = EmbeddingStore.create(store_path, StoreSettings(seed, base.CANVAS, shard_rows, dtype, str(embeddings)))
    with lock.hold(store_path, run := new_run_id()):
        store.add_images(keys, label_N, class_names, split_N)
        spec = {"weights_hash": "imported", "weights": f"imported from {embeddings.name}", "control": False}
        runtime = {"name": "imported", "precision": "as given"}
        entry = store.ensure_backbone(
            {"name": backbone, "dim": x_RD.shape[1], "spec": spec, "runtime": runtime, "gate": None, "rate": None}
        )
        for transformation in definitions.values():
            store.ensure_transformation(entry, transformation.describe(), transformation.definition_hash())
        for shard in range(store.shards()):
            part = slice(shard * shard_rows, (shard + 1) * shard_rows)
            notes = [journal.ImageNote(n, 0, 0, "", "", ()) for n in range(len(keys))[part]]
            arrays = {name: x_RD[at_TN[t, part]] for name, t in order.items()}
            store.write_shard(entry, shard, arrays, notes, seconds=0.0, run=run)
        journal.compact(store_path, at=1)
    return {
        "store": str(store_path),
        "backbone": backbone,
        "images": len(keys),
        "transformations": len(order),
        "dim": int(x_RD.shape[1]),
    }


def _read(embeddings: Path, rows: Path | None) -> tuple[pa.Table, NDArray[np.float32]]:
    try:
        if embeddings.suffix == ".npy":
            if rows is None:
                raise ConfigError("--rows", "nothing", "a CSV file with the columns key, transformation")
            x_RD = np.load(embeddings, allow_pickle=False)
            text = pa.csv.ConvertOptions(
                column_types=dict.fromkeys(("key", "transformation", "label", "split"), pa.string())
            )
            table = pa.csv.read_csv(rows, convert_options=text)
        else:
            table = pq.read_table(embeddings)
            if "embedding" not in table.column_names:
                raise ConfigError(f"columns of {embeddings.name}", table.column_names, "key, transformation, embedding")
            lists = table["embedding"].to_pylist()
            if len({len(row) for row in lists}) > 1:
                raise ConfigError(f"embedding of {embeddings.name}", "lists of several lengths", "lists of one length")
            x_RD = np.array(lists, dtype=np.float32)
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise SubstyleError(f"{embeddings}: cannot be read: {error}") from error
    if x_RD.ndim != 2 or len(x_RD) != len(table) or not len(table) or not np.isfinite(x_RD).all():
        raise ConfigError("embeddings", f"array {x_RD.shape} for {len(table)} rows", "finite numbers (rows, D)")
    for column in ("key", "transformation"):
        if column not in table.column_names:
            raise ConfigError("columns", table.column_names, "key, transformation; optional: label, split")
    for column in ("label", "split"):
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), pa.string()))
    return table, np.ascontiguousarray(x_RD, dtype=np.float32)


def _labels(names: list[str | None]) -> tuple[NDArray[np.int64], list[str]]:
    classes = sorted({str(name) for name in names if name not in (None, "")})
    index = {name: i for i, name in enumerate(classes)}
    labels = [index[str(name)] if name not in (None, "") else UNLABELLED for name in names]
    return np.array(labels, dtype=np.int64), classes
