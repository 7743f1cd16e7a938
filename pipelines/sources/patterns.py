"""Which files a user means by a file, a folder, or a pattern such as ``shards/train-{0000..0146}.tar``."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import is_remote
from substyle.pipelines.sources.files import MARKER, files_below, inside
from substyle.pipelines.sources.remote_patterns import expand
from substyle.pipelines.sources.text import LeftOut, key_text, shown

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
