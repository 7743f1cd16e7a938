"""Shards: files of Zarr's sharding codec, written and read without the zarr library.

A shard holds T chunks of R rows, one for each transformation, and at its end an index with their offsets and sizes.
The library reads 2 to 20 times slower, and whole chunks where rows are wanted. Format: Zarr sharding codec 1.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store import arrays
from substyle.engine.store.arrays import CHECKSUM
from substyle.engine.store.layout import Codec, StoreError
from substyle.files import UnsafeFileError
from substyle.pipelines.storage import OpenFile, Place

_MISSING = np.uint64(2**64 - 1)  # offset and size of a chunk without embeddings
_PLACE = 16  # bytes of offset and size


@dataclass(frozen=True)
class Shape:
    """What is known of a shard before it is read.

    Attributes:
        count: T, number of chunks; rows: R; width: D.
        dtype: of the numbers.
        codec: of chunks.
    """

    count: int
    rows: int
    width: int
    dtype: np.dtype[np.floating]
    codec: Codec

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return self.width * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return self.rows * self.row_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of the index, with its checksum."""
        return self.count * _PLACE + CHECKSUM

    def least(self, chunks: int) -> int:
        """Least size in bytes of a file with this number of chunks."""
        return self.index_bytes + chunks * (CHECKSUM + (self.chunk_bytes if self.codec == "none" else 1))

    @property
    def most(self) -> int:
        """Greatest size in bytes of a file; codecs add little to numbers that they cannot compress."""
        more = 0 if self.codec == "none" else self.chunk_bytes // 64 + 1024
        return self.index_bytes + self.count * (self.chunk_bytes + more + CHECKSUM)


def digest(chunk: bytes | bytearray | memoryview) -> str:
    """Digest of an encoded chunk, with which a record knows it: 128 bits of its SHA-256."""
    return hashlib.sha256(chunk).hexdigest()[:32]


def encode(
    chunk_T: Iterable[NDArray[np.floating] | None],
    shape: Shape,
    on_chunk: Callable[[int, bytes | memoryview], object] = lambda t, chunk: None,
) -> Iterator[bytes | memoryview]:
    """Encode a shard, in parts.

    Args:
        chunk_T: stored values (r, D) of each transformation, r ≤ R, padded with NaN; None without embeddings. Of an
            iterator, one is held in memory at a time.
        on_chunk: called with the number of a transformation and its encoded chunk.
    """
    place_T2 = np.full((shape.count, 2), _MISSING, "<u8")
    size = 0
    for t, rows_RD in enumerate(chunk_T):
        if rows_RD is None:
            continue
        whole_RD = rows_RD
        if len(rows_RD) < shape.rows:
            whole_RD = np.full((shape.rows, shape.width), np.nan, shape.dtype)
            whole_RD[: len(rows_RD)] = rows_RD
        chunk = arrays.encode(whole_RD, shape.codec)
        place_T2[t] = size, len(chunk) + CHECKSUM
        size += len(chunk) + CHECKSUM
        on_chunk(t, chunk)
        yield chunk
        yield _checksum(chunk)
    index = place_T2.tobytes()
    yield index
    yield _checksum(index)


def _checksum(data: bytes | bytearray | memoryview) -> bytes:
    from numcodecs.checksum32 import CRC32C

    # google_crc32c takes arrays, and no views
    return int(CRC32C.checksum(np.frombuffer(data, np.uint8))).to_bytes(CHECKSUM, "little")


def places(size: int, tail: bytes, shape: Shape) -> NDArray[np.int64]:
    """Return offset and size of each chunk without its checksum, from the end of a file. Shape: (T, 2); -1 for none.

    Raises ValueError if the index is damaged, or a chunk is outside the file, overlaps another, or is of a size that no
    chunk has.
    """
    index, data = tail[-shape.index_bytes :], size - shape.index_bytes
    if data < 0 or len(index) < shape.index_bytes or size > shape.most:
        raise ValueError(f"{size} bytes, not of this array")
    if _checksum(index[:-CHECKSUM]) != index[-CHECKSUM:]:
        raise ValueError("truncated, or its index is damaged")
    place_T2 = np.frombuffer(index, "<u8", 2 * shape.count).reshape(-1, 2)
    there_T = (place_T2 != _MISSING).any(axis=1)
    there_C2 = place_T2[there_T]
    if (there_C2 > data).any():
        raise ValueError("its index leaves the file")
    start_C, size_C = there_C2[np.argsort(there_C2[:, 0], kind="stable")].astype(np.int64).T
    least, most = (0, shape.most) if shape.codec != "none" else (shape.chunk_bytes, shape.chunk_bytes)
    if ((size_C < least + CHECKSUM) | (size_C > most + CHECKSUM)).any():
        raise ValueError("its index has a chunk of another size")
    if (start_C + size_C > np.append(start_C[1:], data)).any():
        raise ValueError("its index has chunks that overlap")
    found_T2 = np.full((shape.count, 2), -1, np.int64)
    found_T2[there_T] = there_C2.astype(np.int64) - [0, CHECKSUM]
    return found_T2


