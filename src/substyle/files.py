"""The only door to files whose names, contents or folders may be somebody else's.

Every file of the package is created, replaced, moved and deleted here, and compiled code is loaded from here.
tests/test_doors.py finds every other place.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from substyle.errors import ConfigError, SubstyleError

TEMPORARY = ".tmp"
_STEM = 120  # bytes of a final name in a temporary one: names are limited to 255 bytes
_LITTER = re.compile(rf"\.DS_Store|Thumbs\.db|desktop\.ini|\..*-\d+-[0-9a-f]{{8}}{re.escape(TEMPORARY)}", re.DOTALL)
_AHEAD = 1 << 20  # bytes of a part of a file that is worth a request of its own
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# folders of compilers in our cache, by the environment variables that name them
_COMPILERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


class UnsafeFileError(SubstyleError):
    """A name leaves its folder, a file is reached through a link, or is not of this user alone."""


# --- names that a file contained ----------------------------------------------------------------------------------


def relative(name: str) -> str:
    """Return a name that came from inside a file if it is a path below a folder.

    Raises:
        UnsafeFileError: it is absolute or empty, or has a backslash, a NUL, or an empty, ``.`` or ``..`` part.
    """
    if "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise UnsafeFileError(f"{name[:200]!a}: not a name inside a folder (absolute, or with .., \\, or empty parts)")
    return name


def inside(root: Path, name: str) -> Path:
    """Return the path of a name that came from inside a file, below a folder.

    Raises:
        UnsafeFileError: see `relative`; or a part of the path is a symbolic link.
    """
    path = root
    for part in relative(name).split("/"):
        path = path / part
        if path.is_symlink():
            raise UnsafeFileError(f"{path}: a symbolic link; links in {root} are not followed")
    return path


def open_inside(root: Path, name: str) -> BufferedReader:
    """Open a regular file inside a folder for reading. Raises OSError, or UnsafeFileError: see `inside`."""
    return _open_regular(inside(root, name))


def _open_regular(path: Path) -> BufferedReader:
    # O_NONBLOCK: a named pipe must not block the reader
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise UnsafeFileError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def require_no_links(path: Path, depth: int) -> None:
    """Raise UnsafeFileError if a path, or anything in its folders down to a depth, is a symbolic link."""
    if path.is_symlink():
        raise UnsafeFileError(f"{path}: a symbolic link")
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        for entry in entries:  # folders of another process may be gone
            if entry.is_symlink() or (depth and entry.is_dir(follow_symlinks=False)):
                require_no_links(Path(entry.path), depth - 1)


def is_regular(path: Path) -> bool:
    """Whether a path is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


# --- writing ------------------------------------------------------------------------------------------------------


def temporary_name(path: Path) -> Path:
    """Return a hidden, random name beside a path, with host and process id so that leftovers can be cleared."""
    stem = os.fsdecode(os.fsencode(path.name)[:_STEM])
    random = secrets.token_hex(4)
    return path.with_name(f".{stem}.{socket.gethostname()}-{os.getpid()}-{random}{TEMPORARY}")


def temporaries(folder: Path, name: str = "") -> Iterator[tuple[Path, int]]:
    """Temporary files and folders that processes of this host have created in a folder, each with the process id.

    Args:
        name: final name; empty for all.
    """
    stem = os.fsdecode(os.fsencode(name)[:_STEM])
    ends = re.compile(rf"\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}{re.escape(TEMPORARY)}$")
    for path in folder.glob(f".{glob.escape(stem)}{'.' if name else '*.'}*{TEMPORARY}"):
        if found := ends.search(path.name):
            yield path, int(found[1])


def is_litter(name: str) -> bool:
    """Whether a file is what a killed process has left of `temporary_name`, or what file managers put into folders."""
    return _LITTER.fullmatch(name) is not None


