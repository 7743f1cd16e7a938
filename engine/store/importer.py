"""Import embeddings computed elsewhere into a store, for probe, analyze and report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from substyle.engine.backbones.registry import FAMILIES
from substyle.engine.store import catalog, compaction, lock
from substyle.engine.store.catalog import PIXELS_DIGEST, Definition
from substyle.engine.store.files import writing
from substyle.engine.store.journal import hex_of
from substyle.engine.store.layout import EXPORT_NOTE, PIXELS, SPLITS, UNLABELLED, BackboneEntry, Dtype, StoreSettings
from substyle.engine.store.manifest import SourceEntry, assign
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import store_facts
from substyle.errors import ConfigError, MissingError, SubstyleError, abbreviated
from substyle.pipelines import limits
from substyle.pipelines.storage import Place, place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.validation import brief

SHARD_ROWS = 1024
_ROUNDED = 0.01
_ROWS = 1 << 12  # embeddings that are in memory at once
_ALLOWED = "finite numbers (rows, D) within float32's range"
_WORDS = {int: "whole number", float: "number", str: "value"}
_ROLES = ("kind", "role")
_CHECKED = ("content_hash", "definition", *PIXELS)  # whether the embedded pixels are those of the store
_OPTIONAL = ("label", "split", "distinct", *_ROLES, *_CHECKED)
_COLUMNS = ("key", "transformation", *_OPTIONAL)


@dataclass(frozen=True)
class _Given:
    """Embeddings of a file, ordered by image and transformation. Classes, splits and contents are by key."""

    keys: list[str]  # N, sorted
    labels: dict[str, str | None]  # names of classes
    splits: dict[str, str | None]
    contents: dict[str, str | None]  # hashes of photographs
    indistinct: dict[str, tuple[str, ...]] | None  # transformations that hardly change the photograph; None: unknown
    settings: dict[str, Any]  # those of `PIXELS` that the variants were made with, where given
    definitions: list[Definition]  # of the T transformations, identity first
    x_RD: NDArray[np.floating]  # as given, if in float16 or float32
    at_TN: NDArray[np.int64]  # the row of each embedding
    digest: str  # of keys, transformations and embeddings, which are float32 for it in whatever dtype they are given

    @classmethod
    def of(cls, columns: Mapping[str, _Column], x_RD: NDArray[np.floating]) -> _Given:
        """Raises ConfigError for an unknown transformation, or if a row is repeated or missing."""
        key, made = columns["key"], columns["transformation"]
        first_K = _first(key.code_R, len(key.values))
        labels, splits, contents = (
            _one_each(key, first_K, columns[name], name) for name in ("label", "split", "content_hash")
        )
        load_all()
        names = list(dict.fromkeys(["identity", *made.values]))
        _require_roles(columns)
        stated = made.pairs(columns["definition"])
        definitions = [_definition(name, [text for each, text in stated if each == name]) for name in names]
        keys = sorted(key.values)
        n_K, t_M = np.empty(len(keys), np.int64), np.array([names.index(name) for name in made.values])
        n_K[np.argsort(np.array(key.values, object))] = np.arange(len(keys))
        place_R = t_M[made.code_R] * len(keys) + n_K[key.code_R]
        at_TN = _first(place_R, len(names) * len(keys)).reshape(len(names), len(keys))
        if len(again := np.flatnonzero(at_TN.ravel()[place_R] != np.arange(len(place_R)))):
            given = f"{key.text(again[0])}, {made.text(again[0])}"
            raise ConfigError("embeddings", given, "each (key, transformation) once")
        if (at_TN < 0).any():
            t, n = np.argwhere(at_TN < 0)[0].tolist()
            raise ConfigError("embeddings", f"no {names[t]} of {keys[n]}", "every transformation of every image")
        digest = hashlib.sha256(json.dumps([keys, names]).encode())
        for start in range(0, at_TN.size, _ROWS):
            digest.update(x_RD[at_TN.ravel()[start : start + _ROWS]].astype(np.float32, copy=False).data)
        settings, indistinct = _settings(columns), _indistinct(columns)
        for name, text in contents.items():
            if text is not None and not re.fullmatch("[0-9a-f]{32}", text):
                raise ConfigError(f"content_hash of {name}", text, "32 hexadecimal digits, as in variants.csv")
        by_key = (keys, labels, splits, contents, indistinct)
        return cls(*by_key, settings, definitions, x_RD, at_TN, digest.hexdigest()[:16])

    def rows(self, n_B: NDArray[np.int64]) -> dict[str, NDArray[np.floating]]:
        """Embeddings of images by transformation; NaN for images -1. Shape of each: (B, D)."""
        made = {}
        for definition, at_N in zip(self.definitions, self.at_TN, strict=True):
            made[definition.name] = self.x_RD[at_N[n_B]]
            made[definition.name][n_B < 0] = np.nan
        return made


def import_store(
    embeddings: Path,
    store_path: Path | Place,
    backbone: str,
    *,
    rows: Path | None = None,
    seed: int = 0,
    dtype: Dtype | None = None,
) -> dict[str, Any]:
    """Import embeddings of a file into a new store, or as a further backbone of an existing one.

    Args:
        embeddings: a Parquet file, or a folder of them, with columns ``key``, ``transformation``, ``embedding`` (a list
            of numbers), and optionally ``label`` (class name), ``split`` (train, val, test), and ``content_hash``,
            ``distinct``, ``definition`` and those of `PIXELS` as `write_variants` and `export` write them; or a
            ``.npy`` array (rows, D).
        store_path: path of the store. An existing one keeps its classes and splits.
        backbone: name of the embeddings.
        rows: for ``.npy``: a CSV file with the columns above except ``embedding``, one line per row.
        seed: seed of the splits if the file has none; for a new store.
        dtype: of a new store; default: float16 if it holds the numbers, see `_holds`.

    Returns:
        ``{"store", "backbone", "images", "transformations", "dim"}``.

    Raises:
        ConfigError: a file is not as above, the name is that of a backbone that can be loaded, a transformation is
            unknown, an image is missing in one, the images are not those of the existing store, or its dtype does not
            hold the embeddings.
        DifferentError: the existing store has other embeddings of this name, or other definitions of transformations.
    """
    store_path = place(store_path)
    if not backbone:
        raise ConfigError("backbone", backbone, "a name for the embeddings")
    if ":" in backbone and backbone.partition(":")[0] in {family.prefix for family in FAMILIES.all()}:
        raise ConfigError("backbone", backbone, f"a name that substyle embed does not load, such as import:{backbone}")
    columns, x_RD = _read(embeddings, rows, near=_nearest(store_path))
    found = _Given.of(columns, x_RD)
    if unknown := [name for name in _CHECKED if not columns[name].values]:
        print(
            f"{embeddings}: not checked against {store_path}, since there is no column {', '.join(unknown)}",
            file=sys.stderr,
        )
    store = EmbeddingStore.open(store_path) if catalog.exists(store_path) else None
    if store is not None:
        settings = store.settings
        if dtype not in (None, store.settings.dtype):
            raise ConfigError("--dtype", dtype, f"{store.settings.dtype}, that of {store_path}")
        _require_held(found.x_RD, store.settings.dtype, store_path)
        sources = store.manifest().sources if store.has_manifest() else ()
        for name, value in found.settings.items():
            if any(entry.kind == "imported" and name not in entry.options for entry in sources):
                print(f"{store_path}: imported without {name}, which is not compared", file=sys.stderr)
            elif value != (stored := getattr(store.settings, name)):
                raise ConfigError(
                    name,
                    value,
                    f"{stored}, as in {store_path}; write the variants with --{name.replace('_', '-')} {stored}",
                )
        if store.has_manifest():
            _require_same_images(store, found)
    else:
        shard_rows = min(SHARD_ROWS, 1 << max(len(found.keys) - 1, 1).bit_length())
        stated = {"seed": seed, "canvas": base.CANVAS, **found.settings}
        settings = StoreSettings(shard_rows=shard_rows, dtype=dtype or _narrowest(found.x_RD, embeddings), **stated)
        if dtype is not None:
            _require_held(found.x_RD, dtype, store_path)
    if store is None or not store.has_manifest():  # a new store, or one of an import that was killed
        label_N, class_names = _labels([found.labels[key] for key in found.keys])
        given = [found.splits[key] for key in found.keys]
        split_N = assign(found.keys, label_N.tolist(), given, seed=settings.seed)
        store = store or EmbeddingStore.create(store_path, settings)
        stated = {name: str(value) for name, value in found.settings.items()}
        source = SourceEntry("", "imported", os.path.abspath(embeddings), stated)
        with lock.hold(store_path, lock.new_run_id()):
            store.add_images(found.keys, label_N, class_names, split_N, given=given, source=source)
    spec = {"weights_hash": found.digest, "weights": f"imported from {embeddings.name}", "control": False}
    runtime = {"name": "imported", "precision": "as given"}
    facts = {"dim": found.x_RD.shape[1], "spec": spec, "runtime": runtime, "gate": None, "rate": None}
    with lock.hold(store_path, run := lock.new_run_id()):
        entry = store.ensure_backbone({"name": backbone, **facts}, found.definitions)
        _write(store, entry, found, run)
        compaction.compact(store_path)
    return {
        "store": str(store_path),
        "backbone": backbone,
        "images": len(found.keys),
        "transformations": len(found.definitions),
        "dim": entry.dim,
    }


def _nearest(store: Place) -> Path | None:
    """The folder of a store on a disk, which has room for its embeddings; None for that of temporary files."""
    return next((path for path in store.parents if path.is_dir()), None) if isinstance(store, Path) else None


def _narrowest(x_RD: NDArray[np.floating], embeddings: Path) -> Dtype:
    if _holds("float16", x_RD):
        return "float16"
    print(f"{embeddings}: stored as float32, since float16 does not hold its numbers", file=sys.stderr)
    return "float32"


def _holds(dtype: Dtype, x_RD: NDArray[np.floating]) -> bool:
    """Whether rounding to a dtype moves embeddings by at most `_ROUNDED` of the standard deviation of their feature.

    One feature in a hundred may be worse, such as one that is zero in nearly all rows.
    """
    if dtype in ("float32", x_RD.dtype):
        return True
    sum_2D, squares_2D = np.zeros((2, 2, x_RD.shape[1]))
    for start in range(0, len(x_RD), _ROWS):
        x_BD = x_RD[start : start + _ROWS]
        with np.errstate(over="ignore", invalid="ignore"):
            moved_BD = x_BD.astype(dtype).astype(np.float32) - x_BD
        if not np.isfinite(moved_BD).all():
            return False
        if not start:
            shift_2D = x_BD[0], moved_BD[0]  # of which differences lose few digits, and none if all rows are equal
        for i, y_BD in enumerate((x_BD - shift_2D[0], moved_BD - shift_2D[1])):
            sum_2D[i] += y_BD.sum(axis=0, dtype=np.float64)
            squares_2D[i] += np.square(y_BD, dtype=np.float64).sum(axis=0)
    spread_D, rounded_D = squares_2D / len(x_RD) - (sum_2D / len(x_RD)) ** 2
    return bool(100 * int((rounded_D > _ROUNDED**2 * spread_D).sum()) <= x_RD.shape[1])


def _require_held(x_RD: NDArray[np.floating], dtype: Dtype, store: Place) -> None:
    """Raise ConfigError before anything is written if the store's dtype does not hold the embeddings."""
    if not _holds(dtype, x_RD):
        given = f"numbers of a size up to {max(x_RD.max(), -x_RD.min()):g}"
        allowed = f"numbers that {dtype} holds within {_ROUNDED:.0%} of their standard deviation, for {store}"
        raise ConfigError("embeddings", given, f"{allowed}; or a new store of float32")


