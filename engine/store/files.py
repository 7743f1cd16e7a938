"""Writing files so that a crash leaves the old state or the new one, never half of either."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from substyle.engine.store.errors import StoreError
from substyle.engine.store.processes import is_running
from substyle.kernels.errors import SubstyleError

_TEMPORARY = ".tmp"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a failed write into a StoreError that names the path and the reason."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        reason = error.strerror or str(error)
        raise StoreError(f"{where}: cannot be written: {reason}. What was finished before is kept.") from error


def temporary_name(path: Path) -> Path:
    """A hidden name beside the path that tells whose it is, so that what a dead process left can be cleared."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{_TEMPORARY}")


def clear_temporary(folder: Path, name: str = "") -> None:
    """Remove what dead processes of this host left under temporary names.

    Args:
        folder: where to look, not below it.
        name: only what was to become this; empty for everything.
    """
    for path in folder.glob(f".{glob.escape(name)}*.{glob.escape(socket.gethostname())}-*{_TEMPORARY}"):
        pid = path.name.removesuffix(_TEMPORARY).rpartition("-")[2]
        if pid.isdigit() and not is_running(int(pid)):
            remove(path)


def write_durably(path: Path, data: bytes) -> None:
    """Write under a temporary name, flush to the disk, rename; afterwards the file is whole or not there.

    Raises:
        StoreError: no room, no permission, or another failure of the disk.
    """
    temporary = temporary_name(path)
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)


def listed(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder whose names end so, in the order of their names; none where there is no folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; one that is not there is none to remove."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(data: bytes) -> str:
    """16 hexadecimal digits of the SHA-256 of a file's content; metadata files carry them in their names."""
    return hashlib.sha256(data).hexdigest()[:16]


def read_json(path: Path) -> Any:  # noqa: ANN401 (JSON)
    """What a JSON file holds. Raises SubstyleError that names it when it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SubstyleError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SubstyleError(f"{path}: not JSON ({error})") from error


def read_named(path: Path) -> bytes:
    """The content of a file whose name ends in its digest, ``<anything>-<digest>.<suffix>``.

    Raises:
        FileNotFoundError: it is not there.
        StoreError: its content is not what was written.
    """
    data = path.read_bytes()
    if path.stem.rpartition("-")[2] != digest(data):
        raise StoreError(f"{path}: its content is not what was written (run substyle verify)")
    return data
