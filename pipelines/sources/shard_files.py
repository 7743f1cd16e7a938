"""Files of many images, on a disk or in a bucket: listed once, then read at any place as long as they are the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from substyle.pipelines.objects import ObjectPlace, Version
from substyle.pipelines.places import place
from substyle.pipelines.sources.files import MAX_BYTES, FileState, mark_of, mark_of_file, open_regular, read_span

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
