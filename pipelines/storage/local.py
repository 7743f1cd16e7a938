"""Places on a disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import PosixPath
from typing import Self

from substyle import files as doors
from substyle.pipelines.storage.interface import OpenFile, Place


class LocalPlace(PosixPath, Place):
    """A place on a disk: a path that has the methods of a `Place` as well."""

    __slots__ = ()

    requests = 1
    near = 16 << 10

    def inside(self, name: str) -> Self:
        return type(self)(doors.inside(self, name))

    def mark(self) -> object:
        status = self.stat()
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns

    @contextmanager
    def reading(self, tail: int) -> Iterator[OpenFile]:
        with doors.open_inside(self.parent, self.name) as file:
            size = os.fstat(file.fileno()).st_size
            end = bytearray(min(tail, size))
            _fill(file.fileno(), memoryview(end), size - len(end))
            yield OpenFile(size, bytes(end), partial(_fill, file.fileno()))

    def files(self, suffix: str) -> list[Self]:
        try:
            names = os.listdir(self)
        except FileNotFoundError:
            return []
        return [self / name for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]

    def sizes(self) -> dict[Self, int]:
        found = {}
        for folder, _, names in os.walk(self):
            for name in sorted(names):
                path = type(self)(folder, name)
                with suppress(FileNotFoundError):  # another process may remove it
                    found[path] = path.lstat().st_size
        return found

    def require_no_links(self, depth: int) -> None:
        doors.require_no_links(self.resolve(), depth)

    def free_bytes(self) -> int:
        disk = os.statvfs(self)
        return disk.f_bavail * disk.f_frsize

    def write(self, data: bytes | Iterable[bytes | memoryview]) -> None:
        if not self.parent.is_dir():
            self.parent.mkdir(parents=True, exist_ok=True)
        doors.write(self, data, durable=True)
        doors.flush(self.parent)

    write_once = write

    def flush(self) -> None:
        doors.flush(self)

    def remove(self) -> None:
        if self.is_dir() and not self.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
        doors.remove(self)


def _fill(file: int, out: memoryview, offset: int) -> int:
    done = 0
    while done < len(out) and (count := os.preadv(file, [out[done:]], offset + done)):
        done += count
    return done