def _write(store: EmbeddingStore, entry: BackboneEntry, found: _Given, run: str) -> None:
    """Write the shards that are not finished."""
    manifest, rows = store.manifest(), store.settings.shard_rows
    noted, alike_K = store.notes(manifest), found.indistinct or {}
    number = {key: n for n, key in enumerate(found.keys)}
    names = [definition.name for definition in found.definitions]
    done_S = store.finished().finished(entry.slug, names, store.shards()).all(axis=1)
    for shard in np.flatnonzero(~done_S).tolist():
        own = manifest.between(shard * rows, (shard + 1) * rows)
        if own.start == own.stop:  # its photographs were removed
            continue
        row_B = manifest.row_N[own]
        n_R = np.full(int(row_B[-1]) + 1 - shard * rows, -1, np.int64)  # padding and quarantined images stay -1
        n_R[row_B - shard * rows] = [number.get(key, -1) for key in manifest.keys[own]]
        known_B, keys = noted.known_N[own].tolist(), manifest.keys[own]
        alike = [() if known else alike_K.get(key, ()) for known, key in zip(known_B, keys, strict=True)]
        contents = [found.contents.get(key) or "" for key in keys]
        notes = noted.again(own, manifest.row_N, alike, contents)
        store.write_shard(entry, shard, found.rows(n_R), notes, seconds=0.0, run=run)


