"""Storage locations: `Place`, on a disk (`LocalPlace`) or in a bucket (`ObjectPlace`)."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from io import BufferedReader
from pathlib import Path, PosixPath, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

from substyle.kernels import files as doors
from substyle.kernels.errors import ConfigError, SubstyleError

REQUESTS = 16  # concurrent requests to a bucket

T = TypeVar("T")
R = TypeVar("R")
# fills a buffer with the bytes from an offset on and returns their number, less than its size only at the end
Fill: TypeAlias = Callable[[memoryview, int], int]


@dataclass(frozen=True)
class Version:
    """Version of an object, for conditional reads and writes: ``size`` in bytes, ``changed`` by the server's clock."""

    e_tag: str | None
    version: str | None
    size: int = 0
    changed: datetime | None = None


class Place(Protocol):
    """A file, or a folder with all below it, on a disk or in a bucket; see `place`.

    A file is written atomically: readers see its old content or its new content. A missing one raises
    FileNotFoundError, any other failure OSError, or ObjectError for a request to a bucket. Methods with a body do what
    holds for a bucket, which has neither folders nor links nor temporary files.

    Attributes:
        requests: how many files are read or written at once.
        near: gap in bytes up to which two ranges are read together, because another read would take as long.
    """

    __slots__ = ()

    requests: ClassVar[int]
    near: ClassVar[int]

    # --- names --------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Self:
        """The enclosing folder."""

    def __truediv__(self, name: str) -> Self: ...

    def __lt__(self, other: Self) -> bool: ...

    def relative_to(self, other: Self) -> PurePosixPath:
        """The names below another place. Raises ValueError if this is not inside it."""

    def absolute(self) -> Self:
        """The same place for a process in another folder."""
        return self

    def inside(self, name: str) -> Self:
        """A name that came from inside a file, below this folder.

        Raises UnsafeFileError if it leaves the folder, or a part of it is a link.
        """

    # --- reading ------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is a file; on a disk, or a folder."""

    def is_file(self) -> bool:
        """Whether there is a file with exactly this name."""

    def is_special(self) -> bool:
        """Whether there is something other than a regular file."""
        return False

    def size(self) -> int:
        """The size of the file in bytes."""

    def mark(self) -> object:
        """What changes if the file is replaced, where that is known without reading it, else None."""
        return None

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self.read_version()[0]

    def read_version(self) -> tuple[bytes, Version]:
        """The whole file and its version, which only buckets have."""

    # Below a root, which may be trusted, no link is followed: these raise UnsafeFileError for one.

    def read_below(self, root: Self) -> bytes:
        """The whole file."""

    def digest_below(self, root: Self) -> tuple[str, int]:
        """SHA-256 in hex, and size in bytes, of the file."""

    def ranges_below(self, root: Self) -> AbstractContextManager[Fill]:
        """Yield a function that reads ranges of the file."""

    def zarr_store(self) -> Any:  # noqa: ANN401 (zarr's StoreLike)
        """This folder as a store that zarr can read."""

    def translated_errors(self) -> AbstractContextManager[None]:
        """Convert errors of requests that another library sends, such as zarr, as methods of a place do."""
        return nullcontext()

    # --- listing ------------------------------------------------------------------------------------------------------

    def files(self, suffix: str) -> list[Self]:
        """Files of this folder with a suffix, sorted by name; empty if the folder does not exist."""

    def all_files(self) -> Iterator[Self]:
        """All files below this folder."""

    def sizes(self) -> Callable[[Self], int | None]:
        """Return a function from a file below this folder to its size in bytes, None if it is no regular file.

        In a bucket, one listing replaces a request per file.
        """

    def glob(self, pattern: str) -> Iterator[Self]:
        """Files below this folder that match a pattern of ``* ? []``, part by part; on a disk also folders."""

    # a process that is killed leaves temporary files on a disk, and none in a bucket

    def leftovers(self, pattern: str) -> Iterator[Self]:
        """Temporary files below this folder that match a pattern, see `glob`."""
        return iter(())

    def temporaries(self, name: str = "") -> Iterator[tuple[Self, int]]:
        """Temporary files of processes of this host in this folder, each with the process id.

        Args:
            name: final name; empty for all.
        """
        return iter(())

    def require_no_links(self, depth: int) -> None:
        """Raise UnsafeFileError if this folder, or anything in its folders down to a depth, is a link."""
        return

    # --- writing ------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        """Free space for new files below this folder; None if not limited."""
        return None

    def make_folder(self) -> None:
        """Create this folder and those above it; a bucket needs none."""
        return

    def write(self, data: bytes) -> None:
        """Write the file durably, whatever it was before."""

    def write_once(self, data: bytes) -> None:
        """Write a file durably that never changes.

        In a bucket, raises FileExistsError if it exists with other content.
        """

    def write_alone(self, data: bytes | memoryview, root: Self) -> None:
        """Write the only file of a folder, which replaces the folder. On a disk, folders are not flushed.

        Args:
            root: a folder; no folder between it and the file may be a link.
        """

    def flush(self) -> None:
        """Flush this folder or file to the disk."""
        return

    def remove(self) -> None:
        """Delete a file, or on a disk a folder with its content, if it exists. Links are not followed."""


