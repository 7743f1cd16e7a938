"""Random access to tar shards, on disk or in a bucket; reads fail if a shard changed since it was listed."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeAlias

from substyle.pipelines import limits
from substyle.pipelines.sources.base import words
from substyle.pipelines.sources.files import FileState, mark_of, mark_of_file, open_regular, read_span
from substyle.pipelines.storage import ObjectPlace, Version, object_place

WINDOW = 1 << 20  # bytes per request while an object is listed: several headers and small members


class LocalShard:
    """A file on disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp = FileState(-1, -1)

    @contextmanager
    def opened(self) -> Iterator[Spans]:
        """Open the file and remember its state for `read`. Raises OSError if it is not a regular file."""
        descriptor = open_regular(self.path)
        try:
            self._stamp = FileState.of(descriptor)
            yield _Descriptor(descriptor, self._stamp.size)
        finally:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes [offset, offset + size). Raises OSError if the file changed or is shorter."""
        return read_span(self.path, self._stamp, offset, size)

    def mark(self, offset: int) -> int:
        """The mark of the image at an offset; see `ImageRecord`."""
        return mark_of_file(self.path, offset)


class RemoteShard:
    """An object in a bucket. Failed requests raise ObjectError."""

    def __init__(self, path: str) -> None:
        self.place = object_place(path, "images")
        self._version = Version(None, None)

    @contextmanager
    def opened(self) -> Iterator[Spans]:
        """See `LocalShard`."""
        self._version = self.place.head()
        yield _Window(self.place, self._version)

    def read(self, offset: int, size: int) -> bytes:
        """See `LocalShard`."""
        if size > limits.MAX_IMAGE_FILE:
            raise OSError(errno.EFBIG, f"image larger than {limits.MAX_IMAGE_FILE} bytes", str(self.place))
        if offset + size > self._version.size:
            raise OSError(errno.EIO, "file ends inside an image", str(self.place))
        return bytes(self.place.read_range(offset, size, self._version.e_tag)) if size else b""

    def mark(self, offset: int) -> int:
        """See `LocalShard`. Refers to the listed version and sends no request."""
        version = self._version
        which = version.e_tag or version.version or version.changed
        return mark_of(str(which), version.size, offset) if which else 0


class _Descriptor:
    """An open file."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.size = descriptor, size

    def read(self, size: int, offset: int) -> bytes:
        """Read up to ``size`` bytes from ``offset``, fewer at the end of the file. Raises OSError."""
        data = os.pread(self.descriptor, size, offset)
        while len(data) < size and (more := os.pread(self.descriptor, size - len(data), offset + len(data))):
            data += more
        return data


class _Window:
    """Reads ahead, because requests are slow compared to small members."""

    def __init__(self, location: ObjectPlace, version: Version) -> None:
        self.place, self.size, self._e_tag = location, version.size, version.e_tag
        self._start, self._data = 0, memoryview(b"")

    def read(self, size: int, offset: int) -> bytes:
        """See `_Descriptor`."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if not self._start <= offset <= offset + size <= self._start + len(self._data):
            self._data = self.place.read_range(offset, max(size, WINDOW), self._e_tag)
            self._start = offset
        return bytes(self._data[offset - self._start : offset - self._start + size])


Spans: TypeAlias = _Descriptor | _Window  # an open file with random access
ShardFile: TypeAlias = LocalShard | RemoteShard  # a file of many images


# `tarfile` parses headers, as in WebDataset. It accepts a broken header after a valid one, a negative size and a
# missing end marker; these are checked here.

BLOCK = 512
# bytes of a pax header or long name: a path has 4,096, and Python before 3.11.10 parses headers in quadratic time
MAX_EXTENDED = 1 << 15
_AFTER_END = 1 << 20  # bytes checked after the end marker
_ZEROS = bytes(BLOCK)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}

FILE, FOLDER = "file", "folder"
_KINDS = {
    tarfile.REGTYPE: FILE, tarfile.AREGTYPE: FILE, tarfile.CONTTYPE: FILE, tarfile.DIRTYPE: FOLDER,
    tarfile.LNKTYPE: "hard link", tarfile.SYMTYPE: "link", tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe", b"V": "volume label", b"M": "part of another volume", b"N": "old long name",
}  # fmt: skip
# raised by tarfile for invalid headers
_ERRORS = (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError)


class TarDamage(Exception):
    """A tar file is damaged; the message completes a sentence that starts with its name."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member of a tar file: name, kind, and offset and size of its data in bytes.

    Attributes:
        whole: False if the tar file ends inside the member.
    """

    name: str
    kind: str
    offset: int
    size: int
    whole: bool = True


def compression(file: Spans) -> str | None:
    """The compression format of a file, None if uncompressed."""
    start = file.read(6, 0)
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def members(file: Spans) -> Iterator[TarMember]:
    """Iterate over the members in file order.

    Raises:
        TarDamage: an invalid or oversized header, a member beyond the end of the file, no end marker, or data after it.
            Members yielded before are valid.
    """
    if not file.size:
        raise TarDamage("is empty")
    position = 0
    try:
        tar = tarfile.TarFile(fileobj=_Headers(file), tarinfo=_Info, encoding="utf-8", errors="surrogateescape")
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            size_text = info.pax_headers.get("size", "0")  # tarfile reads an invalid number as 0
            if not size_text.isdecimal() or not 0 <= info.size < 1 << 62 or tar.offset <= position:
                raise TarDamage(f"has a header with an invalid size at byte {position}")
            position = tar.offset
            kind = "sparse file" if info.issparse() else _KINDS.get(info.type, "member of an unknown type")
            whole = kind != FILE or info.offset_data + info.size <= file.size
            yield TarMember(info.name, kind, info.offset_data, info.size, whole)
            if not whole:
                raise TarDamage(f"ends inside {info.name!a}, a member of {info.size} bytes")
    except _ERRORS as error:
        raise TarDamage(f"has an unreadable header at byte {position}: {words(error)}") from error
    _check_end(file, position)


class _Headers(io.RawIOBase):
    """File object for `tarfile` that reads headers only."""

    def __init__(self, file: Spans) -> None:
        super().__init__()
        self._file, self._position = file, 0

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.RawIOBase`. Raises TarDamage if ``size`` exceeds that of any header."""
        if size is None or not 0 <= size <= MAX_EXTENDED:
            raise TarDamage(f"has an extended header of {size} bytes at byte {self._position - BLOCK}")
        data = self._file.read(size, self._position)
        self._position += len(data)
        return data

    def seek(self, position: int, whence: int = 0, /) -> int:
        """Seek from the start of the file; `tarfile` uses no other ``whence``."""
        self._position = position
        return position

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position


class _Info(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header; the name gets a prefix only in ustar format: GNU tar stores times in that field."""
        info = super().frombuf(buf, encoding, errors)
        if buf[257:263] != b"ustar\0":
            info.name = bytes(buf[:100]).split(b"\0", 1)[0].decode(encoding, errors)
        return info


def _check_end(file: Spans, position: int) -> None:
    """Raise TarDamage unless the end marker is here and nothing follows, such as an appended archive."""
    block = file.read(BLOCK, position)
    if not block:
        raise TarDamage("has no end marker; it may be truncated")
    if len(block) < BLOCK:
        raise TarDamage(f"ends inside the header at byte {position}")
    if block != _ZEROS:
        raise TarDamage(f"has no header at byte {position}, where one is expected")
    if file.read(_AFTER_END, position).strip(b"\0"):
        raise TarDamage(f"has data after its end marker at byte {position}; ignored")