def _require_same_images(store: EmbeddingStore, found: _Given) -> None:
    """Raise ConfigError unless images, classes and splits are those of the store; quarantined images have no row."""
    manifest = store.manifest()
    noted = store.notes(manifest)
    imported = all(entry.kind == "imported" for entry in manifest.sources)
    if not noted.known_N.all() and not imported:  # which ones cannot be decoded is not known yet
        raise ConfigError("--store", str(store.path), "a store whose photographs are all embedded; run substyle embed")
    place, hash_N = {key: n for n, key in enumerate(manifest.keys)}, hex_of(noted.content_N2)
    readable = np.array(manifest.keys, object)[noted.ok_N | ~noted.known_N].tolist()
    moved = set(store_facts(store).moved)
    names = [] if found.indistinct is None else [definition.name for definition in found.definitions]
    for key in found.keys:
        if (n := place.get(key)) is None:
            raise ConfigError("key", key, f"a photograph of {store.path}")
        content, split, label = found.contents[key], found.splits[key], found.labels[key]
        if content and hash_N[n] not in ("", content):
            allowed = f"{hash_N[n]}, the photograph in {store.path}; write the variants again"
            raise ConfigError(f"content_hash of {key}", content, allowed)
        codes = {manifest.split_N[n], manifest.given_N[n]} - {-1}
        splits = SPLITS if key in moved else {SPLITS[code] for code in codes}
        if split is not None and split not in splits:  # the motifs of overlays depend on it
            raise ConfigError(f"split of {key}", split, f"{' or '.join(sorted(splits))}, as in {store.path}")
        known = manifest.class_names[manifest.label_N[n]] if manifest.label_N[n] >= 0 else None
        if label not in (None, known):
            raise ConfigError(f"label of {key}", label, f"{known}, as in {store.path}")
        for name in names if noted.known_N[n] else ():
            kept = name in noted.indistinct and bool(noted.indistinct[name][n])
            mine = name in (found.indistinct or {}).get(key, ())
            # an export leaves out variants of moved images that show motifs of another split
            if kept != mine and not (mine and key in moved):
                raise ConfigError(f"distinct of {key}, {name}", not mine, f"{not kept}, as in {store.path}")
    there = set(found.keys)
    if missing := [key for key in readable if key not in there]:
        some = f"no embedding of {missing[0]}" + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
        raise ConfigError("embeddings", some, f"all {len(readable)} photographs of {store.path}")
    if extra := there - set(readable):
        raise ConfigError("key", min(extra), f"a photograph that {store.path} does not quarantine")


