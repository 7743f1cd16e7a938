"""Limits on what a file may take in memory, checked against its own size before anything is allocated.

Compression and dictionaries let a small file claim any number of rows and bytes. A file may therefore decode to
`DECODED` bytes for each of its bytes, and has at least a stated number of bytes per row; small files are granted
`SMALL` bytes and `FEW` rows besides. Tables of photographs, labels and embeddings decode to less than 30 times their
size, the journal of a store with 200 transformations to 250 times. A larger claim is refused whatever the machine has.
"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from substyle.errors import SubstyleError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SMALL = 64 << 20  # bytes
FEW = 1 << 16  # rows
DECODED = 256
MAX_TEXT_FILE = 64 << 20  # bytes of a settings, results or metadata file
_PAGE, _PAGE_V2, _PADDING = 0, 3, 100  # kinds of pages with values; bytes that Arrow reads behind those of old writers
MAX_IMAGE_FILE = 1 << 30  # bytes of one encoded image


def decoded(size: int) -> int:
    """Return the bytes that a file of ``size`` bytes may decode to."""
    return SMALL + DECODED * size


def require(what: str, claimed: int, allowed: int, unit: str = "bytes") -> None:
    """Raise ValueError if a file claims more than is allowed."""
    if claimed > allowed:
        raise ValueError(f"{what}: claims {claimed:,} {unit}; allowed for a file of this size: {allowed:,}")


def require_rows(what: str, rows: int, size: int, row_bytes: float) -> None:
    """Raise ValueError unless a file of ``size`` bytes can have so many rows of at least ``row_bytes`` bytes each."""
    require(what, rows, FEW + int(size / row_bytes), "rows")


@contextmanager
def named(what: object) -> Iterator[None]:
    """Convert a MemoryError to an error that names what was read."""
    try:
        yield
    except MemoryError as error:
        raise SubstyleError(f"{what}: takes more memory than is available ({error or 'MemoryError'})") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 text file. Raises OSError, or ValueError if it is larger than `MAX_TEXT_FILE` or not UTF-8."""
    require(path.name, path.stat().st_size, MAX_TEXT_FILE)
    return path.read_text(encoding="utf-8-sig")


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Read shape, order (True: Fortran) and dtype of a NumPy array. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"array of format {version}")
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


# raised by zipfile and its codecs for damaged archives, besides OSError and ValueError
BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


def require_archive(path: Path) -> None:
    """Check a zip archive, such as ``.npz`` or a PyTorch checkpoint: its members decode to what its size explains.

    Raises OSError, ValueError, or one of `BAD_ARCHIVE`.
    """
    with zipfile.ZipFile(path) as archive:
        require(path.name, sum(member.file_size for member in archive.infolist()), decoded(path.stat().st_size))
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    shape, _, dtype = array_header(file)
                # Python's numbers do not overflow
                require(member.filename, int(np.prod([dtype.itemsize, *shape], dtype=object)), member.file_size)


