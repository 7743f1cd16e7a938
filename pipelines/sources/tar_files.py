"""Files of many images, on a disk or in a bucket: listed once, then read at any place as long as they are the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

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


# Where the members of a tar file lie, read from its headers; nothing in a header is believed that the file denies.
#
# The formats are those of POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar; sizes are octal or base 256. Layout:
# https://www.gnu.org/software/tar/manual/html_node/Standard.html

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of a pax header or a long name: more is an attack, not a name
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
    b"0": FILE, b"\0": FILE, b"7": FILE, b"5": FOLDER, b"1": "hard link", b"2": "link", b"3": "device", b"4": "device",
    b"6": "pipe", b"S": "sparse file", b"V": "volume label", b"M": "part of another volume", b"N": "old long name",
}  # fmt: skip
_WITHOUT_DATA = frozenset(b"123456")


class TarDamage(Exception):
    """A tar file cannot be read on; the message is the rest of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class Member:
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


def members(file: Spans) -> Iterator[Member]:
    """All members in the file's order.

    Raises:
        TarDamage: a header that is none, an extended header that is too large, a member beyond the end of the file, no
            end mark, or data after it; what came before is right.
    """
    end = file.size
    position = 0
    while position < end:
        header, position, extended = _header(file, position, end)
        if header is None:
            return
        flag = header[156:157]
        # whatever a damaged header says, the next one lies further on
        size = _size(header, position - BLOCK) if "size" not in extended else _decimal(extended["size"])
        kind = _KINDS.get(flag, "member of an unknown type")
        if any(key.startswith("GNU.sparse") for key in extended):
            kind = "sparse file"
        if flag == b"S":
            position = _sparse_map(file, header, position)
        if flag[0] in _WITHOUT_DATA:
            size = 0
        whole = position + size <= end
        name = _text(extended["path"]) if "path" in extended else _name(header)
        yield Member(name, kind, position, size, whole)
        if not whole:
            raise TarDamage(f"ends inside {name!a}, which is to have {size} bytes")
        position += -(-size // BLOCK) * BLOCK
    raise TarDamage("has no end mark; it may have been cut short" if position else "is empty")


def _header(file: Spans, position: int, end: int) -> tuple[bytes | None, int, dict[str, bytes]]:
    """The next member's own header, the position behind it, and what extended headers before it say.

    The header is None at the end mark.
    """
    extended: dict[str, bytes] = {}
    while True:
        header = file.read(BLOCK, position)
        if header == _ZEROS:
            _nothing_more(file, position)
            return None, position, extended
        if len(header) < BLOCK:
            raise TarDamage(f"ends inside the header at byte {position}")
        _check(header, position)
        flag = header[156:157]
        position += BLOCK
        if flag not in (b"x", b"X", b"g", b"L", b"K"):
            return header, position, extended
        size = _size(header, position - BLOCK)
        if size > MAX_EXTENDED:
            raise TarDamage(f"has an extended header of {size} bytes at byte {position - BLOCK}")
        data = file.read(size, position)
        if len(data) < size or position + size > end:
            raise TarDamage(f"ends inside the extended header at byte {position - BLOCK}")
        if flag == b"L":
            extended["path"] = data.split(b"\0", 1)[0]
        elif flag in (b"x", b"X"):
            extended.update(_pax(data, position))
        position += -(-size // BLOCK) * BLOCK


def _check(header: bytes, position: int) -> None:
    """Raise TarDamage unless a header has its checksum: the sum of its bytes, those of the checksum taken as spaces."""
    said = _octal(header[148:156])
    rest = header[:148] + header[156:]
    # some old writers sum signed bytes
    if said is None or (said != sum(rest) + 256 and said != sum(b - 256 * (b > 127) for b in rest) + 256):
        raise TarDamage(f"has no header where one should be, at byte {position}")


def _octal(field: bytes) -> int | None:
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if len(digits) > 12 or digits.strip(b"01234567"):
        return None
    return int(digits, 8)


def _size(header: bytes, position: int) -> int:
    field = header[124:136]
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    if size is None or size >= 1 << 62:
        raise TarDamage(f"has a header with an impossible size at byte {position}")
    return size


def _decimal(digits: bytes) -> int:
    if len(digits) > 18 or not digits.isdigit():
        raise TarDamage(f"has a pax header with the size {digits[:40]!r}")
    return int(digits)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU tar keeps times where ustar keeps the first part of a long name
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(data: bytes, position: int) -> dict[str, bytes]:
    """The records ``<length> <key>=<value>\\n`` of a pax header."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 9)
        length = data[at:space] if space > at else b""
        stop = at + int(length) if length.isdigit() else 0
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not space + 1 < stop <= len(data) or data[stop - 1 : stop] != b"\n" or not equals:
            raise TarDamage(f"has a pax header that cannot be read at byte {position}")
        records[key.decode("utf-8", "replace")] = value
        at = stop
    return records


def _sparse_map(file: Spans, header: bytes, position: int) -> int:
    """The position behind the further maps of holes that follow an old GNU header."""
    more = header[482]
    while more:
        block = file.read(BLOCK, position)
        if len(block) < BLOCK:
            raise TarDamage(f"ends inside the map of a sparse file at byte {position}")
        position += BLOCK
        more = block[504]
    return position


def _nothing_more(file: Spans, position: int) -> None:
    """Raise TarDamage where something follows the end mark: archives that were appended to one another."""
    if file.read(_AFTER_END, position).strip(b"\0"):
        raise TarDamage(f"has data after its end mark at byte {position}, which was not looked at")
