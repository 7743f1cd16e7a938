"""Find and read files of a source: regular files inside its root, up to 1 GiB per image."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

from substyle.errors import ConfigError, abbreviated
from substyle.pipelines import limits
from substyle.pipelines.sources.base import LeftOut, key_text, shown
from substyle.pipelines.storage import ObjectPlace, each, is_remote, object_place

UNSETTLED_S = 2.0
MARKER = "substyle.json"  # marks a store or results folder, whose images are not photographs


def inside(real_root: str, real_path: str) -> bool:
    """Whether a resolved path is the resolved root or below it."""
    return real_path == real_root or real_path.startswith(real_root.rstrip("/") + "/")


def mark_of_file(path: str, place: int = 0) -> int:
    """The mark of an image in a file (see `ImageRecord`), from the file's size, times and inode.

    Args:
        path: the file. Links are followed.
        place: offset or row of the image in the file.

    Returns:
        the mark; 0 for a file changed within the last 2 s, which may change again with the same timestamp.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return 0
    if not stat.S_ISREG(status.st_mode) or abs(time.time() - status.st_ctime) < UNSETTLED_S:
        return 0
    return mark_of(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, place)


def mark_of(*facts: object) -> int:
    """Hash facts to a number from 1 to 2**63 - 1, the same in every process."""
    digest = blake2b(repr(facts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1


def read_below(real_root: str, name: str) -> bytes:
    """Read a regular file below a folder.

    Args:
        real_root: the folder, resolved.
        name: path relative to the folder; links are followed if they stay inside.

    Raises:
        OSError: no such file, not a regular file, outside the folder, or more than 1 GiB.
    """
    try:
        path = os.path.realpath(os.path.join(real_root, name))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), name) from error
    if not inside(real_root, path):
        raise PermissionError(errno.EACCES, "outside the source", name)
    # O_NONBLOCK: a named pipe must not block the reader
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not os.path.isfile(file.fileno()):
            raise OSError(errno.EINVAL, "not a regular file", name)
        size = os.fstat(file.fileno()).st_size
        if size > limits.MAX_IMAGE_FILE:
            raise OSError(errno.EFBIG, f"larger than {limits.MAX_IMAGE_FILE} bytes", name)
        return file.read(size)  # which allocates as much as it is asked for


@dataclass(frozen=True, slots=True)
class FileBelow:
    """An image file below a folder.

    Attributes:
        folder: the folder, resolved.
        name: path relative to it.
    """

    folder: str
    name: str

    def read(self) -> bytes:
        """See `read_below`."""
        return read_below(self.folder, self.name)

    def mark(self) -> int:
        """See `mark_of_file`."""
        return mark_of_file(os.path.join(self.folder, self.name))

    @classmethod
    def each(cls, folder: str, names: Sequence[str]) -> Callable[[int], FileBelow]:
        """The files of some names, by index."""
        return lambda place: cls(folder, names[place])


def files_below(root: str, extensions: Collection[str], left_out: LeftOut) -> list[str]:
    """List the files below a folder that have one of the extensions, as sorted relative paths.

    Links that leave the folder, and stores and results folders (those with a `MARKER`), are skipped. A folder linked
    twice is listed once.

    Args:
        left_out: collects what is skipped.

    Raises:
        OSError: the folder itself cannot be listed.
        ConfigError: the folder itself is a store or results folder.
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
                raise ConfigError("images", root, f"photographs; {MARKER} marks this folder as a store or results")
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
    """``folder`` or ``file``; None for an entry to skip, which is added to ``left_out``."""
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:  # a link to itself
        left_out.add(name, f"cannot be followed: {error.strerror}")
        return None
    if not is_folder and os.path.splitext(entry.name)[1].lower() not in extensions:
        if is_file and not entry.name.startswith("."):  # of the system, or of a tool, such as .DS_Store
            left_out.skip(entry.name)
        return None
    if entry.is_symlink() and not inside(real_root, os.path.realpath(entry.path)):
        left_out.add(name, "is a link that leaves the folder; skipped")
        return None
    if not is_folder and not is_file:
        left_out.add(name, "is a broken link" if entry.is_symlink() else "is not a regular file")
        return None
    return "folder" if is_folder else "file"


@dataclass(frozen=True)
class FileState:
    """Size in bytes and modification time in ns, to detect that a file changed since it was listed."""

    size: int
    changed: int

    @classmethod
    def of(cls, descriptor: int) -> FileState:
        """The state of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_size, status.st_mtime_ns)

    @classmethod
    def of_path(cls, path: str) -> FileState:
        """The state of a regular file. Raises OSError."""
        descriptor = open_regular(path)
        try:
            return cls.of(descriptor)
        finally:
            os.close(descriptor)