def footer(file: pq.ParquetFile, what: str, size: int, row_bytes: float) -> list[Any]:
    """Check rows and bytes that the footer of a Parquet file claims; return the metadata of its row groups.

    Does not access a group's columns: pyarrow aborts the process if a damaged footer is inconsistent.

    Raises ValueError.
    """
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    rows = [int(group.num_rows) for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != file.metadata.num_rows:
        raise ValueError(f"{what}: row groups do not add up to {file.metadata.num_rows} rows")
    require_rows(what, sum(rows), size, row_bytes)
    require(what, sum(max(int(group.total_byte_size), 0) for group in groups), decoded(size))
    return groups


def texts(file: pq.ParquetFile) -> list[str]:
    """Return the paths of a file's columns of strings or bytes, nested ones included."""
    schema = file.schema
    return [schema.column(i).path for i in range(len(schema)) if schema.column(i).physical_type == "BYTE_ARRAY"]


def require_parquet(data: pa.Buffer, what: str, row_bytes: float, columns: Container[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file after a check of its rows and of what its columns decode to.

    pyarrow decodes a row as a whole, and a list of one repeated value takes a few bytes. So the values that the headers
    of pages claim are counted here; see ``parquet.thrift`` of the format.

    Args:
        columns: top-level columns to count; () for all.

    Raises:
        ValueError: the file claims more rows or values than its size explains.
        ArrowException: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, view = pq.ParquetFile(pa.BufferReader(data)), memoryview(data).cast("B")
    footer(file, what, len(view), row_bytes)
    leaves, total = [file.schema.column(i) for i in range(len(file.schema))], 0
    try:
        end = len(view) - 8
        for group in _Thrift(view, end - int.from_bytes(view[end : end + 4], "little")).structure().get(4, ()):
            for leaf, chunk in zip(leaves, group[1], strict=True):
                if columns and leaf.path.partition(".")[0] not in columns:
                    continue
                facts, values = chunk[3], 0
                pages = _Thrift(view, min(facts[9], facts.get(11) or facts[9]))
                end_of_chunk = pages.at + facts[7] + _PADDING
                while pages.at < end_of_chunk and values < facts[5]:  # as Arrow reads them
                    page = pages.structure()
                    of = {_PAGE: 5, _PAGE_V2: 8}.get(page[1])
                    count = page[of][1] if of else 0
                    if min(count, page[3]) < 0:
                        raise KeyError(count)
                    values, pages.at = values + count, pages.at + page[3]
                total += values * max(8, leaf.length or 0)
    except (KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError(f"{what}: damaged headers of columns or pages") from error
    require(what, total, decoded(len(view)))
    return file


class _Thrift:
    """Reads structures of Thrift's compact protocol, as dictionaries by the number of a field."""

    def __init__(self, data: memoryview, at: int) -> None:
        if at < 0:
            raise IndexError(at)
        self.data, self.at = data, at

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if shift > 63:
                raise KeyError(shift)
        return value | byte << shift

    def _signed(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def structure(self) -> dict[int, Any]:
        """The structure at this position, which moves behind it."""
        found, number = dict[int, Any](), 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            found[number] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15)
        return found

    def _value(self, kind: int) -> Any:  # noqa: ANN401 - of any type
        if kind in (1, 2, 3):  # a truth value in a list, or a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):  # a number in 8 bytes, or text: not needed
            size = 8 if kind == 7 else self._varint()  # which moves the position, too
            self.at += size
            return None
        if kind in (9, 10):
            head = self._byte()
            return [self._value(head & 15) for _ in range(self._varint() if head >> 4 == 15 else head >> 4)]
        if kind == 12:
            return self.structure()
        raise KeyError(kind)


def read_parquet(
    data: bytes, what: str, row_bytes: float, schema: pa.Schema | None = None, columns: pa.Schema | None = None
) -> pa.Table:
    """Read a Parquet file with dictionaries for all strings, so that a repeated string is held once.

    Args:
        data: the file.
        what: its name, for errors.
        row_bytes: least number of bytes per row.
        schema: the expected schema; strings are then written out in its types.
        columns: those of the schema to read, in the types of this one; default: all.

    Raises:
        ValueError: the file claims more rows or bytes than its size explains.
        ArrowException: it cannot be decoded, or not in this schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Arrow owns the buffer: its threads may end after the interpreter, and releasing a Python object then aborts
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    names = None if columns is None else columns.names
    file = require_parquet(buffer, what, row_bytes, names or ())
    if schema is not None and not file.schema_arrow.equals(schema):
        raise ValueError(f"{what}: unexpected columns")
    table = pq.ParquetFile(pa.BufferReader(buffer), read_dictionary=texts(file)).read(names)
    if schema is None:
        return table
    require(what, sum(map(written_out, table.columns)), decoded(len(data)))
    return table.cast(columns or schema)


def written_out(column: pa.ChunkedArray | pa.Array) -> int:
    """Return the bytes of a column in which dictionaries are replaced by their values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        return sum(map(written_out, column.chunks))
    kind = column.type
    if pa.types.is_dictionary(kind):
        sizes = pc.binary_length(column.dictionary).cast(pa.int64())
        return int(pc.sum(sizes.take(column.indices)).as_py() or 0) + 4 * len(column)
    if pa.types.is_struct(kind):
        return sum(map(written_out, column.flatten()))
    if pa.types.is_map(kind):
        return written_out(column.keys) + written_out(column.items)
    if pa.types.is_list(kind):
        return written_out(column.flatten())
    return int(column.nbytes)


def values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Convert a column to Python objects; equal values of a dictionary are one object."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in values(chunk)]
    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    distinct = column.dictionary.to_pylist()
    return [None if i is None else distinct[i] for i in column.indices.to_pylist()]


def require_uncompressed(messages: pa.Buffer) -> None:
    """Check a stream of Arrow messages, up to the first damaged one: buffers are not compressed. Raises ValueError.

    A compressed buffer claims any size, and Arrow allocates it; pyarrow does not tell, so the header is read here.
    Format: `Message.fbs` of Arrow: a union of headers, whose record batch has ``compression`` as its fourth field.
    """
    import pyarrow as pa

    reader = pa.ipc.MessageReader.open_stream(messages)
    while True:
        try:
            message = reader.read_next_message()
        except (StopIteration, OSError, pa.ArrowException):
            return
        header = message.metadata.to_pybytes()
        batch = _inner(header, _inner(header, 0, None), 2)
        if message.type == "dictionary":
            batch = _inner(header, batch, 1)
        if message.type in ("dictionary", "record batch") and _field(header, batch, 3):
            raise ValueError("compressed buffers; write the file uncompressed or as Parquet")


def _inner(data: bytes, table: int, number: int | None) -> int:
    """The position of a table that a field of another refers to; None: of the root."""
    at = table if number is None else _field(data, table, number)
    return at + int.from_bytes(data[at : at + 4], "little")


def _field(data: bytes, table: int, number: int) -> int:
    """The position of a field of a FlatBuffers table; 0 if it is absent."""
    index = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    size = int.from_bytes(data[index : index + 2], "little")
    at = index + 4 + 2 * number
    offset = int.from_bytes(data[at : at + 2], "little") if 4 + 2 * number < size else 0
    return table + offset if offset else 0