# --- on a disk --------------------------------------------------------------------------------------------------------


class LocalPlace(PosixPath, Place):
    """A place on a disk: a path that has the methods of a `Place` as well."""

    __slots__ = ()

    requests = 1
    near = 16 << 10

    def inside(self, name: str) -> Self:
        return type(self)(doors.inside(self, name))

    def is_special(self) -> bool:
        return self.exists() and not doors.is_regular(self)

    def size(self) -> int:
        return self.stat().st_size

    def mark(self) -> object:
        status = self.stat()
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns

    def read_version(self) -> tuple[bytes, Version]:
        return self.read_bytes(), Version(None, None)

    def _open_below(self, root: Self) -> BufferedReader:
        return doors.open_inside(root, self.relative_to(root).as_posix())

    def read_below(self, root: Self) -> bytes:
        with self._open_below(root) as file:
            return file.read()

    def digest_below(self, root: Self) -> tuple[str, int]:
        with self._open_below(root) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()

    @contextmanager
    def ranges_below(self, root: Self) -> Iterator[Fill]:
        with self._open_below(root) as file:
            yield partial(_fill, file.fileno())

    def zarr_store(self) -> str:
        return str(self)

    def files(self, suffix: str) -> list[Self]:
        try:
            names = os.listdir(self)
        except FileNotFoundError:
            return []
        return [self / name for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]

    def all_files(self) -> Iterator[Self]:
        for folder, _, names in os.walk(self):
            for name in sorted(names):
                yield type(self)(folder, name)

    def sizes(self) -> Callable[[Self], int | None]:
        return _size_on_disk

    def leftovers(self, pattern: str) -> Iterator[Self]:
        return self.glob(pattern)

    def temporaries(self, name: str = "") -> Iterator[tuple[Self, int]]:
        return ((type(self)(path), pid) for path, pid in doors.temporaries(self, name))

    def require_no_links(self, depth: int) -> None:
        doors.require_no_links(self.resolve(), depth)

    def free_bytes(self) -> int:
        disk = os.statvfs(self)
        return disk.f_bavail * disk.f_frsize

    def make_folder(self) -> None:
        if not self.is_dir():  # cheaper than mkdir, for every record
            self.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes) -> None:
        doors.write(self, data, durable=True)
        doors.flush(self.parent)

    write_once = write

    def write_alone(self, data: bytes | memoryview, root: Self) -> None:
        doors.remove(self.parent, root=root)
        self.parent.mkdir(parents=True)
        doors.write(self, data, durable=True)

    def flush(self) -> None:
        doors.flush(self)

    def remove(self) -> None:
        doors.remove(self)


