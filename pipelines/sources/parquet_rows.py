"""The images of a Parquet file: decoded a few rows at a time, in the order in which they are asked for."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from substyle.pipelines.sources.arrow_rows import ARROW_ERRORS
from substyle.pipelines.sources.config import SourceConfig
from substyle.pipelines.sources.files import MAX_BYTES, FileState, mark_of_file, open_regular
from substyle.pipelines.sources.hub import columns
from substyle.pipelines.sources.text import words

BLOCK_BYTES = 32 << 20  # of images decoded at once
BLOCKS = 4  # kept: four readers ask for neighbours, and a limit leaves gaps
_MAX_BLOCK_ROWS = 4096
_BUFFER = 1 << 20  # bytes of a column read at once: a row group may be larger than the memory


class ParquetRows:
    """The rows of one Parquet file.

    Attributes:
        columns, rows, values, damage: as in `ArrowRows`; a Parquet file is read to its end or not at all.
        lacking: 0, as it is not known.

    Raises:
        ConfigError: no column of images.
        OSError, ArrowException, ValueError: the file cannot be read.
    """

    damage: str | None = None
    lacking = 0

    def __init__(self, path: str, config: SourceConfig, blocks: Blocks) -> None:
        self.path, self._blocks = path, blocks
        self.stamp = _stamp(path)
        with pq.ParquetFile(path, buffer_size=_BUFFER, page_checksum_verification=True) as file:
            self.metadata = file.metadata
            self.columns = columns(file.schema_arrow, path, config)
            self.rows = int(self.metadata.num_rows)
            groups = [self.metadata.row_group(i) for i in range(self.metadata.num_row_groups)]
            sizes = [int(group.num_rows) for group in groups]
            # an image takes more than a byte: this footer lies, and its rows would fill the memory
            if min(sizes, default=0) < 0 or sum(sizes) != self.rows or self.rows > self.stamp.size:
                raise ValueError(f"it claims {self.rows} rows in {self.stamp.size} bytes")
            names = self.columns.small
            table = file.read(columns=names, use_threads=False) if names else None
        self.values: dict[str, list[object]] = {name: table[name].to_pylist() for name in names} if table else {}
        if any(len(values) != self.rows for values in self.values.values()):
            raise ValueError("its columns are not of one length")
        self.start_G = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.image = f"{self.columns.image}.bytes" if self.columns.in_struct else self.columns.image
        # a group's columns are not asked: pyarrow ends the process where a damaged footer contradicts itself
        self.block_rows = [
            max(1, min(_MAX_BLOCK_ROWS, BLOCK_BYTES * rows // max(1, int(group.total_byte_size))))
            for rows, group in zip(sizes, groups, strict=True)
        ]

    def read(self, row: int) -> bytes:
        """The bytes of a row's image. Raises OSError."""
        return self._blocks.read(self, row)

    def mark(self, row: int) -> int:
        """The mark of a row's image; see `ImageRecord`."""
        return mark_of_file(self.path, row)


def _stamp(path: str) -> FileState:
    descriptor = open_regular(path)
    try:
        return FileState.of(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class _Cursor:
    """Where the decoder of a row group stands."""

    group: tuple[str, int]
    row: int  # of the group, the next that it gives
    batches: Iterator[pa.RecordBatch]


class Blocks:
    """Decoded rows of the files of a source: the last few blocks, and one decoder that goes on where it stands.

    Rows that are read in order cost one pass over the file, whatever the size of its row groups; going back inside a
    row group decodes it from its beginning.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int, int], pa.Array] = OrderedDict()
        self._cursor: _Cursor | None = None
        self._broken: dict[tuple[str, int], tuple[int, str]] = {}

    def read(self, file: ParquetRows, row: int) -> bytes:
        """The bytes of the image in a row of a file. Raises OSError."""
        group = int(np.searchsorted(file.start_G, row, side="right")) - 1
        inner = row - int(file.start_G[group])
        with self._lock:
            start, block = self._find(file.path, group, inner) or self._decode(file, group, inner)
            value = block[inner - start]
        if not value.is_valid:
            raise OSError(errno.ENODATA, "the row holds no image bytes", file.path)
        if value.as_buffer().size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"an image of more than {MAX_BYTES} bytes", file.path)
        return bytes(value.as_py())

    def _find(self, path: str, group: int, row: int) -> tuple[int, pa.Array] | None:
        for place, block in self._blocks.items():
            if place[:2] == (path, group) and 0 <= row - place[2] < len(block):
                self._blocks.move_to_end(place)
                return place[2], block
        return None

    def _decode(self, file: ParquetRows, group: int, row: int) -> tuple[int, pa.Array]:
        """Go on to the block that holds a row."""
        place = (file.path, group)
        broken = self._broken.get(place)
        if broken is not None and row >= broken[0]:
            raise OSError(errno.EIO, broken[1], file.path)
        if _stamp(file.path) != file.stamp:
            raise OSError(errno.ESTALE, "the file has changed since it was listed", file.path)
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
    with pq.ParquetFile(
        file.path, metadata=file.metadata, buffer_size=_BUFFER, page_checksum_verification=True
    ) as opened:
        yield from opened.iter_batches(
            batch_size=file.block_rows[group], row_groups=[group], columns=[file.image], use_threads=False
        )
