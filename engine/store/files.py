"""Files of a store and of results: writes whose errors name the place, contents that are checked, and processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from substyle import files
from substyle.engine.store.layout import StoreError
from substyle.errors import SubstyleError
from substyle.pipelines import limits
from substyle.pipelines.storage import LocalPlace, ObjectError, Place, place

if TYPE_CHECKING:
    import pyarrow as pa


def started(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot; None if unavailable.

    Process ids are reused; with the start time they are unique until the next boot.
    """
    fields = _stat(pid)
    return fields[19] if fields else None  # the 22nd field of proc(5)


def age() -> float | None:
    """Return the seconds since this process started, to a hundredth; None if unavailable."""
    start = started(os.getpid())
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(start) / os.sysconf("SC_CLK_TCK") if start else None


def is_running(pid: int, start: str | None = None) -> bool:
    """Return whether a process with this id is running, and started at ``start`` if given."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: not a valid id
        return False
    except PermissionError:
        return True  # of another user
    fields = _stat(pid)
    if not fields:
        return True
    ended = fields[0] in "ZX"  # killed, but not waited for
    return not ended and (start is None or fields[19] == start)


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from the third (state) on; empty if unavailable."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name in parentheses may contain spaces


@contextmanager
def writing(path: Path | Place) -> Iterator[None]:
    """Convert a failed write to a StoreError that names the path and the reason."""
    try:
        yield
    except ObjectError as error:
        raise StoreError(f"{error}. Finished work is kept.") from error
    except OSError as error:
        where = error.filename or path
        reason = error.strerror or str(error)
        raise StoreError(f"{where}: cannot write: {reason}. Finished work is kept.") from error


def write_durably(path: Path | Place, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file atomically and flush it to the disk.

    Raises:
        StoreError: the disk or bucket is full, not writable, or failed.
    """
    with writing(path):
        place(path).write(data)


def write_once(path: Place, data: bytes) -> None:
    """`write_durably` for a file that never changes: an existing object in a bucket must have the same content."""
    with writing(path):
        path.write_once(data)


def clear_temporary(folder: Place, name: str = "") -> None:
    """Remove temporary files of dead processes of this host.

    Args:
        folder: folder to search, not recursively.
        name: final name of the files to remove; empty for all.
    """
    if isinstance(folder, LocalPlace):  # a bucket has none
        for path, pid in files.temporaries(folder, name):
            if not is_running(pid):
                files.remove(path)


@contextmanager
def replacing_own(folder: Path, record: str, former: tuple[str, str], *, add: bool = False) -> Iterator[Path]:
    """Yield an empty folder, whose files replace those of an earlier call in ``folder`` at the end of the block.

    All other files stay, and earlier ones that somebody has edited are not deleted. Until the new ones are complete
    nothing is changed; see `files.move_in`.

    Args:
        record: name of the file that lists what was written.
        former: name of a file, and text by which results of a version that kept no list are recognised in it.
        add: do not delete earlier files.

    Raises:
        UnsafeFileError: a file with the name of a new one was not written by an earlier call.
        StoreError: the files cannot be moved.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clear_temporary(place(folder), "new")
    path = files.inside(folder, record)
    unlisted = not path.exists() or (former[0] == record and has_text(path, former[1]))
    listed = {} if unlisted else read_object(path).get("files")
    if not isinstance(listed, dict):
        raise files.UnsafeFileError(f"{path}: not a list of files that substyle has written; move it elsewhere")
    own = {str(name): str(digest) for name, digest in listed.items()}
    for name in own:
        files.inside(folder, name)  # the list may be somebody else's

    def keep(made: dict[str, str]) -> None:
        if made:
            write_durably(path, json.dumps({"files": made}, indent=1).encode())
        else:
            files.remove(path)

    with files.new_files(folder) as new:
        yield new
        if former[0] not in own and has_text(folder / former[0], former[1]):
            own |= {each.relative_to(new).as_posix(): "" for each in new.rglob("*")}
        with writing(folder):
            made = files.move_in(new, folder, own, keep)
            if not add:
                files.remove_own(folder, {name: own[name] for name in own.keys() - made.keys()})
            keep({name: digest for name, digest in {**own, **made}.items() if (folder / name).exists()})


def has_text(path: Path, text: str) -> bool:
    """Whether a regular file has a text in it."""
    try:
        return files.is_regular(path) and text in limits.read_text(path)
    except (OSError, ValueError):
        return False


def digest(data: bytes) -> str:
    """Return 16 hex digits of the SHA-256 of a file's content, as used in the names of metadata files."""
    return hashlib.sha256(data).hexdigest()[:16]


def read_json(path: Path) -> Any:  # noqa: ANN401 (JSON)
    """Read a JSON file. Raises SubstyleError if it cannot be read or parsed."""
    try:
        return json.loads(limits.read_text(path))
    except OSError as error:
        raise SubstyleError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise SubstyleError(f"{path}: not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises SubstyleError if it cannot be read or is not an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise SubstyleError(f"{path}: not a JSON object")
    return content


def write_arrays(path: Path, /, **arrays: NDArray[Any]) -> None:
    """`write_durably` for arrays by name (an ``.npz`` file)."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_durably(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read arrays by name. Raises OSError, ValueError, or one of `limits.BAD_ARCHIVE` for a damaged file."""
    limits.require_archive(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def read_named(path: Place) -> bytes:
    """Read a file whose name ends in its digest, ``<anything>-<digest>.<suffix>``.

    Raises:
        FileNotFoundError: the file does not exist.
        StoreError: the content does not match the digest.
    """
    data = path.read_bytes()
    if path.stem.rpartition("-")[2] != digest(data):
        raise StoreError(f"{path}: checksum mismatch; run substyle verify")
    return data


def encoded(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