def _size_on_disk(path: Path) -> int | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _fill(file: int, out: memoryview, offset: int) -> int:
    done = 0
    while done < len(out) and (count := os.preadv(file, [out[done:]], offset + done)):
        done += count
    return done


# --- in a bucket ------------------------------------------------------------------------------------------------------

# Errors of requests never contain secrets. A response may repeat the rejected key and signature, and a URL may carry a
# token: messages keep the status and error code of a response, or the first line without URLs and credentials.

_STATUS = re.compile(r"status code: (\d{3}(?: [A-Z][A-Za-z]*)*)")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>|\"(?:code|reason)\": ?\"([A-Za-z]{1,60})\"")
_ADDRESS = re.compile(r"\S*://\S*")
_CREDENTIALS = re.compile(r"^(AWS|AZURE|GOOGLE|GCS|GCP|GCLOUD)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL)", re.ASCII)
_FRAME = re.compile(r"^Generic \w+ error: |Error performing [A-Z]+ \S+ in [^\s,]+(?:, after .*?)? +- ")
_NO_BUCKET = ("<Code>NoSuchBucket</Code>", "<Code>ContainerNotFound</Code>")
_SHORT = 6  # characters; shorter values are no secrets and occur in ordinary text


class ObjectError(SubstyleError):
    """A request to a bucket failed: no connection, a timeout, or an error response.

    Not an OSError: an OSError describes the state of a file, which a failed request leaves unknown.

    Attributes:
        status: HTTP status of the response; None without one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def translated_errors(place: object) -> Iterator[None]:
    """Convert errors of obstore to errors that name the location and the reason.

    Raises:
        FileNotFoundError: no such object.
        FileExistsError: the object to create exists.
        OSError: with ESTALE, the object was replaced.
        ObjectError: any other failure.
    """
    from obstore import exceptions

    where = str(place)
    # "from None": a traceback would show obstore's own message, which may hold secrets
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # already converted; obstore sets no errno
            raise
        if any(code in str(error) for code in _NO_BUCKET):
            raise ObjectError(f"{where}: no such bucket") from None
        raise FileNotFoundError(errno.ENOENT, "no such object", where) from None
    except exceptions.AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, "object exists", where) from None
    except exceptions.PreconditionError:
        raise OSError(errno.ESTALE, "has changed since it was listed", where) from None
    except exceptions.BaseError as error:
        status = _STATUS.search(str(error))
        raise ObjectError(f"{where}: {reason(str(error))}", int(status[1][:3]) if status else None) from None


def reason(text: str) -> str:
    """The part of an obstore error message that holds no secrets."""
    status, codes = _STATUS.search(text), _CODE.search(text)
    if status is not None:
        code = codes and (codes[1] or codes[2])
        return f"server returned {status[1]}" + (f" ({code})" if code else "")
    line = _FRAME.sub("", _ADDRESS.sub("…", text.split("\n", 1)[0]))
    return without_credentials(" ".join(line.split())[:200]) or "request failed"


def without_credentials(text: str) -> str:
    """Redact the values of credential environment variables."""
    for name, value in os.environ.items():
        if _CREDENTIALS.match(name) and len(value) >= _SHORT:
            for form in {value, quote(value, safe=""), unquote(value)}:
                text = text.replace(form, "…")
    return text


# Buckets (S3, Google Cloud, Azure) are accessed through obstore. Writes are atomic. Credentials come from the
# environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``), never from a URL.

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    Bucket: TypeAlias = S3Store | GCSStore | AzureStore

EXTRA = "object-stores"
# exponential backoff, for lost connections and for responses of a busy or failing server
RETRIES: dict[str, Any] = {"max_retries": 10, "retry_timeout": timedelta(seconds=180)}
TIMEOUT = "120 seconds"  # of one request: enough for a chunk of 25 MB at 2 Mbit/s
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")


@dataclass(frozen=True, slots=True)
class ObjectPlace(Place):
    """An object in a bucket, or all objects with the prefix ``<key>/``.

    Methods that send a request raise FileNotFoundError for a missing object and ObjectError for a failed request. Both
    name the URL and the reason.
    """

    requests: ClassVar = REQUESTS
    near: ClassVar = 1 << 20  # another request takes tens of milliseconds

    root: str
    key: str
    _bucket: Bucket = field(repr=False, compare=False)

    @classmethod
    def open(cls, scheme: str, bucket: str, key: str) -> ObjectPlace:
        """Open a location in a bucket. Raises SubstyleError if obstore is not installed or not configured."""
        return cls(f"{scheme}://{bucket}", key, _open(scheme, bucket))

    def __reduce__(self) -> tuple[Callable[..., ObjectPlace], tuple[str, ...]]:
        # another process opens it with its own environment
        scheme, _, bucket = self.root.partition("://")
        return ObjectPlace.open, (scheme, bucket, self.key)

    # --- names --------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    def __truediv__(self, name: str) -> ObjectPlace:
        return replace(self, key=f"{self.key}/{name}" if self.key else name)

    def __lt__(self, other: ObjectPlace) -> bool:
        return (self.root, self.key) < (other.root, other.key)

    @property
    def parent(self) -> ObjectPlace:
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def relative_to(self, other: ObjectPlace) -> PurePosixPath:
        if self.root != other.root:
            raise ValueError(f"{self} is not in {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    def inside(self, name: str) -> ObjectPlace:
        return self / doors.relative(name)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_version(self) -> tuple[bytes, Version]:
        import obstore

        with self.translated_errors():
            found = obstore.get(self._bucket, self.key)
            return bytes(found.bytes()), _version(found.meta)

    def read_range(self, start: int, size: int, e_tag: str | None = None) -> memoryview:
        """Read up to ``size`` bytes from ``start``; at least one must exist.

        Args:
            e_tag: expected ETag; a mismatch raises OSError with ESTALE.
        """
        import obstore

        with self.translated_errors():
            options: Any = {"range": (start, start + size)} | ({"if_match": e_tag} if e_tag else {})
            return memoryview(obstore.get(self._bucket, self.key, options=options).bytes())

    def head(self) -> Version:
        """The object's version."""
        import obstore

        with self.translated_errors():
            return _version(obstore.head(self._bucket, self.key))

    def size(self) -> int:
        return self.head().size

    def is_file(self) -> bool:
        try:
            self.head()
        except FileNotFoundError:
            return False
        return True

    exists = is_file

    def read_below(self, root: ObjectPlace) -> bytes:
        return self.read_bytes()

    def digest_below(self, root: ObjectPlace) -> tuple[str, int]:
        data = self.read_bytes()
        return hashlib.sha256(data).hexdigest(), len(data)

    def ranges_below(self, root: ObjectPlace) -> AbstractContextManager[Fill]:
        def fill(out: memoryview, offset: int) -> int:
            found = self.read_range(offset, len(out))
            out[: len(found)] = found
            return len(found)

        return nullcontext(fill)

    def zarr_store(self) -> Any:  # noqa: ANN401 (zarr's StoreLike)
        from zarr.storage import ObjectStore

        scheme, _, name = self.root.partition("://")
        return ObjectStore(_open(scheme, name, self.key), read_only=True)  # its keys are relative to this place

    def translated_errors(self) -> AbstractContextManager[None]:
        return translated_errors(self)

    # --- listing ------------------------------------------------------------------------------------------------------

    def files(self, suffix: str) -> list[ObjectPlace]:
        return sorted(self.glob(f"*{suffix}"))

    def all_files(self) -> Iterator[ObjectPlace]:
        return (found for found, _ in self.walk())

    def sizes(self) -> Callable[[ObjectPlace], int | None]:
        return dict(self.walk()).get

    def walk(self) -> Iterator[tuple[ObjectPlace, int]]:
        """All objects below this prefix, with their sizes in bytes."""
        import obstore

        with self.translated_errors():
            for some in obstore.list(self._bucket, self.key or None):
                for found in some:
                    yield replace(self, key=found["path"]), int(found["size"])

    def glob(self, pattern: str) -> Iterator[ObjectPlace]:
        first, _, rest = pattern.partition("/")
        magic = any(mark in first for mark in "*?[")
        if not rest:
            if magic:
                yield from (self / name for name in self._names("objects") if fnmatch.fnmatchcase(name, first))
            elif (self / first).is_file():
                yield self / first
            return
        folders = [name for name in self._names("folders") if fnmatch.fnmatchcase(name, first)] if magic else [first]
        for found in each(lambda name: list((self / name).glob(rest)), folders):
            yield from found

    def _names(self, kind: str) -> list[str]:
        import obstore

        with self.translated_errors():
            listed = obstore.list_with_delimiter(self._bucket, self.key or None)
        paths = listed["common_prefixes"] if kind == "folders" else [found["path"] for found in listed["objects"]]
        return sorted(path.rpartition("/")[2] for path in paths)

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        import obstore

        with self.translated_errors():
            obstore.put(self._bucket, self.key, data, mode="overwrite", use_multipart=False)

    def write_once(self, data: bytes) -> None:
        try:
            self.create(data)
        except FileExistsError:
            # a request retried after a lost response finds its own object
            if self.read_bytes() != data:
                raise

    def write_alone(self, data: bytes | memoryview, root: ObjectPlace) -> None:
        self.write(data)

    def create(self, data: bytes) -> Version:
        """Create the object. Raises FileExistsError if it exists, even with the same content."""
        import obstore

        with self.translated_errors():
            made = obstore.put(self._bucket, self.key, data, mode="create", use_multipart=False)
        return Version(made["e_tag"], made["version"], len(data))

    def exchange(self, data: bytes, before: Version) -> Version:
        """Replace the object if its version is still ``before``; else raises FileExistsError."""
        import obstore

        mode: Any = {k: v for k in ("e_tag", "version") if (v := getattr(before, k)) is not None}
        try:
            with self.translated_errors():
                made = obstore.put(self._bucket, self.key, data, mode=mode, use_multipart=False)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            raise FileExistsError(errno.EEXIST, "changed by another writer", str(self)) from None
        return Version(made["e_tag"], made["version"], len(data))

    def remove(self) -> None:
        import obstore

        with suppress(FileNotFoundError), self.translated_errors():  # not every server reports a missing object
            obstore.delete(self._bucket, self.key)


