"""Source of images in the rows of tables: Parquet, Hugging Face datasets on disk (Arrow), and NumPy archives."""

from __future__ import annotations

import atexit
import errno
import io
import json
import math
import os
import threading
import zipfile
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from substyle.errors import ConfigError, MissingError
from substyle.pipelines import limits
from substyle.pipelines.image_header import MAX_PIXELS
from substyle.pipelines.sources.base import (
    IMAGE_BYTES,
    MAX_TEXT,
    SPLITS,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    label_text,
    register_source,
    words,
)
from substyle.pipelines.sources.files import FileState, Shard, mark_of_file, read_span, shards
from substyle.pipelines.sources.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    MAYBE_SPLIT_COLUMNS,
    SPLIT_COLUMNS,
    Names,
    distinct,
    find,
    no_label,
    read_names,
    says_splits,
    split_text,
    splits_of_files,
)

TABLES, ARCHIVES = (".parquet", ".arrow"), (".npz",)
DATASET_DICT, STATE = "dataset_dict.json", "state.json"
BLOCK_BYTES = 32 << 20  # of images decoded at once
BLOCKS = 4  # cached: four readers request neighbouring rows, and a limit leaves gaps
_MAX_BLOCK_ROWS = 4096
_MAX_BLOCK_BYTES = 128 << 20  # of rows that all hold the largest image of a dictionary; else it is held once
_BUFFER = 1 << 20  # bytes of a column read at once: a row group may not fit in memory
_MAGIC = b"ARROW1"  # of Arrow's file format; other files are streams, as Hugging Face writes
_STREAM = 8  # where the stream starts that such a file holds before its index
# raised by pyarrow and zipfile for invalid files
_INVALID = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, *limits.BAD_ARCHIVE)


@dataclass(frozen=True)
class _Group:
    """Consecutive rows of a file: a row group of Parquet, an array of an archive, or all rows of an Arrow file.

    Attributes:
        name: what to call it in errors.
        path, stamp: the file and its state when it was listed.
        first: its first row in the file.
        rows: number of rows.
        images: file offset and size in bytes of each image, shape (rows, 2), size -1 for none; or, if the images are
            compressed, what decodes them in blocks, from the first row on.
        encode: makes a file of an image that is stored otherwise.
        listed: equal for copies of the group in other processes, and for no other group.
    """

    name: str
    path: str
    stamp: FileState
    first: int
    rows: int
    images: NDArray[np.int64] | Callable[[], Iterator[pa.Array]] = field(compare=False)
    encode: Callable[[bytes], bytes] = field(default=bytes, compare=False)
    listed: UUID = field(default_factory=uuid4)


