"""Storage locations: a `pathlib.Path`, or an `ObjectPlace` in a bucket with the same methods."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

from substyle.kernels.errors import ConfigError, SubstyleError

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
REQUESTS = 16  # concurrent requests
# exponential backoff, for lost connections and for responses of a busy or failing server
RETRIES: dict[str, Any] = {"max_retries": 10, "retry_timeout": timedelta(seconds=180)}
TIMEOUT = "120 seconds"  # of one request: enough for a chunk of 25 MB at 2 Mbit/s
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Version:
    """Version of an object, for conditional reads and writes: ``size`` in bytes, ``changed`` by the server's clock."""

    e_tag: str | None
    version: str | None
    size: int = 0
    changed: datetime | None = None


@dataclass(frozen=True, order=True, slots=True)
class ObjectPlace:
    """An object in a bucket, or all objects with the prefix ``<key>/``; see `place`.

    Methods that send a request raise FileNotFoundError for a missing object and ObjectError for a failed request. Both
    name the URL and the reason.
    """

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

    @property
    def parent(self) -> ObjectPlace:
        """The enclosing prefix."""
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name from its last dot on."""
        return PurePosixPath(self.name).suffix

    def relative_to(self, other: ObjectPlace) -> PurePosixPath:
        """The key relative to another location. Raises ValueError if it is not inside it."""
        if self.root != other.root:
            raise ValueError(f"{self} is not in {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.read_version()[0]

    def read_version(self) -> tuple[bytes, Version]:
        """The whole object and its version."""
        import obstore

        with translated_errors(self):
            found = obstore.get(self._bucket, self.key)
            return bytes(found.bytes()), _version(found.meta)

    def read_range(self, start: int, size: int, e_tag: str | None = None) -> memoryview:
        """Read up to ``size`` bytes from ``start``; at least one must exist.

        Args:
            e_tag: expected ETag; a mismatch raises OSError with ESTALE.
        """
        import obstore

        with translated_errors(self):
            options: Any = {"range": (start, start + size)} | ({"if_match": e_tag} if e_tag else {})
            return memoryview(obstore.get(self._bucket, self.key, options=options).bytes())

    def head(self) -> Version:
        """The object's version."""
        import obstore

        with translated_errors(self):
            return _version(obstore.head(self._bucket, self.key))

    def is_file(self) -> bool:
        """Whether an object with exactly this key exists."""
        try:
            self.head()
        except FileNotFoundError:
            return False
        return True

    exists = is_file

    # --- listing ------------------------------------------------------------------------------------------------------

    def walk(self) -> Iterator[tuple[ObjectPlace, int]]:
        """All objects below this prefix, with their sizes in bytes."""
        import obstore

        with translated_errors(self):
            for some in obstore.list(self._bucket, self.key or None):
                for found in some:
                    yield replace(self, key=found["path"]), int(found["size"])

    def glob(self, pattern: str) -> Iterator[ObjectPlace]:
        """Objects below this prefix that match a pattern of ``* ? []``, part by part; ``**`` is not supported."""
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

        with translated_errors(self):
            listed = obstore.list_with_delimiter(self._bucket, self.key or None)
        paths = listed["common_prefixes"] if kind == "folders" else [found["path"] for found in listed["objects"]]
        return sorted(path.rpartition("/")[2] for path in paths)

    # --- writing ------------------------------------------------------------------------------------------------------

    def put(self, data: bytes | memoryview) -> None:
        """Write the object, replacing any existing one."""
        import obstore

        with translated_errors(self):
            obstore.put(self._bucket, self.key, data, mode="overwrite", use_multipart=False)

    def create(self, data: bytes) -> Version:
        """Create the object. Raises FileExistsError if it exists, even with the same content."""
        import obstore

        with translated_errors(self):
            made = obstore.put(self._bucket, self.key, data, mode="create", use_multipart=False)
        return Version(made["e_tag"], made["version"], len(data))

    def exchange(self, data: bytes, before: Version) -> Version:
        """Replace the object if its version is still ``before``; else raises FileExistsError."""
        import obstore

        mode: Any = {k: v for k in ("e_tag", "version") if (v := getattr(before, k)) is not None}
        try:
            with translated_errors(self):
                made = obstore.put(self._bucket, self.key, data, mode=mode, use_multipart=False)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            raise FileExistsError(errno.EEXIST, "changed by another writer", str(self)) from None
        return Version(made["e_tag"], made["version"], len(data))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object. Not every server reports a missing one."""
        import obstore

        try:
            with translated_errors(self):
                obstore.delete(self._bucket, self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rooted(self) -> Bucket:
        """An obstore store whose keys are relative to this location."""
        scheme, _, name = self.root.partition("://")
        return _open(scheme, name, self.key)


def each(work: Callable[[T], R], items: Iterable[T]) -> Sequence[R]:
    """Map a function over items with up to 16 threads, in order."""
    things = list(items)
    if len(things) < 2:
        return [work(thing) for thing in things]
    with ThreadPoolExecutor(min(REQUESTS, len(things))) as pool:
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


Place: TypeAlias = Path | ObjectPlace

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


def place(text: str | Place, field: str = "place") -> Place:
    """Parse a path or URL.

    Args:
        text: a local path, or a ``file``, ``s3``, ``gs`` or ``az`` URL.
        field: field name for error messages.

    Raises:
        ConfigError: unknown scheme, no bucket, or a user, password or query, which are left out of the message: they
            may be secret.
        SubstyleError: a bucket, and the extra ``object-stores`` is not installed.
    """
    if not isinstance(text, str):
        return text
    scheme = _SCHEME.match(text)
    if scheme is None:
        if almost := _ALMOST.match(text):  # would become a folder
            raise ConfigError(field, f"{almost[0]}…", ALLOWED)
        return Path(text)
    kind = scheme[1].lower()
    if kind == "file":
        return Path(_file_path(text, field))
    bucket, _, key = text[scheme.end() :].partition("/")
    if kind not in BUCKETS:
        raise ConfigError(field, f"{scheme[1]}://…", ALLOWED)
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
    if not is_remote(text):
        local = place(str(text), field)
        assert isinstance(local, Path)
        return local
    place(str(text), field)
    return str(text)


def below(folder: Path, text: str | Path, field: str) -> str | Path:
    """Like `photographs`, with local paths relative to ``folder``."""
    location = photographs(text, field)
    return folder / location if isinstance(location, Path) else location


def matching(folder: Place, pattern: str) -> list[Place]:
    """Entries of a folder that match a pattern, sorted."""
    found: Iterable[Place] = folder.glob(pattern)
    return sorted(found, key=str)


def at_once(work: Callable[[Place], T], places: Iterable[Place]) -> list[T]:
    """Map a function over locations: concurrently if any is in a bucket, else sequentially."""
    all_places = list(places)
    if any(isinstance(one, ObjectPlace) for one in all_places):
        return list(each(work, all_places))
    return [work(one) for one in all_places]


def _file_path(text: str, field: str) -> str:
    address = urlsplit(text)
    if address.netloc not in ("", "localhost") or address.query or address.fragment or not address.path:
        raise ConfigError(field, "file://…", "file:///path, without a host, a user or a query")
    return unquote(address.path)
