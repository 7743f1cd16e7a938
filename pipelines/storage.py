"""Where stores and shards lie: a local path, or a place in a bucket. Both answer to the same few names.

A local place is a `pathlib.Path` and stays one, so that nothing stands between it and the disk. A place in a bucket is
an `ObjectPlace`, which has the methods of a path that are used here, under their names.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

from substyle.kernels.errors import ConfigError, SubstyleError

# What is told of a failed request: enough to know what to do, and nothing that can hold a secret.
#
# A server's answer may repeat the key and the signature that it refuses, and an address may carry a token. So of an
# answer only its status and its code are told, of all else the first line without addresses, and what the environment
# holds as credentials never.

_STATUS = re.compile(r"status code: (\d{3}(?: [A-Z][A-Za-z]*)*)")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>|\"(?:code|reason)\": ?\"([A-Za-z]{1,60})\"")
_ADDRESS = re.compile(r"\S*://\S*")
_CREDENTIALS = re.compile(r"^(AWS|AZURE|GOOGLE|GCS|GCP|GCLOUD)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL)", re.ASCII)
_FRAME = re.compile(r"^Generic \w+ error: |Error performing [A-Z]+ \S+ in [^\s,]+(?:, after .*?)? +- ")
_NO_BUCKET = ("<Code>NoSuchBucket</Code>", "<Code>ContainerNotFound</Code>")
_SHORT = 6  # characters: less is no secret but a part of every text


class ObjectError(SubstyleError):
    """A bucket did not do what it was asked for: no connection, no answer in time, or an answer that refuses.

    It is no OSError: those are taken for what a file is or is not, and a file that could not be asked for is neither.
    """


@contextmanager
def told(place: object) -> Iterator[None]:
    """Turn what obstore raises into errors that name a place and the reason.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: what is to be created is there.
        OSError: with ESTALE, another object is there than the one that was meant.
        ObjectError: all else.
    """
    from obstore import exceptions

    where = str(place)
    # none is raised from the one before: what obstore says of itself may be shown with a traceback
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # told already; obstore's has no number
            raise
        if any(code in str(error) for code in _NO_BUCKET):
            raise ObjectError(f"{where}: there is no such bucket") from None
        raise FileNotFoundError(errno.ENOENT, "is not there", where) from None
    except exceptions.AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, "is there already", where) from None
    except exceptions.PreconditionError:
        raise OSError(errno.ESTALE, "has changed since it was listed", where) from None
    except exceptions.BaseError as error:
        raise ObjectError(f"{where}: {reason(str(error))}") from None


def reason(text: str) -> str:
    """What may be told of obstore's account of a failure."""
    status, codes = _STATUS.search(text), _CODE.search(text)
    if status is not None:
        code = codes and (codes[1] or codes[2])
        return f"the server answers {status[1]}" + (f" ({code})" if code else "")
    line = _FRAME.sub("", _ADDRESS.sub("…", text.split("\n", 1)[0]))
    return without_credentials(" ".join(line.split())[:200]) or "the request failed"


def without_credentials(text: str) -> str:
    """A text without the values of the environment's credentials."""
    for name, value in os.environ.items():
        if _CREDENTIALS.match(name) and len(value) >= _SHORT:
            for form in {value, quote(value, safe=""), unquote(value)}:
                text = text.replace(form, "…")
    return text


# Places in a bucket: objects that are written whole or not at all, through `obstore` (S3, Google Cloud, Azure).
#
# Credentials come from the environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``), which obstore reads, and never from an
# address. What it says of a failure is cut down to what can hold no secret (`object_errors`).

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    Bucket: TypeAlias = S3Store | GCSStore | AzureStore

EXTRA = "object-stores"
REQUESTS = 16  # in flight at once for one list of things to get or put
# what is tried again, after waits that double: lost connections and answers that say the server is busy or broken
RETRIES: dict[str, Any] = {"max_retries": 10, "retry_timeout": timedelta(seconds=180)}
TIMEOUT = "120 seconds"  # of one request: a chunk of 25 MB passes at 2 Mbit/s
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Version:
    """Which content an object has: what a conditional write compares. ``size`` in bytes, ``changed`` by the server."""

    e_tag: str | None
    version: str | None
    size: int = 0
    changed: datetime | None = None