def open_regular(path: str) -> int:
    """Open a regular file for reading and return its descriptor. Raises OSError if it is not a regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not os.path.isfile(descriptor):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def read_span(path: str, stamp: FileState, offset: int, size: int) -> bytes:
    """Read bytes [offset, offset + size) of a file listed before.

    Raises:
        OSError: the file is missing, changed or too short, or the span is larger than 1 GiB.
    """
    if size > limits.MAX_IMAGE_FILE:
        raise OSError(errno.EFBIG, f"image larger than {limits.MAX_IMAGE_FILE} bytes", path)
    descriptor = open_regular(path)
    try:
        if FileState.of(descriptor) != stamp:
            raise OSError(errno.ESTALE, "file changed since it was listed", path)
        return pread_all(descriptor, offset, size, path)
    finally:
        os.close(descriptor)


def pread_all(descriptor: int, offset: int, size: int, path: str) -> bytes:
    """Read bytes [offset, offset + size) of an open file. Raises OSError if it is shorter."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "file ends inside an image", path)
        data += more
    return data


_SPECIAL = "{*?["


def expand(root: str, extensions: Sequence[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """Expand a URL, prefix or pattern in a bucket to (name, URL) pairs; follows the rules of `shards`.

    Args:
        parts: the URL with its braces expanded.

    Raises:
        ConfigError: no object matches, or one listed in braces does not exist.
        ObjectError: a request to the bucket failed.
    """
    if not any(mark in root for mark in _SPECIAL):
        location = _place(root)
        if location.is_file():
            return [(location.name, str(location))]
        return sorted((str(p.relative_to(location)), str(p)) for p in _below(location, extensions))
    base = _place(root[: min(root.index(mark) for mark in _SPECIAL if mark in root)].rpartition("/")[0])
    literal = [_place(part) for part in parts if not any(mark in part for mark in "*?[")]
    there_too = each(ObjectPlace.is_file, literal)
    missing = [str(p.relative_to(base)) for p, is_there in zip(literal, there_too, strict=True) if not is_there]
    if missing:
        some = abbreviated([shown(name) for name in missing])
        raise ConfigError("images", root, f"existing objects; {len(missing)} are missing: {some}")
    found = {str(p.relative_to(base)): str(p) for p in literal}
    magic = [part for part in parts if any(mark in part for mark in "*?[")]
    if magic:
        patterns = [_place(part).relative_to(base).parts for part in magic]
        for p in _below(base, extensions):
            name = str(p.relative_to(base))
            if any(_fits(name.split("/"), pattern) for pattern in patterns):
                found[name] = str(p)
    return sorted(found.items())


def _place(text: str) -> ObjectPlace:
    return object_place(text, "images")


def _below(location: ObjectPlace, extensions: Sequence[str]) -> list[ObjectPlace]:
    return [p for p in location.sizes() if p.name.lower().endswith(tuple(extensions))]


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a name match those of a pattern; ``**`` matches any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[i:], pattern[1:]) for i in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


MAX_FILES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


@dataclass(frozen=True)
class Shard:
    """A file of many images.

    Attributes:
        name: path relative to the folder, or to the part of the pattern before its first special character; the prefix
            of keys.
        path: path or URL.
    """

    name: str
    path: str


def is_pattern(text: str) -> bool:
    """Whether a text has braces or wildcards and is not the name of an existing file or folder."""
    return any(mark in text for mark in "{*?[") and not os.path.lexists(text)


def shards(root: str, extensions: Sequence[str], left_out: LeftOut) -> list[Shard]:
    """Expand a path, URL or pattern to files, sorted by name.

    - A file stands for itself; its name is its base name.
    - A folder: all files below it with one of the extensions. Links that leave it are skipped.
    - A pattern: ``{0000..1023}`` and ``{a,b}`` expand as in bash and must exist; ``* ? [] **`` match existing files,
      except links that leave the fixed part of the pattern, and stores and results folders.

    Raises:
        ConfigError: nothing found, or a file listed in braces does not exist.
    """
    if is_remote(root):
        found = [Shard(name, path) for name, path in expand(root, extensions, list(braces(root, root)))]
    elif os.path.isdir(root):
        try:
            found = [Shard(name, os.path.join(root, name)) for name in files_below(root, extensions, left_out)]
        except OSError as error:
            raise ConfigError("images", root, f"a readable folder ({error.strerror})") from error
    elif is_pattern(root):
        found = _matches(root, extensions, left_out)
    elif os.path.lexists(root):
        found = [Shard(os.path.basename(root), root)]
    else:
        raise ConfigError("images", root, "an existing file or folder, or a pattern")
    if not found:
        left_out.tell()
        raise ConfigError("images", root, f"a folder or pattern with {' or '.join(extensions)} files{left_out.first()}")
    known: dict[str, Shard] = {}
    for shard in found:
        key = key_text(shard.name)
        if key in known and known[key] != shard:
            left_out.add(shard.name, "has the same name as another shard; skipped")
        else:
            known[key] = Shard(key, shard.path)
    return [known[name] for name in sorted(known)]


def _matches(pattern: str, extensions: Sequence[str], left_out: LeftOut) -> list[Shard]:
    base, rest = _split(pattern)
    if ".." in rest.split("/"):
        raise ConfigError("images", pattern, "a pattern without .. after its first special character")
    found: list[Shard] = []
    missing: list[str] = []

    @cache
    def in_substyle_folder(folder: str) -> bool:
        if not folder:
            return False
        if os.path.isfile(os.path.join(base, folder, MARKER)):
            left_out.substyle_folders += 1
            return True
        return in_substyle_folder(os.path.dirname(folder))

    for part in dict.fromkeys(braces(rest, pattern)):
        if not glob.has_magic(part):
            path = os.path.join(base, part)
            if os.path.lexists(path):
                found.append(Shard(part, path))
            else:
                missing.append(part)
            continue
        for name in sorted(glob.glob(part, root_dir=base or ".", recursive=True)):
            path = os.path.join(base, name)
            if not name.lower().endswith(tuple(extensions)) or not os.path.isfile(path):
                continue
            if not inside(os.path.realpath(base or "."), os.path.realpath(path)):
                left_out.add(name, "is a link that leaves the folder; skipped")
                continue
            if in_substyle_folder(os.path.dirname(name)):
                continue
            found.append(Shard(name, path))
    if missing:
        some = abbreviated([shown(name) for name in missing])
        raise ConfigError("images", pattern, f"existing files; {len(missing)} are missing: {some}")
    return list(dict.fromkeys(found))


def _split(pattern: str) -> tuple[str, str]:
    """Split a pattern into its leading existing folder and the rest."""
    parts = pattern.split("/")
    base = 0
    while base < len(parts) - 1 and os.path.isdir("/".join(parts[: base + 1]) or "/"):
        base += 1
    return ("/".join(parts[:base]) or "/") if base else "", "/".join(parts[base:])


def braces(text: str, pattern: str) -> Iterator[str]:
    """Expand the braces of a text; braces without a comma or range are literal.

    Raises:
        ConfigError: more than 100,000 results.
    """
    pending = [text]
    made = 0
    while pending:
        text = pending.pop()
        match = next((m for m in _BRACES.finditer(text) if "," in m[1] or _RANGE.fullmatch(m[1])), None)
        if match is None:
            made += 1
            yield text
            continue
        choices = _choices(match[1], pattern)
        if made + len(pending) + len(choices) > MAX_FILES:
            raise ConfigError("images", pattern, f"a pattern for at most {MAX_FILES} files")
        pending += [text[: match.start()] + choice + text[match.end() :] for choice in reversed(choices)]


def _choices(inner: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inner)
    if match is None:
        return inner.split(",")
    first, last = match.groups()
    low, high = int(first), int(last)
    if abs(high - low) >= MAX_FILES:
        raise ConfigError("images", pattern, f"a pattern for at most {MAX_FILES} files")
    padded = any(len(bound) > 1 and bound.startswith("0") for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if low <= high else -1
    return [str(number).zfill(width) for number in range(low, high + step, step)]
