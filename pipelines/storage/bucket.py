"""Places in a bucket."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from urllib.parse import quote, unquote

from substyle import files as doors
from substyle.errors import SubstyleError
from substyle.pipelines.storage.interface import REQUESTS, OpenFile, Place, Version, each

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
TIMEOUT = "600 seconds"  # of one request: enough for a shard of 128 MB at 2 Mbit/s
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

    def read_bytes(self) -> bytes:
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
        try:
            self.head()
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def reading(self, tail: int) -> Iterator[OpenFile]:
        version = self.head()  # Azure has no ranges from the end
        first = max(version.size - tail, 0)
        end = self.read_range(first, version.size - first, version.e_tag) if version.size else b""

        def fill(out: memoryview, offset: int) -> int:
            if not out or offset >= version.size:
                return 0
            data = self.read_range(offset, len(out), version.e_tag)
            out[: len(data)] = data
            return len(data)

        yield OpenFile(version.size, bytes(end), fill)

    # --- listing ------------------------------------------------------------------------------------------------------

    def files(self, suffix: str) -> list[ObjectPlace]:
        return sorted(self.glob(f"*{suffix}"))

    def sizes(self) -> dict[ObjectPlace, int]:
        return dict(self.walk())

    def walk(self) -> Iterator[tuple[ObjectPlace, int]]:
        """All objects below this prefix, with their sizes in bytes."""
        import obstore

        with translated_errors(self):
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

        with translated_errors(self):
            listed = obstore.list_with_delimiter(self._bucket, self.key or None)
        paths = listed["common_prefixes"] if kind == "folders" else [found["path"] for found in listed["objects"]]
        return sorted(path.rpartition("/")[2] for path in paths)

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | Iterable[bytes | memoryview]) -> None:
        import obstore

        whole = data if isinstance(data, bytes) else b"".join(data)

        with translated_errors(self):
            obstore.put(self._bucket, self.key, whole, mode="overwrite", use_multipart=False)

    def write_once(self, data: bytes) -> None:
        try:
            self.create(data)
        except FileExistsError:
            # a request retried after a lost response finds its own object
            if self.read_bytes() != data:
                raise

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

    def remove(self) -> None:
        import obstore

        with suppress(FileNotFoundError), translated_errors(self):  # not every server reports a missing object
            obstore.delete(self._bucket, self.key)


def _open(scheme: str, bucket: str) -> Bucket:
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
        opened: Bucket = kinds[scheme](bucket, client_options=options, retry_config=RETRIES)
        return opened


def _version(meta: Any) -> Version:  # noqa: ANN401 (obstore's ObjectMeta, which cannot be imported at run time)
    return Version(meta["e_tag"], meta["version"], int(meta["size"]), meta["last_modified"])