def each(work: Callable[[T], R], items: Iterable[T], threads: int = REQUESTS) -> list[R]:
    """Map a function over items, in order, with up to so many threads."""
    things = list(items)
    threads = min(threads, len(things))
    if threads < 2:
        return [work(thing) for thing in things]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, things))


def _open(scheme: str, bucket: str, prefix: str | None = None) -> Bucket:
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise SubstyleError(
            f"{scheme}://{bucket}: buckets require the package obstore, which is not installed: "
            f"pip install 'substyle[{EXTRA}]'"
        ) from error
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    # an explicit http:// endpoint, such as a test server or a cluster's own, is intended
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    options: Any = {"allow_http": plain, "timeout": TIMEOUT}
    with translated_errors(f"{scheme}://{bucket}"):
        opened: Bucket = kinds[scheme](bucket, prefix=prefix or None, client_options=options, retry_config=RETRIES)
        return opened


def _version(meta: Any) -> Version:  # noqa: ANN401 (obstore's ObjectMeta, which cannot be imported at run time)
    return Version(meta["e_tag"], meta["version"], int(meta["size"]), meta["last_modified"])


# --- how users name places --------------------------------------------------------------------------------------------

BUCKETS = ("s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ALMOST = re.compile(rf"({'|'.join(BUCKETS)}|file):", re.IGNORECASE)  # mistyped: s3:/bucket, s3:bucket
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
ALLOWED = "a local path, s3://bucket/name, gs://bucket/name, az://container/name, file:///path"


def is_remote(text: object) -> bool:
    """Whether a text has a URL scheme other than ``file``. `place` validates it."""
    match = _SCHEME.match(str(text))
    return match is not None and match[1].lower() != "file"


def is_address(text: object) -> bool:
    """Whether a text is an address, or almost one, such as ``s3:/bucket``."""
    return bool(_SCHEME.match(str(text)) or _ALMOST.match(str(text)))


def place(text: str | Path | Place, field: str = "place") -> Place:
    """Return the place of a path or URL.

    Args:
        text: a local path, or a ``file``, ``s3``, ``gs`` or ``az`` URL; a place is returned as it is.
        field: field name for error messages.

    Raises:
        ConfigError: unknown scheme, no bucket, or a user, password or query, which are left out of the message: they
            may be secret.
        SubstyleError: a bucket, and the extra ``object-stores`` is not installed.
    """
    if isinstance(text, Path):
        return text if isinstance(text, LocalPlace) else LocalPlace(text)
    if not isinstance(text, str):
        return text
    if is_remote(text):
        return object_place(text, field)
    if _SCHEME.match(text):
        return LocalPlace(_file_path(text, field))
    if almost := _ALMOST.match(text):  # would become a folder
        raise ConfigError(field, f"{almost[0]}…", ALLOWED)
    return LocalPlace(text)


def object_place(text: str, field: str) -> ObjectPlace:
    """Return the place of a URL in a bucket. Raises ConfigError and SubstyleError, see `place`."""
    scheme, _, rest = text.partition("://")
    kind = scheme.lower()
    bucket, _, key = rest.partition("/")
    if kind not in BUCKETS:
        raise ConfigError(field, f"{scheme}://…", ALLOWED)
    # what precedes @ or follows ? may be a secret
    if "@" in bucket or ":" in bucket:
        raise ConfigError(field, f"{kind}://…@…", f"{ALLOWED}; set credentials in the environment")
    if "?" in text or "#" in text:
        raise ConfigError(field, f"{kind}://{bucket.split('?')[0].split('#')[0]}/…?…", f"{ALLOWED}, without a query")
    if _BUCKET.fullmatch(bucket) is None:
        raise ConfigError(field, text, ALLOWED)
    key = key.rstrip("/")
    parts = key.split("/") if key else []
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ConfigError(field, text, f"{ALLOWED}, without empty, . or .. parts")
    return ObjectPlace.open(kind, bucket, key)


def photographs(text: str | Path, field: str = "images") -> str | Path:
    """Parse the location of photographs: a local path, or a validated URL as text. Either may be a pattern.

    Raises:
        ConfigError: see `place`.
    """
    location = place(str(text), field)
    return Path(location) if isinstance(location, LocalPlace) else str(text)


def below(folder: Path, text: str | Path, field: str) -> str | Path:
    """Like `photographs`, with local paths relative to ``folder``."""
    location = photographs(text, field)
    return folder / location if isinstance(location, Path) else location


def at_once(work: Callable[[Place], T], places: Iterable[Place]) -> list[T]:
    """Map a function over places of one kind: concurrently in a bucket, else sequentially."""
    all_places = list(places)
    return each(work, all_places, max((one.requests for one in all_places), default=1))


def _file_path(text: str, field: str) -> str:
    address = urlsplit(text)
    if address.netloc not in ("", "localhost") or address.query or address.fragment or not address.path:
        raise ConfigError(field, "file://…", "file:///path, without a host, a user or a query")
    return unquote(address.path)