@dataclass(frozen=True)
class _Column:
    """A column of strings: R codes of its distinct values in the order in which they occur, -1 for an empty cell."""

    code_R: NDArray[np.int32]
    values: list[str]

    def text(self, row: int) -> str | None:
        return self.values[self.code_R[row]] if self.code_R[row] >= 0 else None

    def pairs(self, other: _Column) -> list[tuple[str | None, str | None]]:
        """Distinct pairs of values of two columns in the order in which they occur."""
        pair_R = self.code_R.astype(np.int64) * (len(other.values) + 1) + other.code_R
        rows = np.sort(np.unique(pair_R, return_index=True)[1])
        return [(self.text(row), other.text(row)) for row in rows.tolist()]


def _read(embeddings: Path, rows: Path | None, near: Path | None) -> tuple[dict[str, _Column], NDArray[np.floating]]:
    """Read columns of strings and embeddings (R, D). Embeddings are on the disk, in an unnamed file in ``near``."""
    if embeddings.suffix == ".npy" and rows is None:
        raise MissingError("--rows", "a CSV file with columns key and transformation")
    file = rows if rows is not None and embeddings.suffix == ".npy" else embeddings
    text = pa.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
    try:
        table = pa.csv.read_csv(file, convert_options=text) if file is rows else _table(file)
        table.validate(full=True)
        columns = {name: _column(table, name, file) for name in _COLUMNS}
        x_RD = _array(embeddings, near) if file is rows else _lists(embeddings, near)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise SubstyleError(f"{file}: cannot read: {brief(error)}") from error
    if len(x_RD) != len(table):
        raise ConfigError(f"embeddings of {embeddings.name}", f"{len(x_RD)} embeddings for {len(table)} rows", _ALLOWED)
    return columns, x_RD


