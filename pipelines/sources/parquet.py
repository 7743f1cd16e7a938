"""Sources of images in Parquet files and Hugging Face datasets."""

from __future__ import annotations

import errno
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from substyle.kernels.errors import ConfigError
from substyle.pipelines import limits
from substyle.pipelines.sources.base import (
    IMAGE_BYTES,
    MAX_TEXT,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    label_text,
    register_source,
    words,
)
from substyle.pipelines.sources.files import FileState, Shard, mark_of_file
from substyle.pipelines.sources.hf_dataset import (
    ARROW_ERRORS,
    TABLE_KINDS,
    ArrowRows,
    Columns,
    columns,
    is_saved,
    table_files,
)
from substyle.pipelines.sources.labels import Names, no_label, read_names, says_splits, split_text, splits_of_files

BLOCK_BYTES = 32 << 20  # of images decoded at once
BLOCKS = 4  # cached: four readers request neighbouring rows, and a limit leaves gaps
_MAX_BLOCK_ROWS = 4096
_MAX_BLOCK_BYTES = 128 << 20  # of rows that all hold the largest image of a dictionary; else it is held once
_BUFFER = 1 << 20  # bytes of a column read at once: a row group may not fit in memory


class ParquetRows:
    """The rows of one Parquet file.

    Attributes:
        columns, rows, values, damage: as in `ArrowRows`; a damaged Parquet file is never read in part.
        lacking: 0: the number is unknown.

    Raises:
        ConfigError: no image column.
        OSError, ArrowException, ValueError: the file cannot be read.
    """

    damage: str | None = None
    lacking = 0

    def __init__(self, path: str, config: SourceConfig, blocks: Blocks) -> None:
        self.path, self._blocks = path, blocks
        self.stamp = FileState.of_path(path)
        with pq.ParquetFile(path, buffer_size=_BUFFER, page_checksum_verification=True) as file:
            self.metadata = file.metadata
            self.columns = columns(file.schema_arrow, path, config)
            self.rows = int(self.metadata.num_rows)
            groups = limits.footer(file, "footer", self.stamp.size, IMAGE_BYTES)
            sizes = [int(group.num_rows) for group in groups]
            texts = set(limits.texts(file))
        names = self.columns.small
        with self.opened(sorted(texts.intersection(names))) as file:
            table = file.read(columns=names, use_threads=False) if names else None
        self.values: dict[str, list[object]] = {name: limits.values(table[name]) for name in names} if table else {}
        if any(len(values) != self.rows for values in self.values.values()):
            raise ValueError("columns differ in length")
        self.start_G = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.image = f"{self.columns.image}.bytes" if self.columns.in_struct else self.columns.image
        self.block_rows = [
            max(1, min(_MAX_BLOCK_ROWS, BLOCK_BYTES * rows // max(1, int(group.total_byte_size))))
            for rows, group in zip(sizes, groups, strict=True)
        ]

    def opened(self, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
        """Open the file; these columns are read as dictionaries, so that a repeated value is held once."""
        return pq.ParquetFile(
            self.path,
            metadata=self.metadata,
            read_dictionary=dictionaries,
            buffer_size=_BUFFER,
            page_checksum_verification=True,
        )

    def read(self, row: int) -> bytes:
        """Read the image of a row. Raises OSError."""
        return self._blocks.read(self, row)

    def mark(self, row: int) -> int:
        """The mark of a row's image; see `ImageRecord`."""
        return mark_of_file(self.path, row)


@dataclass
class _Cursor:
    """State of the decoder of a row group."""

    group: tuple[str, int]
    row: int  # next row, counted from the start of the group
    batches: Iterator[pa.RecordBatch]


class Blocks:
    """Cache of the last decoded blocks of rows, with one decoder that continues from its position.

    Reading rows in order takes one pass over the file. Going back in a row group decodes it again from its start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int, int], pa.Array] = OrderedDict()
        self._cursor: _Cursor | None = None
        self._broken: dict[tuple[str, int], tuple[int, str]] = {}

    def read(self, file: ParquetRows, row: int) -> bytes:
        """Read the image of a row. Raises OSError."""
        group = int(np.searchsorted(file.start_G, row, side="right")) - 1
        inner = row - int(file.start_G[group])
        with self._lock:
            start, block = self._find(file.path, group, inner) or self._decode(file, group, inner)
            value = block[inner - start]
        if isinstance(value, pa.DictionaryScalar):
            value = value.value
        if not value.is_valid:
            raise OSError(errno.ENODATA, "row has no image bytes", file.path)
        if value.as_buffer().size > limits.MAX_IMAGE_FILE:
            raise OSError(errno.EFBIG, f"image larger than {limits.MAX_IMAGE_FILE} bytes", file.path)
        return bytes(value.as_py())

    def _find(self, path: str, group: int, row: int) -> tuple[int, pa.Array] | None:
        for place, block in self._blocks.items():
            if place[:2] == (path, group) and 0 <= row - place[2] < len(block):
                self._blocks.move_to_end(place)
                return place[2], block
        return None

    def _decode(self, file: ParquetRows, group: int, row: int) -> tuple[int, pa.Array]:
        """Decode up to the block that contains a row."""
        place = (file.path, group)
        broken = self._broken.get(place)
        if broken is not None and row >= broken[0]:
            raise OSError(errno.EIO, broken[1], file.path)
        if FileState.of_path(file.path) != file.stamp:
            raise OSError(errno.ESTALE, "file changed since it was listed", file.path)
        cursor = self._cursor
        if cursor is None or cursor.group != place or cursor.row > row:
            cursor = self._cursor = _Cursor(place, 0, _batches(file, group))
        while True:
            start = cursor.row
            try:
                batch = next(cursor.batches, None)
                if batch is None or not len(batch):
                    raise ValueError(f"row group {group} ends at row {start}")
                block = batch.column(0)
                block.validate(full=True)
                if file.columns.in_struct:
                    (block,) = block.flatten()
            except ARROW_ERRORS as error:
                self._cursor = None
                reason = f"row group {group} cannot be decoded: {words(error)}"
                self._broken[place] = (start, reason)
                raise OSError(errno.EIO, reason, file.path) from error
            cursor.row += len(block)
            if row < cursor.row:
                self._blocks[*place, start] = block
                while len(self._blocks) > BLOCKS:
                    self._blocks.popitem(last=False)
                return start, block


def _batches(file: ParquetRows, group: int) -> Iterator[pa.RecordBatch]:
    what = {"row_groups": [group], "columns": [file.image], "use_threads": False}
    # a dictionary may repeat one large image, also in rows that are only passed over
    with file.opened([file.image]) as opened:
        first = next(opened.iter_batches(batch_size=1, **what), None)
        largest = 0 if first is None else _largest(first.column(0))
    rows = file.block_rows[group]
    with file.opened([file.image] if largest * rows > _MAX_BLOCK_BYTES else ()) as opened:
        yield from opened.iter_batches(batch_size=rows, **what)


def _largest(image: pa.Array) -> int:
    """The size of the largest image of a dictionary; 0 without a dictionary."""
    if pa.types.is_struct(image.type):
        (image,) = image.flatten()
    return pc.max(pc.binary_length(image.dictionary)).as_py() or 0 if pa.types.is_dictionary(image.type) else 0


@register_source(
    "parquet",
    options=("image_column", "path_column", "label_column", "split_column", "names"),
    endings=TABLE_KINDS,
    members=TABLE_KINDS,
    claims=lambda folder, _: is_saved(folder),
    position=3,
)
class TableSource:
    """Images in a column of Parquet files or of a Hugging Face dataset.

    ``root`` is a file, a folder, a pattern (see `shards`), or a folder written by ``save_to_disk``: a ``Dataset``, or a
    ``DatasetDict`` whose parts are splits. Otherwise splits come from a column, or from the file paths if each names
    one. Images are a binary column or a struct with a field ``bytes``. Labels are text or integers, which get the names
    and order of a ``ClassLabel``; negative integers mean no label. Columns are found by their usual names (see
    `labels`) or named in the configuration.

    A key is ``<file>/<row>``, such as ``data/train-00000-of-00002.parquet/000000017``, or the value of
    ``config.path_column``. Rows are read in the order of keys: ids that are not in row order cost the decoding of a row
    group per image.

    Unreadable files, and rows with a missing or repeated key, are skipped with a warning. A row without bytes fails
    when read.

    Raises:
        ConfigError: nothing found, no suitable column, or no images.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("parquet")
        self.root, self.options = str(root), config.options()
        left_out = LeftOut(self.root)
        found = table_files(self.root, left_out)
        splits = splits_of_files([shard.name for shard in found])
        readable = read_names(config.names)
        self._files: list[ArrowRows | ParquetRows] = []
        self._keys: list[str] = []
        self._labels: list[str | None] = []
        self._splits: list[str | None] = []
        self._splits_from: dict[str, None] = {}
        self._file, self._row = array("l"), array("q")
        self._known: set[str] = set()
        blocks = Blocks()
        for number, shard in enumerate(found):
            try:
                file = (
                    ParquetRows(shard.path, config, blocks)
                    if _is_parquet(shard.path)
                    else ArrowRows(shard.path, config)
                )
            except ARROW_ERRORS as error:
                left_out.add(shard.name, f"cannot be read: {words(error)}")
                continue
            if file.damage:
                left_out.add(shard.name, f"cannot be read after row {file.rows}: {file.damage}")
            self._add(shard, file, splits[number] if splits else None, readable, left_out)
        del self._known
        self.refused = left_out.tell()
        if not self._keys:
            raise ConfigError("images", self.root, f"files with image rows{left_out.first()}")
        if all(file.lacking >= file.rows for file in self._files):
            raise ConfigError(
                "images",
                self.root,
                "rows with image bytes; these have none (paths to image files are not followed)",
            )
        given = self._splits if any(self._splits) else None
        self.understood = Understood(
            left_out,
            splits_from=" and ".join(self._splits_from) if given else "",
            columns=_chosen([file.columns for file in self._files]),
            remarks=() if any(file.columns.label for file in self._files) else no_label(self._files[0].columns.unused),
        )
        self.records = Records(self._keys, self._labels, given, self._read, self._mark, readable.order())
        del self._keys, self._labels, self._splits
        self.class_names = self.records.class_names

    def _add(
        self,
        shard: Shard,
        file: ArrowRows | ParquetRows,
        split: str | None,
        readable: Names,
        left_out: LeftOut,
    ) -> None:
        number, columns = len(self._files), file.columns
        self._files.append(file)
        nothing: list[object] = [None] * file.rows
        labels = file.values.get(columns.label or "", nothing)
        keys = file.values.get(columns.key or "", nothing)
        splits = file.values.get(columns.split or "", nothing)
        if columns.maybe_split and not says_splits(splits):
            file.columns = columns = replace(columns, split=None)
        if columns.split or split:
            self._splits_from["its column" if columns.split else "the names of the files"] = None
        file.values = {}
        for row, (label, key, split_name) in enumerate(zip(labels, keys, splits, strict=True)):
            where = f"{shard.name}/{row:09d}"
            name = where
            if columns.key is not None:
                name = str(key) if key is not None else ""
                if not name or len(name) > MAX_TEXT or name in self._known:
                    left_out.add(where, f"has a missing or repeated id ({name[:MAX_TEXT]!r}); skipped")
                    continue
                self._known.add(name)
            try:
                self._labels.append(_label(label, columns.classes, readable))
            except ValueError as error:
                left_out.note(where, f"has {error}; left unlabelled")
                self._labels.append(None)
            self._keys.append(name)
            self._splits.append(split_text(split_name, f"of {where}") if columns.split else split)
            self._file.append(number)
            self._row.append(row)

    def _read(self, place: int) -> bytes:
        return self._files[self._file[place]].read(self._row[place])

    def _mark(self, place: int) -> int:
        return self._files[self._file[place]].mark(self._row[place])


def _chosen(files: Sequence[Columns]) -> dict[str, str]:
    """Column name by purpose; alternatives if files differ."""
    chosen = {
        what: " or ".join(dict.fromkeys(name for file in files if (name := getattr(file, what))))
        for what in ("image", "label", "split", "key")
    }
    return {what: name for what, name in chosen.items() if name}


def _is_parquet(path: str) -> bool:
    """Whether a file is Parquet, by its suffix or else its magic bytes."""
    if path.lower().endswith((".parquet", ".arrow")):
        return path.lower().endswith(".parquet")
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _label(value: object, classes: tuple[str, ...] | None, readable: Names) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            return None
        if classes is None:
            return readable.of(str(value))
        if value >= len(classes):
            raise ValueError(f"label {value}, outside its {len(classes)} classes")
        return readable.of_numbered(value, classes[value])
    return readable.of(label_text(value))