class ObjectPlace:
    """An object of a bucket, or all objects whose names begin with ``<key>/``; see `places.place`.

    Every method that asks the server raises FileNotFoundError where nothing is there and ObjectError where the server
    does not do what it is asked for; both name the address and the reason.
    """

    __slots__ = ("_bucket", "key", "root")

    def __init__(self, root: str, key: str, bucket: Bucket) -> None:
        self.root, self.key, self._bucket = root, key, bucket

    @classmethod
    def open(cls, scheme: str, bucket: str, key: str) -> ObjectPlace:
        """A place in a bucket of a service. Raises SubstyleError without the extra or without what it needs to know."""
        return cls(f"{scheme}://{bucket}", key, _open(scheme, bucket))

    def __reduce__(self) -> tuple[Callable[..., ObjectPlace], tuple[str, ...]]:
        # another process opens it with what its own environment says
        scheme, _, bucket = self.root.partition("://")
        return ObjectPlace.open, (scheme, bucket, self.key)

    # --- names --------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    def __repr__(self) -> str:
        return f"ObjectPlace({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPlace) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: ObjectPlace) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> ObjectPlace:
        return ObjectPlace(self.root, f"{self.key}/{name}" if self.key else name, self._bucket)

    @property
    def parent(self) -> ObjectPlace:
        """What it lies in."""
        return ObjectPlace(self.root, self.key.rpartition("/")[0], self._bucket)

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of its name from the last dot on."""
        return PurePosixPath(self.name).suffix

    def relative_to(self, other: ObjectPlace) -> PurePosixPath:
        """The parts of its key that come after another's. Raises ValueError where it does not lie there."""
        if self.root != other.root:
            raise ValueError(f"{self} does not lie in {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.read_version()[0]

    def read_version(self) -> tuple[bytes, Version]:
        """The whole object, and which one it was."""
        import obstore

        with told(self):
            found = obstore.get(self._bucket, self.key)
            return bytes(found.bytes()), _version(found.meta)

    def read_range(self, start: int, size: int, e_tag: str | None = None) -> memoryview:
        """At most ``size`` bytes from ``start`` on, as many as there are; at least one must be there.

        Args:
            e_tag: of the object that is meant; an OSError with ESTALE where it is another one by now.
        """
        import obstore

        with told(self):
            options: Any = {"range": (start, start + size)} | ({"if_match": e_tag} if e_tag else {})
            return memoryview(obstore.get(self._bucket, self.key, options=options).bytes())

    def head(self) -> Version:
        """Which object is there."""
        import obstore

        with told(self):
            return _version(obstore.head(self._bucket, self.key))

    def is_file(self) -> bool:
        """Whether an object of that very name is there."""
        try:
            self.head()
        except FileNotFoundError:
            return False
        return True

    exists = is_file

    # --- listing ------------------------------------------------------------------------------------------------------

    def walk(self) -> Iterator[tuple[ObjectPlace, int]]:
        """All objects below it, with their sizes in bytes."""
        import obstore

        with told(self):
            for some in obstore.list(self._bucket, self.key or None):
                for found in some:
                    yield ObjectPlace(self.root, found["path"], self._bucket), int(found["size"])

    def glob(self, pattern: str) -> Iterator[ObjectPlace]:
        """Objects below it whose names fit, part by part, those of a pattern with ``* ? []``; there is no ``**``."""
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

        with told(self):
            listed = obstore.list_with_delimiter(self._bucket, self.key or None)
        paths = listed["common_prefixes"] if kind == "folders" else [found["path"] for found in listed["objects"]]
        return sorted(path.rpartition("/")[2] for path in paths)

    # --- writing ------------------------------------------------------------------------------------------------------

    def put(self, data: bytes | memoryview) -> None:
        """Write it, whatever was there."""
        import obstore

        with told(self):
            obstore.put(self._bucket, self.key, data, mode="overwrite", use_multipart=False)

    def create(self, data: bytes) -> Version:
        """Write it if nothing is there. Raises FileExistsError where something is, even if it is the same."""
        import obstore

        with told(self):
            made = obstore.put(self._bucket, self.key, data, mode="create", use_multipart=False)
        return Version(made["e_tag"], made["version"], len(data))

    def exchange(self, data: bytes, before: Version) -> Version:
        """Write it if the object there is still the one that was met; else raises FileExistsError."""
        import obstore

        mode: Any = {k: v for k in ("e_tag", "version") if (v := getattr(before, k)) is not None}
        try:
            with told(self):
                made = obstore.put(self._bucket, self.key, data, mode=mode, use_multipart=False)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            raise FileExistsError(errno.EEXIST, "has changed meanwhile", str(self)) from None
        return Version(made["e_tag"], made["version"], len(data))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it. A server need not tell whether it was there."""
        import obstore

        try:
            with told(self):
                obstore.delete(self._bucket, self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rooted(self) -> Bucket:
        """obstore's own view of it, in which keys are relative to this place."""
        scheme, _, name = self.root.partition("://")
        return _open(scheme, name, self.key)


def each(work: Callable[[T], R], items: Iterable[T]) -> Sequence[R]:
    """Do the same for several things, at most 16 at once; in their order."""
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
            f"{scheme}://{bucket}: buckets are read through the package obstore, which is not installed: "
            f"pip install 'substyle[{EXTRA}]'"
        ) from error
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    # an endpoint that is named without TLS, as a test's or a cluster's own, is meant so
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    options: Any = {"allow_http": plain, "timeout": TIMEOUT}
    with told(f"{scheme}://{bucket}"):
        opened: Bucket = kinds[scheme](bucket, prefix=prefix or None, client_options=options, retry_config=RETRIES)
        return opened