def _written(blocks: Iterable[NDArray[Any]], source: Path, near: Path | None, dtype: DTypeLike) -> NDArray[np.floating]:
    """Write blocks of embeddings to an unnamed file, which goes with the process, and map it. Shape: (R, D)."""
    width, count = 0, 0
    with TemporaryFile(dir=near) as file:
        for x_BD in _checked(blocks, source, dtype):
            width, count = x_BD.shape[1], count + len(x_BD)
            with writing(near or Path(gettempdir())):
                file.write(x_BD.data)
        if not count:
            raise ConfigError(f"embeddings of {source.name}", "no row", _ALLOWED)
        with writing(near or Path(gettempdir())):
            file.flush()
        return np.memmap(file, dtype, "r", shape=(count, width))


def _checked(blocks: Iterable[NDArray[Any]], source: Path, dtype: DTypeLike) -> Iterator[NDArray[np.floating]]:
    """Blocks in a dtype. Raises ConfigError for other values than finite numbers."""
    first = 0
    for block_BD in blocks:
        if block_BD.dtype.kind not in "fiu":
            raise ConfigError(f"embeddings of {source.name}", f"an array of {block_BD.dtype}", "numbers")
        with np.errstate(over="ignore"):  # overflows become infinite
            x_BD = np.ascontiguousarray(block_BD, dtype)
        if not x_BD.size:
            raise ConfigError(f"embeddings of {source.name}", "lists of no number", _ALLOWED)
        if not _finite(x_BD):
            given = f"numbers that are not finite in rows {first} to {first + len(x_BD) - 1}"
            raise ConfigError(f"embeddings of {source.name}", given, _ALLOWED)
        first += len(x_BD)
        yield x_BD