@dataclass
class OpenShard:
    """An open shard.

    Attributes:
        path: its file.
        place_T2: as of `places`.
    """

    path: Place
    shape: Shape
    file: OpenFile
    place_T2: NDArray[np.int64]
    _decoded: dict[int, memoryview] = field(default_factory=dict)  # the compressed chunk that was read last

    def fill(self, t: int, first: int, out_RD: NDArray[np.floating]) -> None:
        """Read consecutive rows of a transformation into a contiguous array; NaN without embeddings.

        Raises StoreError if a compressed chunk is damaged, OSError if the file cannot be read.
        """
        start = int(self.place_T2[t, 0])
        out, offset = out_RD.data.cast("B"), first * self.shape.row_bytes
        if start < 0:
            out_RD[...] = np.nan
        elif self.shape.codec == "none":
            if self.file.fill(out, start + offset) < len(out):
                raise StoreError(f"{self.path}: truncated; run substyle verify")
        else:
            if t not in self._decoded:
                self._decoded = {t: self.chunk(t).data.cast("B")}
            out[:] = self._decoded[t][offset : offset + len(out)]

    def encoded(self, t: int) -> bytes:
        """Read an encoded chunk. Raises ValueError if there is none, or its checksum is another, OSError."""
        start, size = self.place_T2[t].tolist()
        data = bytearray(max(size, 0) + CHECKSUM)
        if start < 0 or self.file.fill(memoryview(data), start) < len(data):
            raise ValueError("a chunk is missing")
        if _checksum(data[:-CHECKSUM]) != data[-CHECKSUM:]:
            raise ValueError("checksum mismatch")
        return bytes(data[:-CHECKSUM])

    def chunk(self, t: int) -> NDArray[Any]:
        """Read all rows of a transformation, and check them. Shape: (R, D).

        Raises StoreError if there are none, or they are damaged, OSError if the file cannot be read.
        """
        shape = self.shape
        try:
            return arrays.decode(self.encoded(t), shape.codec, shape.dtype, (shape.rows, shape.width))
        except (ValueError, RuntimeError, MemoryError) as error:
            raise StoreError(f"{self.path}: cannot be decoded ({error}); run substyle verify") from error


@contextmanager
def opening(path: Place, shape: Shape) -> Iterator[OpenShard]:
    """Open a shard for reading.

    Raises FileNotFoundError, or StoreError if it is reached through a link, damaged, or cannot be read.
    """
    try:
        with path.reading(shape.index_bytes) as file:
            yield OpenShard(path, shape, file, places(file.size, file.tail, shape))
    except FileNotFoundError:
        raise
    except (UnsafeFileError, ValueError) as error:
        raise StoreError(f"{path}: {error}; run substyle verify") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot read: {error.strerror or error}; run substyle verify") from error


def gather(
    path: Place,
    shape: Shape,
    t_M: NDArray[np.int64],
    row_M: NDArray[np.int64],
    out_RD: NDArray[np.floating],
    to_M: NDArray[np.int64],
    *,
    finished: bool = False,
) -> None:
    """Read rows of a shard into rows ``to_M`` of an array; neighbouring rows are read together.

    Args:
        t_M, row_M: transformations and rows within the shard, ordered by both, possibly repeated.
        out_RD: contiguous, in the store's dtype.
        finished: raise StoreError for a missing file or transformation, whose rows are NaN otherwise.

    Raises StoreError: see `opening`.
    """
    near = 1 + path.near // shape.row_bytes if shape.codec == "none" else shape.rows  # others are decoded whole
    next_to_M = (np.diff(row_M) == 1) & (np.diff(to_M) == 1)
    apart_M = (np.diff(t_M) != 0) | (np.diff(row_M) > near)
    ends = np.flatnonzero(np.append(apart_M, True)) + 1
    try:
        with opening(path, shape) as shard:
            if finished and (shard.place_T2[t_M, 0] < 0).any():
                raise StoreError(f"{path}: a finished transformation is missing; run substyle verify")
            start = 0
            for end in ends.tolist() if len(row_M) else ():
                t, first, last = int(t_M[start]), int(row_M[start]), int(row_M[end - 1])
                if next_to_M[start : end - 1].all():  # without a copy
                    shard.fill(t, first, out_RD[to_M[start] : to_M[start] + end - start])
                else:
                    near_RD = np.empty((last - first + 1, shape.width), shape.dtype)
                    shard.fill(t, first, near_RD)
                    out_RD[to_M[start:end]] = near_RD[row_M[start:end] - first]
                start = end
    except FileNotFoundError as error:
        if finished:
            raise StoreError(f"{path}: missing; run substyle verify") from error
        out_RD[to_M] = np.nan


def check(path: Place, shape: Shape, names: Sequence[str], checksums: Mapping[str, str]) -> tuple[int, str]:
    """Check the chunks of a shard.

    Args:
        names: the T transformations.
        checksums: digests that chunks must have, by transformation.

    Returns:
        the size of its file in bytes, and what is wrong with it; "" if nothing is.
    """
    size, bad = 0, []
    try:
        with path.reading(shape.index_bytes) as file:
            size = file.size
            shard = OpenShard(path, shape, file, places(size, file.tail, shape))
            for name, checksum in checksums.items():
                try:
                    intact = digest(shard.encoded(names.index(name))) == checksum
                except ValueError:
                    intact = False
                bad += [name] * (not intact)
    except (OSError, ValueError, UnsafeFileError) as error:  # ValueError: an invalid index, or file name
        return size, f"cannot read: {getattr(error, 'strerror', None) or error}"
    return size, f"checksum mismatch: {', '.join(bad)}" if bad else ""
