"""Hugging Face datasets on disk: layout, columns and rows."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from substyle.kernels.errors import ConfigError, MissingError
from substyle.pipelines import limits
from substyle.pipelines.sources.base import IMAGE_BYTES, LeftOut, SourceConfig, words
from substyle.pipelines.sources.files import FileState, Shard, inside, mark_of_file, open_regular, read_span, shards
from substyle.pipelines.sources.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    MAYBE_SPLIT_COLUMNS,
    SPLIT_COLUMNS,
    distinct,
    find,
)

TABLE_KINDS = (".parquet", ".arrow")
DATASET_DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_MAX_JSON = 1 << 26  # bytes


def is_saved(folder: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (DATASET_DICT, STATE))


def table_files(root: str, left_out: LeftOut) -> list[Shard]:
    """List the files of a dataset: those of a saved dataset, else all Parquet and Arrow files (see `shards`).

    Raises:
        ConfigError: nothing found, or unreadable metadata.
    """
    if not os.path.isdir(root) or not is_saved(root):
        return shards(root, TABLE_KINDS, left_out)
    parts = [""]
    if os.path.isfile(os.path.join(root, DATASET_DICT)):
        parts = _strings(_json(os.path.join(root, DATASET_DICT)).get("splits"))
    found: list[Shard] = []
    for part in parts:
        if not _plain(part):
            left_out.add(part, "is not a folder of the dataset; skipped")
            continue
        files = _json(os.path.join(root, part, STATE)).get("_data_files")
        for entry in files if isinstance(files, list) else []:
            name = entry.get("filename") if isinstance(entry, dict) else None
            path = os.path.join(root, part, str(name))
            shown = f"{part}/{name}" if part else str(name)
            if not isinstance(name, str) or not name or not _plain(name):
                left_out.add(shown, "is not a file of the dataset; skipped")
            elif not inside(os.path.realpath(root), os.path.realpath(path)):
                left_out.add(shown, "is a link that leaves the dataset; skipped")
            else:
                found.append(Shard(shown, path))
    if not found:
        left_out.tell()
        raise ConfigError("images", root, f"a saved dataset that lists its files{left_out.first()}")
    return sorted(set(found), key=lambda shard: shard.name)


def _plain(name: str) -> bool:
    return "/" not in name and "\0" not in name and name not in (".", "..")


def _json(path: str) -> Mapping[str, Any]:
    try:
        if os.path.getsize(path) > _MAX_JSON:
            raise ConfigError("images", path, f"dataset metadata of at most {_MAX_JSON} bytes")
        with open(path, "rb") as file:
            content = json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("images", path, f"readable dataset metadata ({words(error)})") from error
    return content if isinstance(content, dict) else {}


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Columns:
    """Columns of a table by purpose.

    Attributes:
        image: column of encoded images.
        in_struct: whether the bytes are the field ``bytes`` of a struct.
        label, key, split: column name, or None.
        maybe_split: ``split`` has an ambiguous name and is used only if all its values are splits (see `says_splits`).
        unused: other columns that could be labels. One with a usual name but an unsuitable type shows that type.
        classes: names of integer labels, or None.
    """

    image: str
    in_struct: bool
    label: str | None
    key: str | None
    split: str | None
    maybe_split: bool
    unused: tuple[str, ...]
    classes: tuple[str, ...] | None

    @property
    def small(self) -> list[str]:
        """The columns to read, without the images."""
        return list(dict.fromkeys(name for name in (self.label, self.key, self.split) if name))


def columns(schema: pa.Schema, path: str, config: SourceConfig) -> Columns:
    """Find the columns of a file.

    Raises:
        ConfigError: no image column, several candidates, or a requested column that is missing or unsuitable.
    """
    kinds = {field.name: field.type for field in schema}
    features = _features(schema, path)
    image = _image_column(kinds, features, path, config.image_column)
    plain = [name for name, kind in kinds.items() if _is_plain(kind)]
    label = _column(plain, "label_column", config.label_column, LABEL_COLUMNS, path)
    split = _column(plain, "split_column", config.split_column, SPLIT_COLUMNS, path)
    maybe = None if split else find(plain, MAYBE_SPLIT_COLUMNS)
    key = _column(plain, "path_column", config.path_column, (), path)
    unused = [name for name in plain if name not in (label, split, key)]
    wrong = find([name for name in kinds if name not in (*plain, image)], LABEL_COLUMNS)
    if wrong:
        unused.insert(0, f"{wrong} (of type {kinds[wrong]})")
    feature = features.get(label or "")
    names = _strings(feature.get("names")) if isinstance(feature, dict) else []
    classes = tuple(distinct(names, [str(i) for i in range(len(names))])) if names else None
    return Columns(
        image,
        pa.types.is_struct(kinds[image]),
        label,
        key,
        split or maybe,
        maybe is not None,
        tuple(unused),
        classes,
    )


def _features(schema: pa.Schema, path: str) -> Mapping[str, Any]:
    """Hugging Face features by column, from the schema or the dataset_info.json next to the file; empty if missing."""
    text = (schema.metadata or {}).get(b"huggingface")
    beside = os.path.join(os.path.dirname(path), INFO)
    try:
        if text is not None:
            content = json.loads(text)
            features = content["info"]["features"] if isinstance(content, dict) else None
        else:
            features = _json(beside).get("features") if os.path.isfile(beside) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        features = None
    return features if isinstance(features, dict) else {}


def _image_column(kinds: Mapping[str, pa.DataType], features: Mapping[str, Any], path: str, asked: str) -> str:
    fit = [name for name, kind in kinds.items() if _holds_bytes(kind)]
    if asked:
        if asked not in fit:
            raise ConfigError("source.image_column", asked, f"a binary column of {path}: {_list(fit)}")
        return asked
    marked = [name for name in fit if isinstance(features.get(name), dict) and features[name].get("_type") == "Image"]
    usual = find(fit, IMAGE_COLUMNS)
    for found in ([usual] if usual else [], marked, fit):
        if len(found) == 1:
            return found[0]
    raise MissingError("source.image_column", f"name the image column of {path}: {_list(fit)}")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return bool(index >= 0 and _is_binary(kind.field(index).type))
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column(plain: Sequence[str], field: str, asked: str, usual: Sequence[str], path: str) -> str | None:
    if asked and asked not in plain:
        raise ConfigError(f"source.{field}", asked, f"a text or integer column of {path}: {_list(plain)}")
    return asked or find(plain, usual)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _list(names: Sequence[str]) -> str:
    return ", ".join(name[:50] for name in names[:20]) or "it has none"


# raised by pyarrow for invalid files
ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError)
_MAGIC = b"ARROW1"  # of the file format; other files are streams, as Hugging Face writes
_STREAM = 8  # where the stream starts that a file holds before its index


class ArrowRows:
    """The rows of one Arrow file, as written by `save_to_disk`. Images are read by their offset in the file.

    Attributes:
        columns: columns by purpose.
        rows: number of readable rows.
        values: values of the small columns by name.
        lacking: number of rows without bytes.
        damage: why the end of the file is unreadable, or None.

    Raises:
        ConfigError: no image column.
        OSError, ArrowException, ValueError: the file cannot be read.
    """

    def __init__(self, path: str, config: SourceConfig) -> None:
        self.path = path
        descriptor = open_regular(path)
        try:
            self._stamp = FileState.of(descriptor)
            if not self._stamp.size:
                raise OSError(errno.EINVAL, "empty file", path)
            # only pages with offsets and labels are read; the mapping ends with the arrays of this call
            whole = pa.py_buffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)
        is_file = whole.slice(0, min(len(_MAGIC), whole.size)).to_pybytes() == _MAGIC
        stream = whole.slice(_STREAM) if is_file else whole
        limits.require_uncompressed(stream)
        reader = pa.ipc.open_stream(stream)
        self.columns = columns(reader.schema, path, config)
        self.values: dict[str, list[object]] = {name: [] for name in self.columns.small}
        self.damage: str | None = None
        spans = [np.zeros((0, 2), np.int64)]
        try:
            for batch in reader:
                limits.require_rows("batch", sum(map(len, spans)) + len(batch), self._stamp.size, IMAGE_BYTES)
                part = _spans(batch, self.columns, whole)
                values = {name: _values(batch, name) for name in self.values}
                spans.append(part)
                for name, more in values.items():
                    self.values[name] += more
        except ARROW_ERRORS as error:
            self.damage = words(error)
        self._span_N2: NDArray[np.int64] = np.concatenate(spans)
        self.rows = len(self._span_N2)
        self.lacking = int((self._span_N2[:, 1] < 0).sum())

    def read(self, row: int) -> bytes:
        """Read the image of a row. Raises OSError."""
        offset, size = self._span_N2[row].tolist()
        if size < 0:
            raise OSError(errno.ENODATA, "row has no image bytes", self.path)
        return read_span(self.path, self._stamp, offset, size)

    def mark(self, row: int) -> int:
        """The mark of a row's image; see `ImageRecord`."""
        return mark_of_file(self.path, row)