def _finite(x: NDArray[np.floating]) -> bool:
    if x.dtype == np.float16:  # by its bits, in a third of the time
        return bool((x.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool(np.isfinite(x).all())


def _table(path: Path) -> pa.Table:
    """The columns of a Parquet file, or of all in a folder, with strings as codes of dictionaries."""
    found, names = (whole := pq.ParquetDataset(path)).files, (*_COLUMNS, "embedding")
    former = () if "kind" in whole.schema.names else ("coarse",)  # its name in files of earlier versions
    folders = sorted({os.path.dirname(os.path.relpath(file, path)) for file in found})
    if len(folders) > 1 and (path / EXPORT_NOTE).is_file():
        raise ConfigError("embeddings", str(path), f"the folder of one backbone in it: {abbreviated(folders)}")
    for file in found:
        with pa.memory_map(file) as mapped:
            limits.require_parquet(mapped.read_buffer(), file, 1, (*names, *former))
        if (own := pq.read_schema(file).names).count("embedding") != 1:
            raise ConfigError(f"columns of {Path(file).name}", own, "key, transformation, embedding")
    chosen = [name for name in whole.schema.names if name in (*_COLUMNS, *former)]
    read = pq.read_table(path, columns=chosen, read_dictionary=[*_COLUMNS, *former])
    names_today = ["kind" if name in former else name for name in read.column_names]
    return read.rename_columns(names_today).replace_schema_metadata(read.schema.metadata)


def _column(table: pa.Table, name: str, file: Path) -> _Column:
    """A column of strings. Raises ConfigError if it is missing, duplicated, or required and empty in a row."""
    count = table.column_names.count(name)
    if not count and name in _OPTIONAL:
        return _Column(np.broadcast_to(np.int32(-1), len(table)), [])
    if count != 1:
        raise ConfigError(f"columns of {file.name}", table.column_names, "key, transformation; optional: label, split")
    if name == "label" and pa.types.is_integer(table[name].type) and b"huggingface" in (table.schema.metadata or {}):
        raise ConfigError(
            f"label of {file.name}", "numbers of a Hugging Face dataset", "names; use export --to parquet"
        )
    column = table[name]
    column = column if _coded(column.type) else column.cast(pa.string()).dictionary_encode()
    number: dict[str, int] = {}
    parts = [np.zeros(0, np.int32)]
    for chunk in column.chunks:
        code_B = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        used, first = np.unique(code_B, return_index=True)
        texts, of_code = chunk.dictionary.to_pylist(), np.full(len(chunk.dictionary) + 1, -1, np.int32)
        for code in used[np.argsort(first)].tolist():
            if code >= 0 and texts[code]:
                of_code[code] = number.setdefault(texts[code], len(number))
        parts.append(of_code[code_B])
    code_R = np.concatenate(parts)
    if name not in _OPTIONAL and (code_R < 0).any():
        empty = int(np.argmax(code_R < 0))
        raise ConfigError(f"{name} of {file.name}", f"empty in row {empty}", "a string in every row")
    return _Column(code_R, list(number))


def _coded(kind: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type))


def _array(file: Path, near: Path | None) -> NDArray[np.floating]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)  # mapped: a header may claim any size
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, BadZipFile) as error:
        raise SubstyleError(f"{file}: cannot read: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not len(array):
        raise ConfigError(f"embeddings of {file.name}", f"array {getattr(array, 'shape', 'of several')}", _ALLOWED)
    blocks = (array[start : start + _ROWS] for start in range(0, len(array), _ROWS))
    if array.dtype not in (np.float16, np.float32) or not array.flags.c_contiguous:
        return _written(blocks, file, near, np.float32)
    for _ in _checked(blocks, file, array.dtype):
        pass
    return array


def _lists(path: Path, near: Path | None) -> NDArray[np.floating]:
    """The column of embeddings. Raises ConfigError for another column than of lists of numbers."""
    files = pq.ParquetDataset(path).files
    kinds = {pq.read_schema(file).field("embedding").type for file in files}
    for kind in kinds:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise ConfigError(f"embedding of {path.name}", str(kind), "lists of numbers")
        if not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
            raise ConfigError(f"embedding of {path.name}", str(kind), "lists of numbers")
    dtype = np.float16 if all(kind.value_type == pa.float16() for kind in kinds) else np.float32
    return _written(_list_blocks(path, files), path, near, dtype)


def _list_blocks(path: Path, files: Iterable[str]) -> Iterator[NDArray[Any]]:
    """Embeddings in blocks of rows. Raises ConfigError for other lists than those of one length."""
    widths = set[int | None]()
    # otherwise a whole row group is held, and files are often one
    streams = (pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) for file in files)
    for batch in chain.from_iterable(stream.iter_batches(_ROWS, columns=["embedding"]) for stream in streams):
        batch.validate(full=True)
        lists = batch.column(0)
        widths |= {*pc.unique(pc.list_value_length(lists)).to_pylist()}  # None for an empty cell
        if None in widths or len(widths) > 1:
            raise ConfigError(f"embedding of {path.name}", "lists of several lengths", "lists of one length")
        if len(lists):  # NaN for empty cells, refused later
            yield pc.list_flatten(lists).to_numpy(zero_copy_only=False).reshape(len(lists), *widths)