@dataclass
class _Table:
    """The rows of a file.

    Attributes:
        columns: column name by purpose: image, label, split, key.
        classes: names of integer labels, if they have some.
        remarks: why there is no label.
        splits_from: where the splits among the values come from.
        values: values of all rows by purpose: label, split, key.
        groups: groups of rows, in order.
    """

    columns: dict[str, str] = field(default_factory=dict)
    classes: Sequence[str] = ()
    remarks: tuple[str, ...] = ()
    splits_from: str = "its column"
    values: dict[str, list[Any]] = field(default_factory=dict)
    groups: list[_Group] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of readable rows."""
        return sum(group.rows for group in self.groups)


@register_source("npz", options=("names",), endings=ARCHIVES, position=4)
@register_source(
    "parquet",
    options=("image_column", "path_column", "label_column", "split_column", "names"),
    endings=TABLES,
    members=TABLES,
    claims=lambda folder, _: _is_saved(folder),
    position=3,
)
class TableSource:
    """Images in a column of Parquet files or of a Hugging Face dataset, or in arrays of a NumPy archive.

    Kind ``parquet``: ``root`` is a file, a folder, a pattern (see `shards`), or a folder written by ``save_to_disk``: a
    ``Dataset``, or a ``DatasetDict`` whose parts are splits. Otherwise splits come from a column, or from the file
    paths if each names one. Images are a binary column or a struct with a field ``bytes``. Labels are text or integers,
    which get the names and order of a ``ClassLabel``; negative integers mean no label. Columns are found by their usual
    names (see `labels`) or named in the configuration. A key is ``<file>/<row>``, such as
    ``data/train-00000-of-00002.parquet/000000017``, or the value of ``config.path_column``.

    Kind ``npz``: ``root`` is an archive with arrays ``train_images``, ``val_images`` and ``test_images``, or any of
    them, as MedMNIST has, or one array ``images``: uint8, (N, H, W) or (N, H, W, 3). Labels are integers in
    ``train_labels``, …, of shape (N,) or (N, 1); a negative one means none. Several labels per image make no classes.
    A key is ``<split>/<row>``, such as ``train/000000017``; images are delivered as BMP.

    Rows are read in the order of keys: in Parquet, ids that are not in row order cost the decoding of a row group per
    image. Unreadable files, and rows with a missing or repeated key, are skipped with a warning. A row without bytes
    fails when read.

    Raises:
        ConfigError: nothing found, no suitable column or array, or no images.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = config or SourceConfig()
        config = config.of_kind("npz" if config.kind == "npz" else "parquet")
        self.root, self.options = str(root), config.options()
        left_out, readable = LeftOut(self.root), read_names(config.names)
        files = _files(self.root, config, left_out)
        splits_by_name = splits_of_files([file.name for file in files]) or repeat(None)
        self._groups: list[_Group] = []
        self._starts: list[int] = []  # first row of each group among those of all files
        self._row = array("q")  # of each image, counted likewise
        tables: list[_Table] = []
        keys: list[str] = []
        labels: list[str | None] = []
        splits: list[str | None] = []
        known: set[str] = set()
        end = 0
        for file, split in zip(files, splits_by_name, strict=False):
            try:
                table = _open(file, config, left_out)
            except _INVALID as error:
                left_out.add(file.name, f"cannot be read: {words(error)}")
                continue
            if split and "split" not in table.values:
                table.values["split"], table.splits_from = [split] * table.rows, "the names of the files"
            for row, key, label, split_name in _rows(file.name, table, readable, known, left_out):
                self._row.append(end + row)
                keys.append(key)
                labels.append(label)
                splits.append(split_name)
            tables.append(table)
            self._groups += table.groups
            self._starts += [end + group.first for group in table.groups]
            end += table.rows
        self.refused = left_out.tell()
        if not keys:
            raise ConfigError("images", self.root, f"files with image rows{left_out.first()}")
        if all(isinstance(group.images, np.ndarray) and (group.images[:, 1] < 0).all() for group in self._groups):
            allowed = "rows with image bytes; these have none (paths to image files are not followed)"
            raise ConfigError("images", self.root, allowed)
        given = splits if any(splits) else None
        origins = dict.fromkeys(table.splits_from for table in tables if "split" in table.values)
        columns = {
            what: " or ".join(names)
            for what in ("image", "label", "split", "key")
            if (names := dict.fromkeys(table.columns[what] for table in tables if what in table.columns))
        }
        self.understood = Understood(
            left_out,
            splits_from=" and ".join(origins) if given else "",
            columns=columns,
            remarks=() if "label" in columns else tables[0].remarks,
        )
        self.records = Records(keys, labels, given, self._file, readable.order())
        self.class_names = self.records.class_names

    def _file(self, place: int) -> _Span | _Row:
        row = self._row[place]
        number = bisect_right(self._starts, row) - 1
        group, row = self._groups[number], row - self._starts[number]
        if not isinstance(group.images, np.ndarray):
            return _Row(group, row)
        return _Span(group.path, group.stamp, group.first + row, *group.images[row].tolist())


@dataclass(frozen=True, slots=True)
class _Span:
    """An image that is stored as it is, in a row of a file."""

    path: str
    stamp: FileState
    row: int
    offset: int
    size: int

    def read(self) -> bytes:
        """See `ImageRecord`."""
        if self.size < 0:
            raise OSError(errno.ENODATA, "row has no image bytes", self.path)
        return read_span(self.path, self.stamp, self.offset, self.size)

    def mark(self) -> int:
        """See `ImageRecord`."""
        return mark_of_file(self.path, self.row)


@dataclass(frozen=True, slots=True)
class _Row:
    """An image in a row of a group that is decoded in blocks."""

    group: _Group
    row: int

    def read(self) -> bytes:
        """See `ImageRecord`."""
        return _BLOCKS.read(self.group, self.row)

    def mark(self) -> int:
        """See `ImageRecord`."""
        return mark_of_file(self.group.path, self.group.first + self.row)


