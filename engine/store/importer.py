"""Import embeddings computed elsewhere into a new store, for probe, analyze and report."""

from __future__ import annotations

import os
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from substyle.engine.store import compaction, lock
from substyle.engine.store.catalog import Definition
from substyle.engine.store.layout import UNLABELLED, Dtype, StoreSettings
from substyle.engine.store.manifest import SourceEntry, assign
from substyle.engine.store.records import ImageNote
from substyle.engine.store.store import EmbeddingStore
from substyle.kernels.errors import ConfigError, MissingError, SubstyleError
from substyle.pipelines.storage import Place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

SHARD_ROWS = 1024
_COLUMNS = ("key", "transformation", "label", "split")
_OPTIONAL = ("label", "split")


def import_store(
    embeddings: Path, store_path: Place, backbone: str, *, rows: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Create a store from embeddings in a file.

    Args:
        embeddings: a Parquet file with columns ``key``, ``transformation``, ``embedding`` (a list of numbers), and
            optionally ``label`` (class name) and ``split`` (train, val, test); or a ``.npy`` array (rows, D).
        store_path: path of the new store.
        backbone: name of the embeddings.
        rows: for ``.npy``: a CSV file with the columns above except ``embedding``, one line per row.
        seed: seed of the splits if the file has none.

    Returns:
        ``{"store", "backbone", "images", "transformations", "dim"}``.

    Raises:
        ConfigError: a file is not as above, a transformation is unknown, or an image is missing in one.
    """
    if not backbone:
        raise ConfigError("backbone", backbone, "a name for the embeddings")
    columns, x_RD = _read(embeddings, rows)
    keys_R, names_R = columns["key"], columns["transformation"]
    label_of, split_of = _one_each(columns, "label"), _one_each(columns, "split")
    load_all()
    order = {name: t for t, name in enumerate(dict.fromkeys(["identity", *names_R]))}
    definitions = {name: base.get(name) for name in order}
    keys = sorted(label_of)
    number = {key: n for n, key in enumerate(keys)}
    at_TN = np.full((len(order), len(keys)), -1, dtype=np.int64)
    for r, (key, name) in enumerate(zip(keys_R, names_R, strict=True)):
        if at_TN[order[name], number[key]] >= 0:
            raise ConfigError("embeddings", f"{key}, {name}", "each (key, transformation) once")
        at_TN[order[name], number[key]] = r
    if (at_TN < 0).any():
        t, n = np.argwhere(at_TN < 0)[0].tolist()
        raise ConfigError("embeddings", f"no {list(order)[t]} of {keys[n]}", "every transformation of every image")

    label_N, class_names = _labels([label_of[key] for key in keys])
    split_N = assign(keys, label_N.tolist(), [split_of[key] for key in keys], seed=seed)
    dtype: Dtype = "float16" if np.abs(x_RD).max(initial=0.0) < 6e4 else "float32"
    shard_rows = min(SHARD_ROWS, 1 << max(len(keys) - 1, 1).bit_length())
    store = EmbeddingStore.create(store_path, StoreSettings(seed, base.CANVAS, shard_rows, dtype))
    with lock.hold(store_path, run := lock.new_run_id()):
        given = [split_of[key] for key in keys]
        source = SourceEntry("", "imported", os.path.abspath(embeddings))
        store.add_images(keys, label_N, class_names, split_N, given=given, source=source)
        spec = {"weights_hash": "imported", "weights": f"imported from {embeddings.name}", "control": False}
        runtime = {"name": "imported", "precision": "as given"}
        entry = store.ensure_backbone(
            {"name": backbone, "dim": x_RD.shape[1], "spec": spec, "runtime": runtime, "gate": None, "rate": None},
            [Definition(each.describe(), each.definition_hash()) for each in definitions.values()],
        )
        for shard in range(store.shards()):
            part = slice(shard * shard_rows, (shard + 1) * shard_rows)
            notes = [ImageNote(n, 0, 0, "", "", ()) for n in range(len(keys))[part]]
            arrays = {name: x_RD[at_TN[t, part]] for name, t in order.items()}
            store.write_shard(entry, shard, arrays, notes, seconds=0.0, run=run)
        compaction.compact(store_path, at=1)
    return {
        "store": str(store_path),
        "backbone": backbone,
        "images": len(keys),
        "transformations": len(order),
        "dim": int(x_RD.shape[1]),
    }


def _read(embeddings: Path, rows: Path | None) -> tuple[dict[str, list[Any]], NDArray[np.float32]]:
    """Columns of strings, None for empty cells, and embeddings (R, D)."""
    if embeddings.suffix == ".npy" and rows is None:
        raise MissingError("--rows", "a CSV file with columns key and transformation")
    file = rows if rows is not None and embeddings.suffix == ".npy" else embeddings
    try:
        table = _csv(file) if file is rows else pq.read_table(file)
        table.validate(full=True)
        columns = {name: _texts(table, name, file) for name in _COLUMNS}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SubstyleError(f"{file}: cannot read: {error}") from error
    x_RD = _array(embeddings) if file is rows else _lists(table, embeddings)
    if x_RD.ndim != 2 or len(x_RD) != len(table) or not x_RD.size or not np.isfinite(x_RD).all():
        given = f"array {x_RD.shape} for {len(table)} rows"
        raise ConfigError(f"embeddings of {embeddings.name}", given, "finite numbers (rows, D) within float32's range")
    return columns, x_RD


def _csv(file: Path) -> pa.Table:
    text = pa.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
    return pa.csv.read_csv(file, convert_options=text)


def _texts(table: pa.Table, name: str, file: Path) -> list[Any]:
    """A column as strings. Raises ConfigError if it is missing, duplicated, or required and empty in a row."""
    count = table.column_names.count(name)
    if not count and name in _OPTIONAL:
        return [None] * len(table)
    if count != 1:
        raise ConfigError(f"columns of {file.name}", table.column_names, "key, transformation; optional: label, split")
    texts = [text or None for text in table[name].cast(pa.string()).to_pylist()]
    if None in texts and name not in _OPTIONAL:
        raise ConfigError(f"{name} of {file.name}", f"empty in row {texts.index(None)}", "a string in every row")
    return texts


def _array(file: Path) -> NDArray[np.float32]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)  # mapped: a header may claim any size
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise SubstyleError(f"{file}: cannot read: {error}") from error
    return _float32(array, file) if isinstance(array, np.ndarray) else _float32(np.empty(0, object), file)


def _lists(table: pa.Table, file: Path) -> NDArray[np.float32]:
    if table.column_names.count("embedding") != 1:
        raise ConfigError(f"columns of {file.name}", table.column_names, "key, transformation, embedding")
    kind = table["embedding"].type
    lists = table["embedding"].to_pylist()
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise ConfigError(f"embedding of {file.name}", str(kind), "lists of numbers")
    if None in lists or len({len(row) for row in lists}) > 1:
        raise ConfigError(f"embedding of {file.name}", "lists of several lengths", "lists of one length")
    if pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type):
        return _float32(np.array(lists, dtype=np.float64), file)
    raise ConfigError(f"embedding of {file.name}", str(kind), "lists of numbers")


def _float32(array: NDArray[Any], file: Path) -> NDArray[np.float32]:
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"embeddings of {file.name}", f"an array of {array.dtype}", "numbers")
    with np.errstate(over="ignore"):  # overflows become infinite and are rejected later
        return np.ascontiguousarray(array, dtype=np.float32)


def _one_each(columns: Mapping[str, list[Any]], column: str) -> dict[str, str | None]:
    """A column by key. Raises ConfigError if rows of one image differ."""
    found: dict[str, str | None] = {}
    for key, text in zip(columns["key"], columns[column], strict=True):
        if found.setdefault(key, text) != text:
            raise ConfigError(f"{column} of {key}", f"{found[key]} and {text}", "the same in all rows of an image")
    return found


def _labels(names: list[str | None]) -> tuple[NDArray[np.int64], list[str]]:
    classes = sorted({name for name in names if name is not None})
    index = {name: i for i, name in enumerate(classes)}
    labels = [UNLABELLED if name is None else index[name] for name in names]
    return np.array(labels, dtype=np.int64), classes
