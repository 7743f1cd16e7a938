"""Reading files of a source: nothing outside its root, nothing but regular files, no more than an image can have."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.base import LeftOut, key_text, shown
from substyle.pipelines.storage import ObjectPlace, each, is_remote, place

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


# Which objects of a bucket a user means by an address, a prefix, or a pattern.

_SPECIAL = "{*?["


def expand(root: str, extensions: Sequence[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """(name, address) of the objects that an address stands for; see `patterns.shards`, whose rules hold here too.

    Args:
        parts: what the braces of the address stand for, each an address without braces.

    Raises:
        ConfigError: nothing is there, or an object that a pattern names is not.
        ObjectError: the bucket cannot be asked.
    """
    if not any(mark in root for mark in _SPECIAL):
        there = _place(root)
        if there.is_file():
            return [(there.name, str(there))]
        return sorted((str(p.relative_to(there)), str(p)) for p in _below(there, extensions))
    base = _place(root[: min(root.index(mark) for mark in _SPECIAL if mark in root)].rpartition("/")[0])
    literal = [_place(part) for part in parts if not any(mark in part for mark in "*?[")]
    there_too = each(ObjectPlace.is_file, literal)
    missing = [str(p.relative_to(base)) for p, is_there in zip(literal, there_too, strict=True) if not is_there]
    if missing:
        some = ", ".join(shown(name) for name in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConfigError("images", root, f"objects that are there; {len(missing)} are not: {some}")
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
    there = place(text, "images")
    assert isinstance(there, ObjectPlace)
    return there


def _below(there: ObjectPlace, extensions: Sequence[str]) -> list[ObjectPlace]:
    return [p for p, _ in there.walk() if p.name.lower().endswith(tuple(extensions))]


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a name fit those of a pattern, of which ``**`` stands for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[i:], pattern[1:]) for i in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


# Which files a user means by a file, a folder, or a pattern such as ``shards/train-{0000..0146}.tar``.

MAX_FILES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


@dataclass(frozen=True)
class Shard:
    """A file of many images.

    Attributes:
        name: its path relative to the folder, or to the part of the pattern before the first special character; keys
            begin with it.
        path: where it is, or its address in a bucket.
    """

    name: str
    path: str


def is_pattern(text: str) -> bool:
    """Whether a text stands for several files: braces or wildcards, and no file or folder of that very name."""
    return any(mark in text for mark in "{*?[") and not os.path.lexists(text)


def shards(root: str, extensions: Sequence[str], left_out: LeftOut) -> list[Shard]:
    """The files that the user means, sorted by name.

    - A file is itself; its name is its base name. An address in a bucket stands for what a path would.
    - A folder: all files below it that have one of the extensions. Links that leave it are left out.
    - A pattern: ``{0000..1023}`` counts, ``{a,b}`` lists, both as in bash; ``* ? [] **`` match what is there. A file
      that braces name must be there. What a wildcard finds stays inside the part before it: links that leave it are
      left out. Wildcards find nothing in stores and results folders.

    Raises:
        ConfigError: nothing is there, or a file that a pattern names is not.
    """
    if is_remote(root):
        found = [Shard(name, path) for name, path in expand(root, extensions, list(braces(root, root)))]
    elif os.path.isdir(root):
        try:
            found = [Shard(name, os.path.join(root, name)) for name in files_below(root, extensions, left_out)]
        except OSError as error:
            raise ConfigError("images", root, f"a folder that can be listed ({error.strerror})") from error
    elif is_pattern(root):
        found = _matches(root, extensions, left_out)
    elif os.path.lexists(root):
        found = [Shard(os.path.basename(root), root)]
    else:
        raise ConfigError("images", root, "a file, a folder or a pattern; nothing is there")
    if not found:
        left_out.tell()
        raise ConfigError("images", root, f"something that holds {' or '.join(extensions)} files{left_out.first()}")
    known: dict[str, Shard] = {}
    for shard in found:
        key = key_text(shard.name)
        if key in known and known[key] != shard:
            left_out.add(shard.name, "has the name of another shard and was left out")
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
                left_out.add(name, "is a link out of the folder and was left out")
                continue
            if in_substyle_folder(os.path.dirname(name)):
                continue
            found.append(Shard(name, path))
    if missing:
        some = ", ".join(shown(name) for name in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConfigError("images", pattern, f"files that are there; {len(missing)} are not: {some}")
    return list(dict.fromkeys(found))


def _split(pattern: str) -> tuple[str, str]:
    """The folder that a pattern begins with, and the rest. A part that is there under its very name is no pattern."""
    parts = pattern.split("/")
    base = 0
    while base < len(parts) - 1 and os.path.isdir("/".join(parts[: base + 1]) or "/"):
        base += 1
    return ("/".join(parts[:base]) or "/") if base else "", "/".join(parts[base:])


def braces(text: str, pattern: str) -> Iterator[str]:
    """All texts that a text with braces stands for; braces that hold neither a comma nor a range stay as they are.

    Raises:
        ConfigError: more than 100,000.
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
            raise ConfigError("images", pattern, f"a pattern that stands for at most {MAX_FILES} files")
        pending += [text[: match.start()] + choice + text[match.end() :] for choice in reversed(choices)]


def _choices(inner: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inner)
    if match is None:
        return inner.split(",")
    first, last = match.groups()
    low, high = int(first), int(last)
    if abs(high - low) >= MAX_FILES:
        raise ConfigError("images", pattern, f"a pattern that stands for at most {MAX_FILES} files")
    padded = any(len(bound) > 1 and bound.startswith("0") for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if low <= high else -1
    return [str(number).zfill(width) for number in range(low, high + step, step)]
