"""Reading files of a source: nothing outside its root, nothing but regular files, no more than an image can have."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.text import LeftOut

UNSETTLED_S = 2.0
MAX_BYTES = 1 << 30  # of one encoded image: more is refused unread
MARKER = "substyle.json"  # a folder that holds it is a store or a results folder, whose images are no photographs


def inside(real_root: str, real_path: str) -> bool:
    """Whether a resolved path is the resolved root or lies below it."""
    return real_path == real_root or real_path.startswith(real_root.rstrip("/") + "/")


def mark_of_file(path: str, place: int = 0) -> int:
    """The mark of an image in a file (see `ImageRecord`): from the file's size, times and inode.

    Args:
        path: the file. Links are followed.
        place: where in the file the image is.

    Returns:
        the mark; 0 for a file that changed a moment ago, as it may change again within one tick of the file system.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return 0
    if not stat.S_ISREG(status.st_mode) or abs(time.time() - status.st_ctime) < UNSETTLED_S:
        return 0
    return mark_of(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, place)


def mark_of(*facts: object) -> int:
    """A number from 1 to 2**63 - 1 that stands for some facts, the same in every process."""
    digest = blake2b(repr(facts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1


def read_below(real_root: str, name: str) -> bytes:
    """The bytes of a regular file below a folder.

    Args:
        real_root: the folder, resolved.
        name: path relative to it; links in it are followed as long as they stay inside.

    Raises:
        OSError: no such file, no regular file, one that lies outside, or one of more than 1 GiB.
    """
    try:
        path = os.path.realpath(os.path.join(real_root, name))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), name) from error
    if not inside(real_root, path):
        raise PermissionError(errno.EACCES, "lies outside the source", name)
    # a pipe that somebody put there must not block the reader
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not os.path.isfile(file.fileno()):
            raise OSError(errno.EINVAL, "is no regular file", name)
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"has more than {MAX_BYTES} bytes", name)
        return file.read(MAX_BYTES)


def files_below(root: str, extensions: Collection[str], left_out: LeftOut) -> list[str]:
    """Sorted paths, relative to a folder, of the files below it that have one of some extensions.

    A link that leaves the folder is left out; a folder that is linked twice is read once. Stores and results folders
    (those with a `MARKER`) are skipped.

    Args:
        left_out: is told what is not among the paths: links, files of other kinds, substyle's own folders.

    Raises:
        OSError: the folder itself cannot be listed.
        ConfigError: the folder itself is a store or a results folder.
    """
    real_root = os.path.realpath(root)
    names: list[str] = []
    seen = {real_root}
    pending = [(real_root, "")]
    while pending:
        folder, prefix = pending.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            left_out.add(prefix.rstrip("/"), f"cannot be listed: {error.strerror}")
            continue
        if any(entry.name == MARKER and entry.is_file(follow_symlinks=False) for entry in entries):
            if not prefix:
                raise ConfigError("images", root, f"photographs; it holds {MARKER}: a store or results of substyle")
            left_out.substyle_folders += 1
            continue
        for entry in entries:
            name = prefix + entry.name
            kind = _kind(entry, name, real_root, extensions, left_out)
            if kind == "file":
                names.append(name)
            elif kind == "folder" and (real := os.path.realpath(entry.path)) not in seen:
                seen.add(real)
                pending.append((real, name + "/"))
    return sorted(names)


def _kind(
    entry: os.DirEntry[str], name: str, real_root: str, extensions: Collection[str], left_out: LeftOut
) -> str | None:
    """``folder`` or ``file`` for what is to be looked at, None for the rest, which ``left_out`` is told of."""
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:  # a link to itself
        left_out.add(name, f"cannot be followed: {error.strerror}")
        return None
    if not is_folder and os.path.splitext(entry.name)[1].lower() not in extensions:
        if is_file:
            left_out.skip(entry.name)
        return None
    if entry.is_symlink() and not inside(real_root, os.path.realpath(entry.path)):
        left_out.add(name, "is a link out of the folder and was left out")
        return None
    return "folder" if is_folder else "file" if is_file else None


@dataclass(frozen=True)
class FileState:
    """What tells that a file is still the one that was listed: size in bytes, time of change in ns."""

    size: int
    changed: int

    @classmethod
    def of(cls, descriptor: int) -> FileState:
        """The stamp of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_size, status.st_mtime_ns)


def open_regular(path: str) -> int:
    """A descriptor of a regular file, for reading. Raises OSError when it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not os.path.isfile(descriptor):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", path)
    return descriptor


def read_span(path: str, stamp: FileState, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file that was listed before.

    Raises:
        OSError: it is gone, is not the file it was, ends before, or the span has more than 1 GiB.
    """
    if size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"an image of more than {MAX_BYTES} bytes", path)
    descriptor = open_regular(path)
    try:
        if FileState.of(descriptor) != stamp:
            raise OSError(errno.ESTALE, "the file has changed since it was listed", path)
        return pread_all(descriptor, offset, size, path)
    finally:
        os.close(descriptor)


def pread_all(descriptor: int, offset: int, size: int, path: str) -> bytes:
    """Bytes [offset, offset + size) of an open file. Raises OSError when it ends before."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the file ends inside an image", path)
        data += more
    return data