def _rows(
    file: str, table: _Table, readable: Names, known: set[str], left_out: LeftOut
) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Row, key, label and split of each image."""
    columns = (table.values.get(what, repeat(None)) for what in ("key", "label", "split"))
    for row, key, label, split in zip(range(table.rows), *columns, strict=False):
        where = name = f"{file}/{row:09d}"
        if "key" in table.values:
            name = "" if key is None else str(key)
            if not name or len(name) > MAX_TEXT or name in known:
                left_out.add(where, f"has a missing or repeated id ({name[:MAX_TEXT]!r}); skipped")
                continue
            known.add(name)
        try:
            class_name = _label(label, table.classes, readable)
        except ValueError as error:
            left_out.note(where, f"has {error}; left unlabelled")
            class_name = None
        yield row, name, class_name, split_text(split, f"of {where}")


def _label(value: object, classes: Sequence[str], readable: Names) -> str | None:
    if not isinstance(value, int):
        return readable.of(label_text(value))
    if value < 0:
        return None
    if not classes:
        return readable.of(label_text(value))
    if value >= len(classes):
        raise ValueError(f"label {value}, outside its {len(classes)} classes")
    return readable.of_numbered(value, classes[value])


class _Blocks:
    """Cache of the last decoded blocks of rows, with one decoder that continues from its position.

    Reading rows in order takes one pass over the file. Going back in a group decodes it again from its start. A process
    has one, so that groups which arrive from another process again are decoded on from there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all blocks."""
        self._kept: deque[_Block] = deque(maxlen=BLOCKS)
        self._group: _Group | None = None
        self._next = 0  # row of the group
        self._decoder: Iterator[_Block] = iter(())

    def read(self, group: _Group, row: int) -> bytes:
        """Read the image of a row. Raises OSError."""
        with self._lock:
            found = (block for block in self._kept if block.group == group and block.first <= row < block.end)
            block = next(found, None) or self._decode(group, row)
        if isinstance(block.images, str):
            raise OSError(errno.EIO, block.images, group.path)
        data: bytes | None = block.images[row - block.first].as_py()
        if data is None:
            raise OSError(errno.ENODATA, "row has no image bytes", group.path)
        if len(data) > limits.MAX_IMAGE_FILE:
            raise OSError(errno.EFBIG, f"image larger than {limits.MAX_IMAGE_FILE} bytes", group.path)
        return group.encode(data)

    def _decode(self, group: _Group, row: int) -> _Block:
        if FileState.of_path(group.path) != group.stamp:
            raise OSError(errno.ESTALE, "file changed since it was listed", group.path)
        if self._group != group or self._next > row:
            self._group, self._decoder = group, _blocks(group)
        block = next(block for block in self._decoder if row < block.end)
        self._next = block.end
        self._kept.append(block)
        return block


_BLOCKS = _Blocks()
atexit.register(_BLOCKS.clear)  # a decoder closes its file, which it cannot once modules are gone


class _Block(NamedTuple):
    """Consecutive rows of a group: their images, or why they cannot be decoded."""

    group: _Group
    first: int
    end: int
    images: pa.Array | str


def _blocks(group: _Group) -> Iterator[_Block]:
    """Decode a group; what follows damage is one block."""
    assert callable(group.images)
    end = 0
    try:
        for images in map(_bytes_of, group.images()):
            yield _Block(group, end, end + len(images), images)
            end += len(images)
        reason = f"it ends at row {end}"
    except _INVALID as error:
        reason = words(error)
    yield _Block(group, end, group.rows, f"{group.name} cannot be decoded: {reason}")


def _bytes_of(column: pa.Array) -> pa.Array:
    """The encoded images of a column: itself, or the field ``bytes`` of a struct. Raises ArrowInvalid."""
    column.validate(full=True)  # offsets from the file are untrusted
    if pa.types.is_struct(column.type):
        return column.flatten()[column.type.get_field_index("bytes")]
    return column


def _open(file: Shard, config: SourceConfig, left_out: LeftOut) -> _Table:
    """Open a file.

    Raises:
        ConfigError: no suitable column.
        _INVALID: the file cannot be read.
    """
    stamp = FileState.of_path(file.path)
    if config.kind == "npz":
        return _archive(file.path, stamp)
    is_arrow = file.path.lower().endswith(".arrow")
    table = _arrow(file, stamp, config, left_out) if is_arrow else _parquet(file.path, stamp, config)
    maybe = not config.split_column and table.columns.get("split", "").lower() in MAYBE_SPLIT_COLUMNS
    if maybe and not says_splits(table.values["split"]):
        del table.columns["split"], table.values["split"]
    return table


def _parquet(path: str, stamp: FileState, config: SourceConfig) -> _Table:
    opened = partial(_opened, path, uuid4())
    with opened() as file:
        table = _with_columns(file.schema_arrow, path, config)
        image = table.columns["image"]
        image += ".bytes" if pa.types.is_struct(file.schema_arrow.field(image).type) else ""
        end = 0
        for number, group in enumerate(limits.footer(file, "footer", stamp.size, IMAGE_BYTES)):
            rows = max(1, min(_MAX_BLOCK_ROWS, BLOCK_BYTES * group.num_rows // max(1, group.total_byte_size)))
            decode = partial(_row_group, opened, number, image, rows)
            table.groups.append(_Group(f"row group {number}", path, stamp, end, group.num_rows, decode))
            end += group.num_rows
    small = {what: name for what, name in table.columns.items() if what != "image"}
    names = list(dict.fromkeys(small.values()))
    with opened(read_dictionary=names) as file:  # so that a repeated text is held once
        content = file.read(columns=names, use_threads=False)
    if content.num_rows != table.rows:
        raise ValueError("columns differ in length")
    table.values = {what: limits.values(content[name]) for what, name in small.items()}
    return table


@lru_cache(BLOCKS)
def _footer(path: str, listed: UUID) -> pq.FileMetaData:
    del listed
    return pq.read_metadata(path)


def _opened(path: str, listed: UUID, *, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a file whose footer, which grows with its row groups, is read once in each process."""
    return pq.ParquetFile(
        path,
        metadata=_footer(path, listed),
        read_dictionary=read_dictionary,
        buffer_size=_BUFFER,
        page_checksum_verification=True,
    )


