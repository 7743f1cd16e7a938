"""Cache of compiled artefacts (graphs, blobs, gate results), keyed by a hash of all their inputs."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from substyle import files as doors

_MAGIC = b"substyle"  # followed by the SHA-256 of the entry's name and data, then the data
_HEAD = len(_MAGIC) + 32
_FOLDERS = ("native", "inductor", "triton", "timings", "listings")  # files in formats of their own
NOTES = "notes"  # folder of what this user has done, which is not made again
_EMBEDDING = ("kernels", "pipelines", "engine/backbones", "engine/style_transfer", "engine/embedding")


def root() -> Path:
    """Cache folder: $SUBSTYLE_CACHE, else ``substyle`` in $XDG_CACHE_HOME or ~/.cache."""
    return doors.cache_root()


def key(facts: dict[str, Any]) -> str:
    """Hash JSON facts to 24 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def fetch(name: str, make: Callable[[], bytes]) -> bytes:
    """Return a cached entry; create it if missing. Safe under concurrent calls."""
    data = read(name)
    if data is None:
        data = make()
        write(name, data)
    return data


def fetch_once(name: str, make: Callable[[], bytes]) -> bytes:
    """`fetch` for expensive or nondeterministic entries: one process creates the entry, others wait for it.

    The file lock is released if its holder dies.
    """
    data = read(name)
    if data is not None:
        return data
    from filelock import FileLock

    with FileLock(_placed(f"{name}.lock")):
        return fetch(name, make)


def _placed(name: str) -> Path:
    """Path of an entry to write, in a private folder."""
    *folders, last = name.split("/")
    return doors.cache_folder(*folders) / last


def read(name: str) -> bytes | None:
    """Return a cached entry, or None if it is missing or its checksum does not match.

    Raises UnsafeFileError if other users can change it: entries are parsed by native libraries, and believed.
    """
    path = root() / name
    try:
        raw = doors.read_private(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    data = memoryview(raw)[_HEAD:]
    if raw[:_HEAD] != _head(name, data):
        print(f"{path}: checksum mismatch; rebuilding", file=sys.stderr)
        return None
    return bytes(data)


def write(name: str, data: bytes) -> None:
    """Write a cache entry with its checksum."""
    replace(_placed(name), _head(name, data) + data)


def _head(name: str, data: bytes | memoryview) -> bytes:
    """Head of an entry's file; an entry that was moved to another name has the wrong one."""
    digest = hashlib.sha256(f"{name}\0".encode())
    digest.update(data)
    return _MAGIC + digest.digest()


def replace(path: Path, data: bytes) -> None:
    """Write a file atomically, for this user alone."""
    doors.write(path, data, mode=0o600)


def files() -> dict[Path, int]:
    """Size in bytes of every file of the cache; other files in its folder are left out."""
    found = {}
    for path in root().rglob("*"):
        try:
            if path.is_file() and not path.is_symlink() and _ours(path):
                found[path] = path.stat().st_size
        except OSError:  # removed by another process, or not readable
            continue
    return found


def _ours(path: Path) -> bool:
    if path.relative_to(root()).parts[0] in _FOLDERS or path.suffix == ".lock":
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def clean() -> int:
    """Remove all files of the cache that are made again when needed, so all but notes. Returns their size in bytes."""
    removed = {path: size for path, size in files().items() if path.relative_to(root()).parts[0] != NOTES}
    for path in removed:
        doors.remove(path)
    return sum(removed.values())


def remember(kind: str, facts: dict[str, Any], make: Callable[[], Any]) -> Any:  # noqa: ANN401 - plain JSON
    """Return a JSON value that depends only on ``facts``; computed once, then read from the cache."""
    return json.loads(fetch(f"{kind}/{key(facts)}.json", lambda: json.dumps(make()).encode()))


def recall(kind: str, facts: dict[str, Any]) -> Any:  # noqa: ANN401 - plain JSON
    """Return the JSON value kept for ``facts``, or None."""
    data = read(f"{kind}/{key(facts)}.json")
    return None if data is None else json.loads(data)


def keep(kind: str, facts: dict[str, Any], value: Any) -> None:  # noqa: ANN401 - plain JSON
    """Keep a JSON value for `recall`, in place of an earlier one; for `remember`, it depends only on ``facts``."""
    write(f"{kind}/{key(facts)}.json", json.dumps(value).encode())


def note(kind: str, facts: dict[str, Any]) -> None:
    """Remember that this user has done something. Without a writable cache it is forgotten."""
    with suppress(OSError, doors.UnsafeFileError):
        if not noted(kind, facts):
            write(f"{NOTES}/{kind}-{key(facts)}", b"noted")


def noted(kind: str, facts: dict[str, Any]) -> bool:
    """Whether `note` was called with these facts by this user, which no file of somebody else can pretend."""
    try:
        return read(f"{NOTES}/{kind}-{key(facts)}") is not None
    except doors.UnsafeFileError as error:
        print(f"{error}; ignoring it", file=sys.stderr)
        return False


@functools.cache
def versions(*names: str) -> dict[str, str]:
    """Versions of distributions, empty for those not installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@functools.cache
def code_hash() -> str:
    """SHA-256 of the source code that determines embeddings.

    It is in keys of entries that save loading or rendering, and identifies no result: that is what code does.
    """
    return hash_of(Path(__file__).parents[1])


def hash_of(root: Path) -> str:
    """`code_hash` of the package in a folder."""
    digest = hashlib.sha256()
    for package in _EMBEDDING:
        files = sorted(path for path in (root / package).rglob("*") if path.suffix in (".py", ".c"))
        if not files:
            raise FileNotFoundError(f"{root / package}: no source code")
        for path in files:
            digest.update(f"{path.relative_to(root)}:{doors.file_hash(path)};".encode())
    return digest.hexdigest()