def _spans(batch: pa.RecordBatch, found: Columns, whole: pa.Buffer) -> NDArray[np.int64]:
    """File offset and size in bytes of each row's image; size -1 means no image. Shape: (rows, 2)."""
    array = batch.column(found.image)
    array.validate(full=True)  # offsets from the file are untrusted
    lacks = array.is_null().to_numpy(zero_copy_only=False)
    if found.in_struct:
        array = array.field("bytes")
        lacks = lacks | array.is_null().to_numpy(zero_copy_only=False)
    rows = len(array)
    _, offsets, data = array.buffers()
    span_N2 = np.zeros((rows, 2), np.int64)
    if rows and data is not None and data.size:
        kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
        offset_N = np.frombuffer(offsets, kind)[array.offset : array.offset + rows + 1].astype(np.int64)
        span_N2[:, 0] = offset_N[:-1] + (data.address - whole.address)
        span_N2[:, 1] = np.diff(offset_N)
        if (span_N2[:, 0] < 0).any() or (span_N2.sum(axis=1) > whole.size).any():
            raise ValueError("compressed buffers; write the file uncompressed or as Parquet")
    span_N2[lacks, 1] = -1
    return span_N2


def _values(batch: pa.RecordBatch, name: str) -> list[object]:
    array = batch.column(name)
    array.validate(full=True)
    return limits.values(array)