def _row_group(opened: Callable[..., pq.ParquetFile], number: int, image: str, rows: int) -> Iterator[pa.Array]:
    what = {"row_groups": [number], "columns": [image], "use_threads": False}
    # a dictionary may repeat one large image, also in rows that are only passed over
    with opened(read_dictionary=[image]) as file:
        first = _bytes_of(next(file.iter_batches(batch_size=1, **what)).column(0))
    is_dictionary = pa.types.is_dictionary(first.type)
    largest = pc.max(pc.binary_length(first.dictionary)).as_py() or 0 if is_dictionary else 0
    with opened(read_dictionary=[image] if largest * rows > _MAX_BLOCK_BYTES else ()) as file:
        for batch in file.iter_batches(batch_size=rows, **what):
            yield batch.column(0)


def _arrow(file: Shard, stamp: FileState, config: SourceConfig, left_out: LeftOut) -> _Table:
    with pa.memory_map(file.path) as mapped:
        # only pages with offsets and labels are read; the mapping ends with the arrays of this call
        whole = mapped.read_buffer()
    stream = whole.slice(_STREAM) if whole[: len(_MAGIC)].to_pybytes() == _MAGIC else whole
    limits.require_uncompressed(stream)
    reader = pa.ipc.open_stream(stream)
    table = _with_columns(reader.schema, file.path, config)
    table.values = {what: [] for what in table.columns if what != "image"}
    names = list(dict.fromkeys(table.columns.values()))
    end = 0
    try:
        for batch in reader:
            limits.require_rows("batch", end + len(batch), stamp.size, IMAGE_BYTES)
            batch.select(names).validate(full=True)  # offsets from the file are untrusted
            spans = _spans(_bytes_of(batch.column(table.columns["image"])), whole)
            for what in table.values:
                table.values[what] += limits.values(batch.column(table.columns[what]))
            table.groups.append(_Group("batch", file.path, stamp, end, len(batch), spans))
            end += len(batch)
    except _INVALID as error:
        left_out.add(file.name, f"cannot be read after row {end}: {words(error)}")
    return table


