"""Where the images of an Arrow file lie: bytes are read by offset, as from a tar file."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from substyle.pipelines.sources.config import SourceConfig
from substyle.pipelines.sources.files import FileState, mark_of_file, open_regular, read_span
from substyle.pipelines.sources.hub import Columns, columns
from substyle.pipelines.sources.text import words

# what pyarrow raises for files that are not what they claim to be
ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError)
_MAGIC = b"ARROW1"  # of the file format; without it a file is a stream, which is what Hugging Face writes


class ArrowRows:
    """The rows of one Arrow file, as `save_to_disk` writes it.

    Attributes:
        columns: which columns are what.
        rows: number of rows that can be read.
        values: by name, the values of the small columns.
        lacking: rows without bytes.
        damage: why the file could not be read to its end, or None.

    Raises:
        ConfigError: no column of images.
        OSError, ArrowException, ValueError: the file cannot be read at all.
    """

    def __init__(self, path: str, config: SourceConfig) -> None:
        self.path = path
        descriptor = open_regular(path)
        try:
            self._stamp = FileState.of(descriptor)
            if not self._stamp.size:
                raise OSError(errno.EINVAL, "the file is empty", path)
            # only pages that hold offsets and labels are touched; the map goes when the arrays of this call do
            whole = pa.py_buffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)
        is_file = whole.slice(0, min(len(_MAGIC), whole.size)).to_pybytes() == _MAGIC
        reader = pa.ipc.open_file(whole) if is_file else pa.ipc.open_stream(whole)
        self.columns = columns(reader.schema, path, config)
        self.values: dict[str, list[object]] = {name: [] for name in self.columns.small}
        self.damage: str | None = None
        spans = [np.zeros((0, 2), np.int64)]
        try:
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
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
        """The bytes of a row's image. Raises OSError."""
        offset, size = self._span_N2[row].tolist()
        if size < 0:
            raise OSError(errno.ENODATA, "the row holds no image bytes", self.path)
        return read_span(self.path, self._stamp, offset, size)

    def mark(self, row: int) -> int:
        """The mark of a row's image; see `ImageRecord`."""
        return mark_of_file(self.path, row)


def _spans(batch: pa.RecordBatch, found: Columns, whole: pa.Buffer) -> NDArray[np.int64]:
    """Offset in the file and size in bytes of each row's image, the size -1 for none. Shape: (rows, 2)."""
    array = batch.column(found.image)
    array.validate(full=True)  # the offsets come from the file: none may point elsewhere
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
            raise ValueError("its buffers are compressed; write it uncompressed, or as Parquet")
    span_N2[lacks, 1] = -1
    return span_N2


def _values(batch: pa.RecordBatch, name: str) -> list[object]:
    array = batch.column(name)
    array.validate(full=True)
    return list(array.to_pylist())