def _first(code_R: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """The first row with each of ``count`` codes, -1 for none."""
    first_C = np.full(count, -1, np.int64)
    first_C[code_R[::-1]] = np.arange(len(code_R))[::-1]  # of repeated places the last one is kept
    return first_C


def _one_each(key: _Column, first_K: NDArray[np.int64], column: _Column, name: str) -> dict[str, str | None]:
    """A column by key. Raises ConfigError if rows of one image differ."""
    if len(other := np.flatnonzero(column.code_R != column.code_R[first_K][key.code_R])):
        row, first = other[0], first_K[key.code_R[other[0]]]
        given = f"{column.text(first)} and {column.text(row)}"
        raise ConfigError(f"{name} of {key.text(row)}", given, "the same in all rows of an image")
    texts_C = np.array([*column.values, None], object)  # an empty cell is -1
    return dict(zip(key.values, texts_C[column.code_R[first_K]].tolist(), strict=True))


def _require_roles(columns: Mapping[str, _Column]) -> None:
    """Raise ConfigError if a transformation has another role or kind here, such as without its suite file."""
    for column in _ROLES:
        for name, text in columns["transformation"].pairs(columns[column]):
            known = getattr(base.get(str(name)), column)
            if text not in (None, known):
                raise ConfigError(
                    f"{column} of {name}", text, f"{known}; pass the suite file of the export with --plugin"
                )


def _definition(name: str, stated: Iterable[str | None]) -> Definition:
    """A transformation as it is defined now, with the pixels that the file states, which `embed` compares.

    Raises ConfigError if it was defined otherwise when the variants were made.
    """
    own = Definition(base.get(name).describe())
    for text in stated:
        if text is None:
            continue
        declared, *rest = text.split("-")
        assets = [each.removeprefix("assets.") for each in rest if each.startswith("assets.")]
        pixels = [each for each in rest if not each.startswith("assets.")]
        good = declared == own.declared and all(re.fullmatch(PIXELS_DIGEST, each) for each in (*assets, *pixels))
        if not good or len({own.assets, *assets} - {""}) > 1:
            allowed = f"{own.declared}, as it is now; write the variants again, or pass their suite file or plug-in"
            raise ConfigError(f"definition of {name}", text, allowed)
        described = {**own.definition, **({"assets": assets[0]} if assets else {})}
        own = Definition(described, tuple(sorted({*own.pixels, *pixels})))
    return own


def _indistinct(columns: Mapping[str, _Column]) -> dict[str, tuple[str, ...]] | None:
    """Transformations that are not distinct, by key; None without values.

    Raises ConfigError for values other than true and false.
    """
    key, made, distinct = columns["key"], columns["transformation"], columns["distinct"]
    if not distinct.values:
        return None
    found: dict[str, list[str]] = {}
    other = [code for code, text in enumerate(distinct.values) if text.lower() != "true"]
    for row in np.flatnonzero(np.isin(distinct.code_R, other)).tolist():
        one, name, text = str(key.text(row)), str(made.text(row)), str(distinct.text(row))
        if text.lower() != "false":
            raise ConfigError(f"distinct of {one}, {name}", text, "true or false")
        if name != "identity":
            found.setdefault(one, []).append(name)
    return {one: tuple(names) for one, names in found.items()}


def _settings(columns: Mapping[str, _Column]) -> dict[str, Any]:
    """Those of `PIXELS` that are given. Raises ConfigError unless each is the same in all rows."""
    found: dict[str, Any] = {}
    for name, kind in PIXELS.items():
        texts = columns[name].values
        allowed = f"one {_WORDS[kind]} in all rows"
        if len(texts) > 1 or (kind is int and not all(text.isdecimal() for text in texts)):
            raise ConfigError(name, ", ".join(sorted(texts)), allowed)
        for text in texts:
            try:
                found[name] = kind(text)
            except ValueError:
                raise ConfigError(name, text, allowed) from None
    return found


def _labels(names: list[str | None]) -> tuple[NDArray[np.int64], list[str]]:
    classes = sorted({name for name in names if name is not None})
    number: dict[str | None, int] = {None: UNLABELLED, **{name: i for i, name in enumerate(classes)}}
    return np.array([number[name] for name in names], dtype=np.int64), classes