def _spans(images: pa.Array, whole: pa.Buffer) -> NDArray[np.int64]:
    """File offset and size in bytes of each image; size -1 means none. Shape: (rows, 2)."""
    _, offsets, data = images.buffers()
    if not data:  # all rows are empty or missing
        span_N2 = np.zeros((len(images), 2), np.int64)
    else:
        kind = np.int64 if pa.types.is_large_binary(images.type) else np.int32
        offset_N = np.frombuffer(offsets, kind)[images.offset :][: len(images) + 1].astype(np.int64)
        span_N2 = np.stack([offset_N[:-1] + (data.address - whole.address), np.diff(offset_N)], axis=1)
        if (span_N2[:, 0] < 0).any() or (span_N2.sum(axis=1) > whole.size).any():
            raise ValueError("compressed buffers; write the file uncompressed or as Parquet")
    span_N2[images.is_null().to_numpy(zero_copy_only=False), 1] = -1
    return span_N2


def _archive(path: str, stamp: FileState) -> _Table:
    table = _Table(splits_from="the names of the arrays", values={"label": [], "split": [], "key": []})
    with zipfile.ZipFile(path) as archive:
        for split in (*SPLITS, None):
            name = f"{split}_images" if split else "images"
            if f"{name}.npy" not in archive.namelist():
                continue
            with archive.open(f"{name}.npy") as file:
                shape, fortran, dtype = limits.array_header(file)
                size = archive.getinfo(f"{name}.npy").file_size - file.tell()
            if dtype != np.uint8 or fortran or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
                allowed = "uint8, (N, H, W) or (N, H, W, 3), in C order"
                raise ValueError(f"{name}: {dtype} of shape {shape}; allowed: {allowed}")
            whole = min(shape) >= 0 and math.prod(shape) == size
            if not whole or not 0 < math.prod(shape[1:3]) <= MAX_PIXELS:
                raise ValueError(f"{name}: {size:,} bytes for an array of shape {shape}")
            limits.require_rows(name, shape[0], stamp.size, IMAGE_BYTES)
            labels, remarks = _array_labels(archive, name.replace("images", "labels"), shape[0])
            table.remarks += remarks
            table.values["key"] += [f"{split or name}/{row:09d}" for row in range(shape[0])]
            table.values["split"] += [split] * shape[0]
            table.values["label"] += labels
            decode, encode = partial(_pixels, path, f"{name}.npy"), partial(_bitmap, shape[1:])
            table.groups.append(_Group(name, path, stamp, table.rows, shape[0], decode, encode))
    if not table.groups:
        raise ValueError("no array images, or train_images, …")
    return table


def _array_labels(archive: zipfile.ZipFile, name: str, rows: int) -> tuple[list[int | None], tuple[str, ...]]:
    """Labels of an array of images, or why there are none; nothing is read before shape and type fit."""
    if f"{name}.npy" not in archive.namelist():
        return [None] * rows, (f"no array {name}: no classes",)
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = limits.array_header(file)
        if shape[:1] != (rows,) or len(shape) > 2 or dtype.kind not in "iu":
            raise ValueError(f"{name}: {dtype} of shape {shape}; allowed: {rows} integers")
        if shape[1:] not in ((), (1,)):
            return [None] * rows, (f"several labels per image in {name}: no classes",)
        return np.frombuffer(file.read(rows * dtype.itemsize), dtype, rows).tolist(), ()


def _pixels(path: str, member: str) -> Iterator[pa.Array]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        (rows, *shape), _, _ = limits.array_header(file)
        size = math.prod(shape)
        block_rows = max(1, BLOCK_BYTES // size)
        for start in range(0, rows, block_rows):
            count = min(block_rows, rows - start)
            data = pa.py_buffer(file.read(count * size))
            yield pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, data])


def _bitmap(shape: tuple[int, ...], pixels: bytes) -> bytes:
    """An image as BMP, whose bytes do not depend on a library's compression."""
    file = io.BytesIO()
    image = np.frombuffer(pixels, np.uint8).reshape(shape[:2] if shape[2:] == (1,) else shape)
    Image.fromarray(image).convert("RGB").save(file, "BMP")
    return file.getvalue()


