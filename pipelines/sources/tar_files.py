"""Files of many images, on a disk or in a bucket: listed once, then read at any place as long as they are the same."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

from substyle.pipelines.sources.base import words
from substyle.pipelines.sources.files import MAX_BYTES, FileState, mark_of, mark_of_file, open_regular, read_span
from substyle.pipelines.storage import ObjectPlace, Version, place

WINDOW = 1 << 20  # bytes asked for at once while an object is listed: some members with the headers between them


class Spans(Protocol):
    """An open file: its size in bytes, and what stands at any place of it."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        ...

    def read(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; fewer where the file ends before. Raises OSError."""
        ...


class ShardFile(Protocol):
    """A file of many images."""

    def opened(self) -> AbstractContextManager[Spans]:
        """The file, for the block; from then on `read` means the one that was met here."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size). Raises OSError where the file is another one by now, or ends before."""
        ...

    def mark(self, offset: int) -> int:
        """The mark of what lies there; see `ImageRecord`."""
        ...


class LocalShard:
    """A file on a disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp = FileState(-1, -1)

    @contextmanager
    def opened(self) -> Iterator[Spans]:
        """See `ShardFile`. Raises OSError when it is no regular file."""
        descriptor = open_regular(self.path)
        try:
            self._stamp = FileState.of(descriptor)
            yield _Descriptor(descriptor, self._stamp.size)
        finally:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """See `ShardFile`."""
        return read_span(self.path, self._stamp, offset, size)

    def mark(self, offset: int) -> int:
        """See `ShardFile`."""
        return mark_of_file(self.path, offset)


class RemoteShard:
    """An object in a bucket. A bucket that cannot be asked raises ObjectError."""

    def __init__(self, path: str) -> None:
        there = place(path, "images")
        assert isinstance(there, ObjectPlace)
        self.place = there
        self._version = Version(None, None)

    @contextmanager
    def opened(self) -> Iterator[Spans]:
        """See `ShardFile`."""
        self._version = self.place.head()
        yield _Window(self.place, self._version)

    def read(self, offset: int, size: int) -> bytes:
        """See `ShardFile`."""
        if size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"an image of more than {MAX_BYTES} bytes", str(self.place))
        if offset + size > self._version.size:
            raise OSError(errno.EIO, "the file ends inside an image", str(self.place))
        return bytes(self.place.read_range(offset, size, self._version.e_tag)) if size else b""

    def mark(self, offset: int) -> int:
        """See `ShardFile`. Of the object that was listed: the bucket is not asked again."""
        version = self._version
        which = version.e_tag or version.version or version.changed
        return mark_of(str(which), version.size, offset) if which else 0


class _Descriptor:
    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.size = descriptor, size

    def read(self, size: int, offset: int) -> bytes:
        data = os.pread(self.descriptor, size, offset)
        while len(data) < size and (more := os.pread(self.descriptor, size - len(data), offset + len(data))):
            data += more
        return data


class _Window:
    """Reads ahead: a request takes as long as many small members."""

    def __init__(self, there: ObjectPlace, version: Version) -> None:
        self.place, self.size, self._e_tag = there, version.size, version.e_tag
        self._start, self._data = 0, memoryview(b"")

    def read(self, size: int, offset: int) -> bytes:
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if not self._start <= offset <= offset + size <= self._start + len(self._data):
            self._data = self.place.read_range(offset, max(size, WINDOW), self._e_tag)
            self._start = offset
        return bytes(self._data[offset - self._start : offset - self._start + size])


# Where the members of a tar file lie. `tarfile` reads the headers, as in WebDataset. What it accepts without an error
# is checked here: a broken header behind a good one, a negative size, a missing end mark.

BLOCK = 512
# bytes of a pax header or a long name: a path has 4,096, and before 3.11.10 Python takes quadratic time for a header
MAX_EXTENDED = 1 << 15
_AFTER_END = 1 << 20  # bytes looked at behind the end mark
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
# what tarfile raises for headers that are none: besides its own errors those of numbers and maps that are cut
_ERRORS = (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError)


class TarDamage(Exception):
    """A tar file cannot be read on; the message is the rest of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member: its name, what it is, and where its bytes lie in the tar file.

    Attributes:
        whole: False where the file ends before the member does.
    """

    name: str
    kind: str
    offset: int
    size: int
    whole: bool = True


def compression(file: Spans) -> str | None:
    """What a file is compressed with, None where it is not."""
    start = file.read(6, 0)
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def members(file: Spans) -> Iterator[TarMember]:
    """All members in the file's order.

    Raises:
        TarDamage: a header that is none, an extended header that is too large, a member beyond the end of the file, no
            end mark, or data after it; what came before is right.
    """
    if not file.size:
        raise TarDamage("is empty")
    position = 0
    try:
        tar = tarfile.TarFile(fileobj=_Headers(file), tarinfo=_Info, encoding="utf-8", errors="surrogateescape")
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            said = info.pax_headers.get("size", "0")  # tarfile takes what is no number as 0
            if not said.isdecimal() or not 0 <= info.size < 1 << 62 or tar.offset <= position:
                raise TarDamage(f"has a header with an impossible size at byte {position}")
            position = tar.offset
            kind = "sparse file" if info.issparse() else _KINDS.get(info.type, "member of an unknown type")
            whole = kind != FILE or info.offset_data + info.size <= file.size
            yield TarMember(info.name, kind, info.offset_data, info.size, whole)
            if not whole:
                raise TarDamage(f"ends inside {info.name!a}, which is to have {info.size} bytes")
    except _ERRORS as error:
        raise TarDamage(f"has no header that can be read at byte {position}: {words(error)}") from error
    _check_end(file, position)


class _Headers(io.RawIOBase):
    """A shard as the file object that `tarfile` reads headers from."""

    def __init__(self, file: Spans) -> None:
        super().__init__()
        self._file, self._position = file, 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file. Raises TarDamage where it is more than a header can have."""
        if size is None or not 0 <= size <= MAX_EXTENDED:
            raise TarDamage(f"has an extended header of {size} bytes at byte {self._position - BLOCK}")
        data = self._file.read(size, self._position)
        self._position += len(data)
        return data

    def seek(self, position: int, whence: int = 0, /) -> int:
        """From the beginning, which is how `tarfile` calls it."""
        self._position = position
        return position

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position


class _Info(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A header whose name has the prefix only where ustar says so: GNU tar keeps times there."""
        info = super().frombuf(buf, encoding, errors)
        if buf[257:263] != b"ustar\0":
            info.name = bytes(buf[:100]).split(b"\0", 1)[0].decode(encoding, errors)
        return info


def _check_end(file: Spans, position: int) -> None:
    """Raise TarDamage unless the end mark lies here and nothing follows: archives may be appended to one another."""
    block = file.read(BLOCK, position)
    if not block:
        raise TarDamage("has no end mark; it may have been cut short")
    if len(block) < BLOCK:
        raise TarDamage(f"ends inside the header at byte {position}")
    if block != _ZEROS:
        raise TarDamage(f"has no header where one should be, at byte {position}")
    if file.read(_AFTER_END, position).strip(b"\0"):
        raise TarDamage(f"has data after its end mark at byte {position}, which was not looked at")