@contextmanager
def replacing(path: Path, *, durable: bool = False, mode: int | None = None) -> Iterator[BinaryIO]:
    """Yield a new file, which replaces ``path`` at the end of the block unless an error occurs.

    It is created under a random name that did not exist. A link at ``path`` is replaced, not followed.

    Args:
        durable: flush the file to the disk first; the folder is not flushed.
        mode: permissions; default: those of the umask.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "x+b") as file:  # O_CREAT and O_EXCL: an existing link is not followed
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk names no file
            _name_final(error, temporary, path)
        raise


def _name_final(error: OSError, temporary: Path, path: Path) -> None:
    """Let an error name the final path of a temporary file or folder, or of a file in it."""
    name = str(error.filename)
    if name == str(temporary) or name.startswith(f"{temporary}{os.sep}"):
        error.filename = f"{path}{name.removeprefix(str(temporary))}"


def write(
    path: Path, data: bytes | str | Iterable[bytes | memoryview], *, durable: bool = False, mode: int | None = None
) -> Path:
    """Write a whole file (text as UTF-8), or its parts, by `replacing`. Returns the path."""
    with replacing(path, durable=durable, mode=mode) as file:
        whole = data.encode("utf-8", "replace") if isinstance(data, str) else data
        for part in [whole] if isinstance(whole, bytes) else whole:
            start = file.tell()
            file.write(part)
            if durable and file.tell() - start >= _AHEAD:
                file.flush()
                # Linux begins to write these pages to the disk, while the next part is made
                os.posix_fadvise(file.fileno(), start, 0, os.POSIX_FADV_DONTNEED)
    return path


def write_new(path: Path, data: bytes) -> bool:
    """Write a whole file to the disk unless something has its name, and return whether it did."""
    temporary = temporary_name(path)
    try:
        write(temporary, data, durable=True)
        os.link(temporary, path)  # fails if another process was faster; readers see all of the file or nothing
    except FileExistsError:
        return False
    except OSError as error:
        _name_final(error, temporary, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
    return True


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that gets the name ``path`` at the end of the block.

    Raises OSError if ``path`` exists by then and is not an empty folder.
    """
    temporary = temporary_name(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, path)
    except BaseException as error:
        remove(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            _name_final(error, temporary, path)
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` at the end of the block unless an error occurs.

    Processes that make the same folder do not mix their files: the last to finish replaces the others'.
    """
    new, old = temporary_name(path), temporary_name(path)
    new.mkdir(parents=True)
    try:
        yield new
        while new.exists():
            with suppress(FileNotFoundError):
                os.rename(path, old)
            try:
                os.rename(new, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was faster
                    with suppress(OSError):
                        os.rename(old, path)  # what was there stays
                    raise
            remove(old)
        flush(path.parent)
    except OSError as error:
        _name_final(error, new, path)
        raise
    finally:
        remove(new)


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder in ``folder`` for files that `move_in` moves there; it is deleted after the block."""
    new = temporary_name(folder / "new")
    new.mkdir()
    try:
        yield new
    except OSError as error:
        _name_final(error, new, folder)
        raise
    finally:
        remove(new, ignore_errors=True)


def move_in(
    new: Path, folder: Path, own: Mapping[str, str], record: Callable[[dict[str, str]], None]
) -> dict[str, str]:
    """Move the files of ``new`` into ``folder``, over those of an earlier call alone.

    Args:
        own: names of the earlier files, and their digests, separated by commas; empty if unknown.
        record: keeps such a list on the disk; called with the files of both before anything is moved.

    Returns:
        names and digests (SHA-256) of the new files.

    Raises:
        UnsafeFileError: a file in the folder that is not listed has the name of a new one, or is reached through a
            link, or a text (``.md``) has been edited. Nothing has been changed then.
    """
    written = sorted(path for path in new.rglob("*") if is_regular(path))
    made = {path.relative_to(new).as_posix(): file_hash(path) for path in written}
    for name, digest in made.items():
        target = inside(folder, name)
        if target.is_dir() or (target.exists() and name not in own):
            raise UnsafeFileError(f"{target}: would be replaced, but substyle has not written it; move it elsewhere")
        edited = own.get(name) and target.exists() and file_hash(target) not in [*own[name].split(","), digest]
        if edited and name.endswith(".md"):
            raise UnsafeFileError(f"{target}: would be replaced, but has been edited; move it elsewhere")
    for name in made:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    # either until all are moved: a run may be killed in between
    record({name: ",".join(filter(None, (own.get(name), made.get(name)))) for name in {**own, **made}})
    for name in made:
        os.replace(new / name, folder / name)
    return made


def remove_own(folder: Path, own: Mapping[str, str]) -> None:
    """Delete files that have the listed digests, and folders that are empty then; edited files stay."""
    for name, digest in own.items():
        path = inside(folder, name)
        if is_regular(path) and file_hash(path) in digest.split(","):
            path.unlink()
            with suppress(OSError):
                for parent in path.relative_to(folder).parents[:-1]:
                    (folder / parent).rmdir()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_apart(folder: Path, source: Path) -> None:
    """Raise ConfigError if a folder to write to is inside what is read, or contains it, also through links."""
    written, read = folder.resolve(), source.resolve()
    if written.is_relative_to(read) or read.is_relative_to(written):
        raise ConfigError("--out", str(folder), f"a folder apart from {source}, which is read")


_folders: set[Path] = set()  # made by `temporary_folder`


def temporary_folder(parent: Path, prefix: str) -> Path:
    """Create an empty folder of this user alone (mode 0700) with a short random name; the caller removes it."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    _folders.add(path)
    return path


def remove_temporary_folders() -> None:
    """Remove what `temporary_folder` made, for a process that ends at once."""
    for path in list(_folders):
        remove(path, ignore_errors=True)


@contextmanager
def scratch(folder: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder of this user alone, in a folder or in ``$TMPDIR``, that is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="substyle-", dir=folder, ignore_cleanup_errors=True) as name:
        yield Path(name)


# --- deletion -----------------------------------------------------------------------------------------------------


def remove(path: Path, *, root: Path | None = None, ignore_errors: bool = False) -> None:
    """Delete a file, a link or a folder with its content, if it exists. Links are never followed.

    Args:
        root: a folder; no folder between it and the path may be a link. Default: the path's folder.

    Raises:
        UnsafeFileError: the path is not below ``root``, or is reached through a link.
    """
    if root is not None:
        if not path.is_relative_to(root) or path == root:
            raise UnsafeFileError(f"{path}: not below {root}")
        *folders, _ = relative(path.relative_to(root).as_posix()).split("/")
        if folders:
            inside(root, "/".join(folders))
    try:
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    if is_folder:
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        with suppress(OSError) if ignore_errors else suppress(FileNotFoundError):
            path.unlink()


# --- what is loaded as code or parsed by native libraries ---------------------------------------------------------


def cache_root() -> Path:
    """Folder of compiled artefacts: $SUBSTYLE_CACHE, else ``substyle`` in $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("SUBSTYLE_CACHE")
    root = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "substyle"
    return root.expanduser()


def private_folder(path: Path) -> Path:
    """Create a folder that only this user can change (mode 0700), or check an existing one. Returns it.

    Raises:
        UnsafeFileError: it belongs to another user, or others can write to it.
    """
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    _require_private(path, path.stat())
    return path


def cache_folder(*names: str) -> Path:
    """Return a folder in the cache, created if missing; it and the cache are private, see `private_folder`."""
    path = private_folder(cache_root())
    for name in names:
        path = private_folder(inside(path, name))
    return path


def read_private(path: Path) -> bytes:
    """Read a file that only this user can change. Raises UnsafeFileError if others can; FileNotFoundError."""
    _require_private(path.parent, path.parent.stat())
    with _open_regular(path) as file:
        _require_private(path, os.fstat(file.fileno()))
        return file.read()


def require_private(path: Path) -> Path:
    """Return the path of a file to load as code. Raises UnsafeFileError if other users can change it."""
    for each in (path.parent, path):
        if path.is_symlink():
            raise UnsafeFileError(f"{path}: a symbolic link in a folder of compiled code")
        _require_private(each, each.stat())
    return path


def _require_private(path: Path, status: os.stat_result) -> None:
    advice = "compiled code in it is not trusted; set $SUBSTYLE_CACHE to a folder of your own"
    if status.st_uid not in (0, os.geteuid()):
        raise UnsafeFileError(f"{path}: belongs to another user (uid {status.st_uid}); {advice}")
    if status.st_mode & _OTHERS:
        raise UnsafeFileError(f"{path}: writable by other users; {advice}, or run chmod -R go-w {cache_root()}")


def name_compiler_caches(*, again: bool = False) -> None:
    """Let torch and Triton keep what they compile in our cache. Call before torch is imported, which sets a default.

    Torch's own default is a predictable folder in ``$TMPDIR``, which another user may have made.

    Args:
        again: the cache is another one than before.
    """
    for variable, name in _COMPILERS.items():
        if again or variable not in os.environ:
            with suppress(RuntimeError):  # no home folder: torch has a default of its own
                os.environ[variable] = str(cache_root() / name)


def require_compiler_caches() -> None:
    """Create the folders from which torch and Triton load compiled code; call before they compile.

    Raises:
        UnsafeFileError: other users can change one of them.
    """
    name_compiler_caches()
    for variable in _COMPILERS:
        private_folder(Path(os.environ[variable]))
