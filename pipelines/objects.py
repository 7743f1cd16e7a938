"""Places in a bucket: objects that are written whole or not at all, through `obstore` (S3, Google Cloud, Azure).

Credentials come from the environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``), which obstore reads, and never from an
address. What it says of a failure is cut down to what can hold no secret (`object_errors`).
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from substyle.kernels.errors import SubstyleError
from substyle.pipelines.object_errors import told

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