def _version(meta: Any) -> Version:  # noqa: ANN401 (obstore's ObjectMeta, which cannot be imported at run time)
    return Version(meta["e_tag"], meta["version"], int(meta["size"]), meta["last_modified"])


Place: TypeAlias = Path | ObjectPlace

BUCKETS = ("s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
ALLOWED = "a local path, s3://bucket/name, gs://bucket/name, az://container/name or file:///path"


def is_remote(text: object) -> bool:
    """Whether a text is an address in a bucket, or begins like one; `place` says whether it is a good one."""
    match = _SCHEME.match(str(text))
    return match is not None and match[1].lower() != "file"


def place(text: str | Place, field: str = "place") -> Place:
    """The place that a text names.

    Args:
        field: what the text is the value of, for messages.

    Raises:
        ConfigError: another scheme; an address without a bucket; one that carries a user, a password or a query, of
            which the message tells nothing further: they may be secret.
        SubstyleError: an address in a bucket, and the extra ``object-stores`` is not installed.
    """
    if not isinstance(text, str):
        return text
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    kind = scheme[1].lower()
    if kind == "file":
        return Path(_file_path(text, field))
    bucket, _, key = text[scheme.end() :].partition("/")
    if kind not in BUCKETS:
        raise ConfigError(field, f"{scheme[1]}://…", ALLOWED)
    # none of these is a character of a bucket's name, and what stands before @ or behind ? may be a secret
    if "@" in bucket or ":" in bucket:
        raise ConfigError(field, f"{kind}://…@…", f"{ALLOWED}; users and passwords come from the environment alone")
    if "?" in text or "#" in text:
        raise ConfigError(field, f"{kind}://{bucket.split('?')[0].split('#')[0]}/…?…", f"{ALLOWED}, without a query")
    if _BUCKET.fullmatch(bucket) is None:
        raise ConfigError(field, text, ALLOWED)
    key = key.rstrip("/")
    parts = key.split("/") if key else []
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ConfigError(field, text, f"{ALLOWED}, without empty parts and without . and ..")
    return ObjectPlace.open(kind, bucket, key)


def photographs(text: str | Path, field: str = "images") -> str | Path:
    """A path of photographs, or their address in a bucket as it is; a pattern may be either.

    Raises:
        ConfigError: as `place` says.
    """
    if not is_remote(text):
        there = place(str(text), field)
        assert isinstance(there, Path)
        return there
    place(str(text), field)
    return str(text)


def below(folder: Path, text: str | Path, field: str) -> str | Path:
    """The same for a path that a file in some folder gives: it is relative to that folder."""
    there = photographs(text, field)
    return folder / there if isinstance(there, Path) else there


def matching(folder: Place, pattern: str) -> list[Place]:
    """What lies there under names that fit a pattern, sorted."""
    found: Iterable[Place] = folder.glob(pattern)
    return sorted(found, key=str)


def at_once(work: Callable[[Place], T], places: Iterable[Place]) -> list[T]:
    """Do the same for several places: at once for those in a bucket, where one waits for answers, else in turn."""
    all_places = list(places)
    if any(isinstance(there, ObjectPlace) for there in all_places):
        return list(each(work, all_places))
    return [work(there) for there in all_places]


def relative(inner: Place, outer: Place) -> PurePath:
    """The parts of a place that come after those of another in which it lies."""
    if isinstance(inner, ObjectPlace) and isinstance(outer, ObjectPlace):
        return inner.relative_to(outer)
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.relative_to(outer)
    raise ValueError(f"{inner} does not lie in {outer}")


def _file_path(text: str, field: str) -> str:
    address = urlsplit(text)
    if address.netloc not in ("", "localhost") or address.query or address.fragment or not address.path:
        raise ConfigError(field, "file://…", "file:///path, without a host, a user or a query")
    return unquote(address.path)
