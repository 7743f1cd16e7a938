"""Writing files so that a crash leaves the old state or the new one, never half of either.

On a disk that takes a temporary name, a flush and a rename. In a bucket an object appears whole or not at all, and what
has a name of its own is put there only if nothing is.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from substyle.engine.store.layout import StoreError
from substyle.kernels.errors import SubstyleError
from substyle.pipelines.storage import ObjectError, ObjectPlace, Place, at_once, matching, told

# Whether a process of this host is still the one that was met before.


def started(pid: int) -> str | None:
    """When a process began, in clock ticks since the system's start; None where the system does not tell.

    A number of a process is used again after its end; together with its start it is unique until the next boot.
    """
    fields = _stat(pid)
    return fields[19] if fields else None  # the 22nd field of proc(5)


def age() -> float | None:
    """Seconds since this process began, to a hundredth; None where the system does not tell."""
    start = started(os.getpid())
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(start) / os.sysconf("SC_CLK_TCK") if start else None


def is_running(pid: int, start: str | None = None) -> bool:
    """Whether a process of that number runs, and began at ``start`` where that is known."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no process has such a number
        return False
    except PermissionError:
        return True  # it runs as another user
    fields = _stat(pid)
    if not fields:
        return True
    ended = fields[0] in "ZX"  # a process that was killed and that nobody has waited for
    return not ended and (start is None or fields[19] == start)


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from the third, the state, on; empty where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name in parentheses may hold blanks


_TEMPORARY = ".tmp"


@contextmanager
def naming(path: Place) -> Iterator[None]:
    """Let what others, such as Zarr, let through of a bucket's failures name the place (`told`)."""
    if isinstance(path, ObjectPlace):
        with told(path):
            yield
    else:
        yield


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Turn what the system or a bucket says of a failed write into a StoreError that names the path and the reason."""
    try:
        with naming(path):
            yield
    except ObjectError as error:
        raise StoreError(f"{error}. What was finished before is kept.") from error
    except OSError as error:
        where = error.filename or path
        reason = error.strerror or str(error)
        raise StoreError(f"{where}: cannot be written: {reason}. What was finished before is kept.") from error


def temporary_name(path: Path) -> Path:
    """A hidden name beside the path that tells whose it is, so that what a dead process left can be cleared."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{_TEMPORARY}")


def clear_temporary(folder: Place, name: str = "") -> None:
    """Remove what dead processes of this host left under temporary names; a bucket has none.

    Args:
        folder: where to look, not below it.
        name: only what was to become this; empty for everything.
    """
    if isinstance(folder, ObjectPlace):
        return
    for path in folder.glob(f".{glob.escape(name)}*.{glob.escape(socket.gethostname())}-*{_TEMPORARY}"):
        pid = path.name.removesuffix(_TEMPORARY).rpartition("-")[2]
        if pid.isdigit() and not is_running(int(pid)):
            remove(path)


def write_durably(path: Place, data: bytes) -> None:
    """Write under a temporary name, flush to the disk, rename; afterwards the file is whole or not there.

    In a bucket the object is put where none is; one that is there must be the same.

    Raises:
        StoreError: no room, no permission, or another failure of the disk or the bucket.
    """
    if isinstance(path, ObjectPlace):
        with writing(path):
            _put_once(path, data)
        return
    temporary = temporary_name(path)
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush(path.parent)


def listed(folder: Place, suffix: str) -> list[Place]:
    """Files of a folder whose names end so, in the order of their names; none where there is no folder."""
    if isinstance(folder, ObjectPlace):
        return matching(folder, f"*{suffix}")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]


def sizes(paths: Iterable[Place]) -> list[int]:
    """Bytes of each of some files. Raises FileNotFoundError for one that is gone."""
    return at_once(lambda path: path.head().size if isinstance(path, ObjectPlace) else path.stat().st_size, paths)


def _put_once(path: ObjectPlace, data: bytes) -> None:
    try:
        path.create(data)
    except FileExistsError:
        # a request whose answer was lost is made again, and then meets what it has written itself
        if path.read_bytes() != data:
            raise


def make_folder(path: Place) -> None:
    """Make a folder and those above it where they are not there; a bucket has none."""
    if isinstance(path, Path) and not path.is_dir():  # to ask is cheaper than to make in vain, for every record
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)


def remove(path: Place) -> None:
    """Remove a file or a folder with all that is in it; one that is not there is none to remove."""
    if isinstance(path, Path) and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Place) -> None:
    """Flush a file or a folder's list of names to the disk; what a bucket has taken is kept."""
    if isinstance(path, ObjectPlace):
        return
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


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises SubstyleError that names it when it cannot be read or holds none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise SubstyleError(f"{path}: not a JSON object")
    return content


def read_named(path: Place) -> bytes:
    """The content of a file whose name ends in its digest, ``<anything>-<digest>.<suffix>``.

    Raises:
        FileNotFoundError: it is not there.
        StoreError: its content is not what was written.
    """
    data = path.read_bytes()
    if path.stem.rpartition("-")[2] != digest(data):
        raise StoreError(f"{path}: its content is not what was written (run substyle verify)")
    return data
