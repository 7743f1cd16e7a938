"""Places on a disk."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path, PosixPath
from typing import Self

from substyle.kernels import files as doors
from substyle.pipelines.storage.interface import Fill, Place, Version


class LocalPlace(PosixPath, Place):
    """A place on a disk: a path that has the methods of a `Place` as well."""

    __slots__ = ()

    requests = 1
    near = 16 << 10

    def inside(self, name: str) -> Self:
        return type(self)(doors.inside(self, name))

    def is_special(self) -> bool:
        return self.exists() and not doors.is_regular(self)

    def size(self) -> int:
        return self.stat().st_size

    def mark(self) -> object:
        status = self.stat()
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns

    def read_version(self) -> tuple[bytes, Version]:
        return self.read_bytes(), Version(None, None)

    def _open_below(self, root: Self) -> BufferedReader:
        return doors.open_inside(root, self.relative_to(root).as_posix())

    def read_below(self, root: Self) -> bytes:
        with self._open_below(root) as file:
            return file.read()

    def digest_below(self, root: Self) -> tuple[str, int]:
        with self._open_below(root) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()

    @contextmanager
    def ranges_below(self, root: Self) -> Iterator[Fill]:
        with self._open_below(root) as file:
            yield partial(_fill, file.fileno())

    def files(self, suffix: str) -> list[Self]:
        try:
            names = os.listdir(self)
        except FileNotFoundError:
            return []
        return [self / name for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]

    def all_files(self) -> Iterator[Self]:
        for folder, _, names in os.walk(self):
            for name in sorted(names):
                yield type(self)(folder, name)

    def sizes(self) -> Callable[[Self], int | None]:
        return _size_on_disk

    def leftovers(self, pattern: str) -> Iterator[Self]:
        return self.glob(pattern)

    def temporaries(self, name: str = "") -> Iterator[tuple[Self, int]]:
        return ((type(self)(path), pid) for path, pid in doors.temporaries(self, name))

    def require_no_links(self, depth: int) -> None:
        doors.require_no_links(self.resolve(), depth)

    def free_bytes(self) -> int:
        disk = os.statvfs(self)
        return disk.f_bavail * disk.f_frsize

    def make_folder(self) -> None:
        if not self.is_dir():  # cheaper than mkdir, for every record
            self.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes) -> None:
        doors.write(self, data, durable=True)
        doors.flush(self.parent)

    write_once = write

    def write_alone(self, data: bytes | memoryview, root: Self) -> None:
        doors.remove(self.parent, root=root)
        self.parent.mkdir(parents=True)
        doors.write(self, data, durable=True)

    def flush(self) -> None:
        doors.flush(self)

    def remove(self) -> None:
        doors.remove(self)


def _size_on_disk(path: Path) -> int | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _fill(file: int, out: memoryview, offset: int) -> int:
    done = 0
    while done < len(out) and (count := os.preadv(file, [out[done:]], offset + done)):
        done += count
    return done
