"""The cache of compiled artefacts: graphs, blobs and gate results, each under the hash of all it depends on."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_MAGIC = b"substyle"  # then the SHA-256 of what follows it
_HEAD = len(_MAGIC) + 32
EMBEDDING = ("kernels", "pipelines", "engine/backbones", "engine/style_transfer", "engine/embedding")


def root() -> Path:
    """Folder of the cache: $SUBSTYLE_CACHE, else substyle under $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("SUBSTYLE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "substyle"


def key(facts: dict[str, Any]) -> str:
    """24 hex digits for plain JSON facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@functools.cache
def device() -> str:
    """What a compiled blob is tied to on a CPU: model and instruction sets."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        return "|".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    return platform.processor() or platform.machine()


def cpu_model() -> str:
    """The CPU's name for people."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fetch(name: str, make: Callable[[], bytes]) -> bytes:
    """The bytes kept under a name, made and kept when they are not there. Concurrent makers do no harm."""
    data = read(name)
    if data is None:
        data = make()
        write(name, data)
    return data


def fetch_once(name: str, make: Callable[[], bytes]) -> bytes:
    """`fetch` for what takes long or comes out otherwise each time: of concurrent processes one makes it, others wait.

    The system gives the lock back when its holder dies, and then the next one makes it.
    """
    data = read(name)
    if data is not None:
        return data
    path = root() / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return fetch(name, make)


def read(name: str) -> bytes | None:
    """The bytes kept under a name; None where there are none, or where they are not what was written."""
    path = root() / name
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    data = memoryview(raw)[_HEAD:]
    if raw[:_HEAD] != _MAGIC + hashlib.sha256(data).digest():
        print(f"{path}: checksum mismatch; rebuilding", file=sys.stderr)
        return None
    return bytes(data)


def write(name: str, data: bytes) -> None:
    """Keep bytes under a name, with a digest by which `read` knows them."""
    replace(root() / name, _MAGIC + hashlib.sha256(data).digest() + data)


def replace(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)  # noqa: SIM115 - closed below, then renamed
    try:
        with temporary as file:
            file.write(data)
        os.replace(temporary.name, path)
    except BaseException:
        Path(temporary.name).unlink(missing_ok=True)
        raise


def remember(kind: str, facts: dict[str, Any], make: Callable[[], Any]) -> Any:  # noqa: ANN401 - plain JSON
    """A plain JSON value that follows from plain JSON facts: worked out once, then read from the cache."""
    return json.loads(fetch(f"{kind}/{key(facts)}.json", lambda: json.dumps(make()).encode()))


@functools.cache
def versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions, empty for one that is not."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def code_hash(*packages: str) -> str:
    """SHA-256 of the source code of packages, C files included.

    Args:
        packages: folders in the package's own; left out, `EMBEDDING`: all that pixels, graphs and embeddings depend on.
    """
    return hash_of(Path(__file__).parents[1], packages or EMBEDDING)


def hash_of(root: Path, packages: Sequence[str]) -> str:
    """SHA-256 of the names and bytes of all source files of packages below a folder."""
    digest = hashlib.sha256()
    for package in packages:
        files = sorted(path for path in (root / package).rglob("*") if path.suffix in (".py", ".c"))
        if not files:
            raise FileNotFoundError(f"{root / package}: no source code")
        for path in files:
            digest.update(f"{path.relative_to(root)}:{file_hash(path)};".encode())
    return digest.hexdigest()