def _with_columns(schema: pa.Schema, path: str, config: SourceConfig) -> _Table:
    """A table without rows, whose columns are found.

    Raises:
        ConfigError: no image column, several candidates, or a requested column that is missing or unsuitable.
    """
    kinds = {field.name: field.type for field in schema}
    features = _features(schema)
    plain = [name for name, kind in kinds.items() if _is_plain(kind)]
    columns = {
        "image": _image_column(kinds, features, path, config),
        "label": _asked(config, "label_column", "a text or integer", plain, path) or find(plain, LABEL_COLUMNS),
        "split": _asked(config, "split_column", "a text or integer", plain, path) or find(plain, SPLIT_COLUMNS),
        "key": _asked(config, "path_column", "a text or integer", plain, path),
    }
    unused = [name for name in plain if name not in columns.values()]
    wrong = find([name for name in kinds if name not in (*plain, columns["image"])], LABEL_COLUMNS)
    if wrong:  # shown with its type
        unused.insert(0, f"{wrong} (of type {kinds[wrong]})")
    columns["split"] = columns["split"] or find(plain, MAYBE_SPLIT_COLUMNS)
    feature = features.get(columns["label"] or "")
    names = _strings(feature.get("names")) if isinstance(feature, dict) else []
    classes = distinct(names, [str(i) for i in range(len(names))])
    return _Table({what: name for what, name in columns.items() if name}, classes, no_label(unused))


def _image_column(
    kinds: Mapping[str, pa.DataType], features: Mapping[str, Any], path: str, config: SourceConfig
) -> str:
    fit = [name for name, kind in kinds.items() if _holds_bytes(kind)]
    if name := _asked(config, "image_column", "a binary", fit, path) or find(fit, IMAGE_COLUMNS):
        return name
    marked = [name for name in fit if isinstance(features.get(name), dict) and features[name].get("_type") == "Image"]
    for found in (marked, fit):
        if len(found) == 1:
            return found[0]
    raise MissingError("source.image_column", f"name the image column of {path}: {_list(fit)}")


def _asked(config: SourceConfig, field: str, kind: str, fit: Sequence[str], path: str) -> str:
    """The column named in the configuration; "" for none."""
    name: str = getattr(config, field)
    if name and name not in fit:
        raise ConfigError(f"source.{field}", name, f"{kind} column of {path}: {_list(fit)}")
    return name


def _list(names: Sequence[str]) -> str:
    return ", ".join(name[:50] for name in names[:20]) or "it has none"


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """Hugging Face features by column; empty if there are none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        features = None
    return features if isinstance(features, dict) else {}


def _is_saved(folder: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (DATASET_DICT, STATE))


def _files(root: str, config: SourceConfig, left_out: LeftOut) -> list[Shard]:
    """List the files of a source: of those below the root the ones that a saved dataset names, else all (see `shards`).

    Raises:
        ConfigError: nothing found, or unreadable metadata.
    """
    if config.kind == "npz":
        return [Shard(os.path.basename(root), root)]
    if not os.path.isdir(root) or not _is_saved(root):
        return shards(root, TABLES, left_out)
    below = {os.path.split(shard.name): shard for shard in shards(root, TABLES, LeftOut(root))}
    folders = {folder for folder, _ in below}
    description = os.path.join(root, DATASET_DICT)
    found: dict[str, Shard] = {}
    for part in _strings(_json(description).get("splits")) if os.path.isfile(description) else [""]:
        entries = _json(os.path.join(root, part, STATE)).get("_data_files") if part in folders else None
        for entry in entries if isinstance(entries, list) else [None]:
            name = str(entry.get("filename")) if isinstance(entry, dict) else ""
            if shard := below.get((part, name)):
                found[shard.name] = shard
            else:
                left_out.add(os.path.join(part, name).rstrip("/"), "is not a file below the folder; skipped")
    if not found:
        left_out.tell()
        raise ConfigError("images", root, f"a saved dataset that lists its files{left_out.first()}")
    return [found[name] for name in sorted(found)]


def _json(path: str) -> Mapping[str, Any]:
    try:
        content = json.loads(limits.read_text(Path(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("images", path, f"readable dataset metadata ({words(error)})") from error
    return content if isinstance(content, dict) else {}


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
