"""`Place`: a file or folder, wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import ClassVar, Protocol, Self, TypeAlias, TypeVar

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


@dataclass(frozen=True)
class OpenFile:
    """An open file: its size and last bytes, and a function that reads ranges of it."""

    size: int
    tail: bytes
    fill: Fill


class Place(Protocol):
    """A file, or a folder with all below it, on a disk or in a bucket; see `place`.

    A file is written atomically: readers see its old content or its new content. A missing one raises
    FileNotFoundError, any other failure OSError, or ObjectError for a request to a bucket. Methods with a body do what
    holds for a bucket, which has neither folders nor links.

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

    def is_file(self) -> bool:
        """Whether there is a file with exactly this name."""

    def mark(self) -> object:
        """What changes if the file is replaced, where that is known without reading it, else None."""
        return None

    def read_bytes(self) -> bytes:
        """The whole file."""

    def reading(self, tail: int) -> AbstractContextManager[OpenFile]:
        """Open a file for reading ranges, and read up to so many bytes of its end, at least one.

        Raises UnsafeFileError if it is a link, and OSError while reading if it has been replaced in a bucket.
        """

    # --- listing ------------------------------------------------------------------------------------------------------

    def files(self, suffix: str) -> list[Self]:
        """Files of this folder with a suffix, sorted by name; empty if the folder does not exist."""

    def sizes(self) -> dict[Self, int]:
        """All files below this folder, and their sizes in bytes."""

    def glob(self, pattern: str) -> Iterator[Self]:
        """Files below this folder that match a pattern of ``* ? []``, part by part; on a disk also folders."""

    def require_no_links(self, depth: int) -> None:
        """Raise UnsafeFileError if this folder, or anything in its folders down to a depth, is a link."""
        return

    # --- writing ------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        """Free space for new files below this folder; None if not limited."""
        return None

    def write(self, data: bytes | Iterable[bytes | memoryview]) -> None:
        """Write the file durably, whole or in parts, whatever it was before, and create the folders above it."""

    def write_once(self, data: bytes) -> None:
        """Write a file durably that never changes.

        In a bucket, raises FileExistsError if it exists with other content.
        """

    def flush(self) -> None:
        """Flush this folder or file to the disk."""
        return

    def remove(self) -> None:
        """Delete a file if it exists. Links are not followed."""


def each(work: Callable[[T], R], items: Iterable[T], threads: int = REQUESTS) -> list[R]:
    """Map a function over items, in order, with up to so many threads."""
    things = list(items)
    threads = min(threads, len(things))
    if threads < 2:
        return [work(thing) for thing in things]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, things))


def at_once(work: Callable[[Place], T], places: Iterable[Place]) -> list[T]:
    """Map a function over places of one kind: concurrently in a bucket, else sequentially."""
    all_places = list(places)
    return each(work, all_places, max((one.requests for one in all_places), default=1))
