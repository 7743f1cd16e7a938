"""Image records, sources and their configuration."""

from __future__ import annotations

import logging
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from substyle.errors import ConfigError
from substyle.pipelines.entry_points import SOURCES, Registry
from substyle.pipelines.plugins import files_digest, in_package
from substyle.pipelines.validation import LocalPath, validated

log = logging.getLogger(__name__)

MAX_TEXT = 1000  # characters of a label or key
IMAGE_BYTES = 16  # least size of an image in a file of many: of compressed pixels, or of the smallest format
_SHOWN = 20  # log lines per source
_KEPT = 1000  # skipped names kept per source
_HALVES = re.compile("[\ud800-\udfff]")


def key_text(name: str) -> str:
    """Make a file name valid UTF-8: a byte that is not (a surrogate in Python) becomes U+FFFD and its hex digits."""
    if name.isascii():
        return name
    return _HALVES.sub(lambda half: f"\ufffd{ord(half[0]) & 0xFF:02x}", name)


def label_text(value: object) -> str | None:
    """Convert a label, text or an integer, to a class name; None for empty text.

    Raises:
        ValueError: another type, or too long.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"a label of type {type(value).__name__}")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a label of more than 64 bits")
    text = str(value)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a label of {len(text)} characters")
    text = _HALVES.sub("\ufffd", text).strip()
    return sys.intern(text) if text else None  # shared by many images


def shown(name: str) -> str:
    """A name for a log line: printable and bounded in length."""
    name = key_text(name)
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= 200 else f"{name[:200]}…"


def words(error: Exception) -> str:
    """An error message on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]


class LeftOut:
    """What a source skipped, logged once: the first names, and the number of the others.

    Attributes:
        names: the first 1,000 of ``total`` skipped names.
        reasons: the first of ``count`` messages.
        skipped: number of files of other kinds by suffix; expected, so not logged.
        substyle_folders: number of skipped stores and results folders.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: list[str] = []
        self.reasons: list[str] = []
        self.count = 0
        self.total = 0
        self.skipped: Counter[str] = Counter()
        self.substyle_folders = 0

    def add(self, name: str, why: str) -> None:
        """Record a skipped name and the reason, which completes a sentence that starts with the name."""
        if len(self.names) < _KEPT:
            self.names.append(name)
        self.total += 1
        self.note(name, why)

    def skip(self, name: str) -> None:
        """Count a file of a kind that the source does not read."""
        self.skipped[os.path.splitext(name)[1].lower()] += 1

    def note(self, name: str, why: str) -> None:
        """Record a message about a name that is not skipped."""
        self.count += 1
        if self.count <= _SHOWN:
            self.reasons.append(f"{shown(name)} {why}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LeftOut:
        """An instance with these values of attributes."""
        made = cls(given["root"])
        vars(made).update(given, skipped=Counter(given["skipped"]))
        return made

    def extend(self, other: LeftOut) -> None:
        """Append what another instance collected."""
        self.names += other.names[: max(_KEPT - len(self.names), 0)]
        self.reasons += other.reasons[: max(_SHOWN - self.count, 0)]
        self.count += other.count
        self.total += other.total
        self.skipped += other.skipped
        self.substyle_folders += other.substyle_folders

    def tell(self) -> tuple[str, ...]:
        """Log the messages and return the names (at most 1,000)."""
        for reason in self.reasons:
            log.warning("%s: %s", self.root, reason)
        if self.count > len(self.reasons):
            log.warning("%s: and %d more", self.root, self.count - len(self.reasons))
        return tuple(sorted(self.names))

    def first(self) -> str:
        """The first message in parentheses, for an error message; empty if there is none."""
        return f" ({self.reasons[0]})" if self.reasons else ""


# names of splits in lower case; `labels.split_word` ignores case
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
SPLITS = ("train", "val", "test")


def unknown() -> int:
    """The mark of an image whose changes cannot be detected."""
    return 0


def no_variant(transformation: str) -> None:
    """The file of an image that no file shows in a transformation."""
    del transformation


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source.

    Attributes:
        key: the image's name, such as its path relative to the root; unique in the source and independent of its other
            images.
        label: index into the source's class names, or None.
        split: ``train``, ``val`` or ``test`` if the source defines splits, else None.
        read: returns the encoded bytes; raises OSError if they cannot be read. Thread-safe.
        group: what it has in common with others that must be in its split; None for nothing.
        mark: returns a number below 2**63 that changes when the image's file does; 0 if unknown. Does not read the
            image and never raises. Call it before `read`: a change between the two calls is then detected.
        variant: returns the record of a file that shows the image in a real transformation, by its name, or None.
    """

    key: str
    label: int | None
    split: str | None
    read: Callable[[], bytes] = field(compare=False, repr=False)
    mark: Callable[[], int] = field(default=unknown, compare=False, repr=False)
    group: str | None = None
    variant: Callable[[str], ImageRecord | None] = field(default=no_variant, compare=False, repr=False)


@dataclass(frozen=True)
class Understood:
    """How a source was interpreted; `describe` prints it on one line.

    Attributes:
        left_out: what was skipped.
        splits_from: origin of the splits, such as ``folders``; empty without splits.
        columns: chosen columns of a table by purpose, such as ``{"image": "img"}``.
        remarks: further messages.
        transformations: real transformations, in which files of the source show its images.
    """

    left_out: LeftOut
    splits_from: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    transformations: tuple[str, ...] = ()


class Source(Protocol):
    """A collection of images in a fixed order."""

    @property
    def root(self) -> str:
        """The folder, archive, file or pattern that was opened."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names indexed by label, sorted by name or number. Empty without labels."""

    @property
    def records(self) -> Sequence[ImageRecord]:
        """All images, sorted by key."""

    @property
    def options(self) -> Mapping[str, str]:
        """The fields of `SourceConfig` that reopen the source, as text; always includes the kind."""

    @property
    def understood(self) -> Understood:
        """How the source was interpreted."""


class ImageFile(Protocol):
    """An image where it is stored, as small as a path: it can be sent to another process."""

    def read(self) -> bytes:
        """See `ImageRecord`."""

    def mark(self) -> int:
        """See `ImageRecord`."""


class Records(Sequence[ImageRecord]):
    """A compact sequence of records, created on access: it scales to millions of images.

    Args:
        keys: N unique keys in any order.
        labels: N class names or None.
        splits: N of ``train``, ``val``, ``test`` or None; None if no image has one.
        file: returns the image at an index of these lists.
        order: class names in the desired order; other names follow, sorted.

    Attributes:
        class_names: the class names that occur, in Unicode's composed form (NFC).
    """

    def __init__(
        self,
        keys: Sequence[str],
        labels: Sequence[str | None],
        splits: Sequence[str | None] | None,
        file: Callable[[int], ImageFile],
        order: Iterable[str] = (),
    ) -> None:
        places = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in places]
        # file systems and archives differ in how they encode accents: names that look alike are one class
        composed = {name: unicodedata.normalize("NFC", name) for name in set(labels) if name is not None}
        rank = {unicodedata.normalize("NFC", name): i for i, name in enumerate(dict.fromkeys(order))}
        occurring = sorted(set(composed.values()))
        self.class_names = tuple(sorted(occurring, key=lambda name: rank.get(name, len(rank))))
        number = {name: i for i, name in enumerate(self.class_names)}
        index: dict[str | None, int] = {name: number[whole] for name, whole in composed.items()}
        self._label_N = np.fromiter((index.get(labels[i], -1) for i in places), np.int32, len(places))
        self._split_N: NDArray[np.int8] | None = None
        if splits is not None:
            code: dict[str | None, int] = {name: i for i, name in enumerate(SPLITS)}
            self._split_N = np.fromiter((code.get(splits[i], -1) for i in places), np.int8, len(places))
        self._place_N = np.array(places, dtype=np.int64)
        self._file = file

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label = int(self._label_N[index])
        split = -1 if self._split_N is None else int(self._split_N[index])
        file = self._file(int(self._place_N[index]))
        return ImageRecord(
            self.keys[index],
            None if label < 0 else label,
            None if split < 0 else SPLITS[split],
            file.read,
            file.mark,
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        for i in range(len(self)):
            yield self[i]

    def __eq__(self, other: object) -> bool:
        """Compare keys, labels, splits and class names, but not image bytes."""
        if not isinstance(other, Records):
            return NotImplemented
        return (
            self.keys == other.keys
            and self.class_names == other.class_names
            and np.array_equal(self._label_N, other._label_N)
            and list(self.splits()) == list(other.splits())
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def unlabelled(self) -> int:
        """Number of records without a label."""
        return int((self._label_N < 0).sum())

    def splits(self) -> Iterator[str | None]:
        """The split of every record, in order."""
        if self._split_N is None:
            yield from [None] * len(self)
        else:
            yield from (None if code < 0 else SPLITS[code] for code in self._split_N.tolist())


AUTO = "auto"


@dataclass(frozen=True)
class Kind:
    """A kind of source; see `register_source`."""

    name: str
    opener: Callable[[str, SourceConfig], Source]
    options: frozenset[str]
    endings: tuple[str, ...]
    members: tuple[str, ...]
    claims: Callable[[str, SourceConfig], bool] | None
    remote: bool

    @cached_property
    def code(self) -> str:
        """Digest of the plug-in's files, which enters the marks of images; "" for kinds of this package.

        After an edit, photographs are read again and compared with those that were embedded.
        """
        return "" if in_package(self.opener) else files_digest(self.opener.__module__)


KINDS: Registry[Kind] = Registry("source kind", SOURCES)
Opener = TypeVar("Opener", bound=Callable[..., "Source"])


def register_source(
    name: str,
    *,
    options: Iterable[str] = (),
    endings: Iterable[str] = (),
    members: Iterable[str] = (),
    claims: Callable[[str, SourceConfig], bool] | None = None,
    remote: bool = False,
    position: int = 100,
) -> Callable[[Opener], Opener]:
    """Register a kind of source, as a decorator of its class: ``opener(root, config)`` returns a `Source`.

    Args:
        name: name of the kind in ``source.kind``.
        options: the fields of `SourceConfig` that it uses.
        endings: endings of the names of its files, in lower case, such as ``.zip``.
        members: file name extensions; a folder of such files is of this kind.
        claims: ``claims(folder, config)`` tells by other signs whether a folder is of this kind.
        remote: whether it opens addresses in buckets.
        position: place in lists; kinds of one position are in the order of their registration.

    Raises:
        ConfigError: the name is taken, or an option is no field of `SourceConfig`.
    """
    known = [field.name for field in fields(SourceConfig)]
    if name in (AUTO, *KINDS):
        raise ConfigError(KINDS.what, name, "an unused name")
    for option in options:
        if option not in known:
            raise ConfigError(f"options of source kind {name}", option, ", ".join(known))

    def decorate(opener: Opener) -> Opener:
        kind = Kind(name, opener, frozenset(options), tuple(endings), tuple(members), claims, remote)
        KINDS.add(name, kind, position)
        return opener

    return decorate


SPLITS_ARE_FOLDERS, SPLITS_ARE_CLASSES = "folders", "none"


def _known_kind(kind: str) -> str:
    if kind != AUTO and KINDS.find(kind) is None:  # not a Literal: plug-ins add kinds
        raise ValueError(f"{AUTO}, {', '.join(KINDS)}")
    return kind


def _list_kinds(schema: dict[str, Any]) -> None:
    schema["enum"] = [AUTO, *(kind.name for kind in KINDS.all())]


@validated("source")
class SourceConfig:
    """How to open a source. Fields left empty are detected.

    Raises ConfigError with the field ``source.<field>``, also for a field that the kind does not use.
    """

    kind: Annotated[str, AfterValidator(_known_kind), Field(json_schema_extra=_list_kinds)] = AUTO
    """Kind of source; ``list`` is CSV or TSV, ``parquet`` includes Hugging Face datasets, ``npz`` is a NumPy archive,
    ``auto`` detects the kind."""
    image_column: str = ""
    """Parquet: the column of encoded images. Default: a usual name such as ``image`` or ``img``, else the only column
    of bytes."""
    label_column: str = ""
    """List or Parquet: the column of labels. Default: a usual name such as ``label`` or ``class``."""
    path_column: str = ""
    """List: the column of paths; default: a usual name such as ``path`` or ``file_name``. Parquet: a column of unique
    ids to use as keys; default: file name and row."""
    split_column: str = ""
    """List or Parquet: the column of splits (train, val, test). Default: ``split``, or ``subset`` or ``partition`` if
    all its values are splits."""
    splits: Literal["", "folders", "none"] = ""
    """Folder with only some top-level folders named like splits, such as ``train/`` next to ``cats/``: ``folders`` uses
    those as splits and skips the rest, ``none`` uses all folders as classes. Required for such a folder."""
    json_label: str = ""
    """Tar: the field of ``.json`` members with the label; takes precedence over ``.cls``. Default: ``label``, after
    ``.cls``."""
    synsets: LocalPath | None = None
    """ImageNet: the file with the synsets of a flat ``val/`` folder."""
    names: LocalPath | None = None
    """A file of readable class names: ImageNet's LOC_synset_mapping.txt, or one name per line for classes 0, 1, …"""
    group: str = ""
    """What photographs have in common that must be in one split, such as the patient: ``column:NAME``,
    ``file:LIST.csv:COLUMN`` or ``exif:FIELD``, as in ``[labels]``. Splits of the source itself are kept."""

    def __post_init__(self) -> None:
        if self.kind == AUTO:
            return
        for name in self.given():
            if name != "group" and name not in KINDS[self.kind].options:
                kinds = " or ".join(kind for kind, known in KINDS.items() if name in known.options)
                raise ConfigError(f"source.{name}", getattr(self, name), f"only for kind {kinds}, not {self.kind}")

    def given(self) -> list[str]:
        """The fields that are set, without ``kind``."""
        return [field.name for field in fields(self) if field.name != "kind" and getattr(self, field.name)]

    def of_kind(self, kind: str) -> SourceConfig:
        """Copy with another kind. Raises ConfigError for a field that the kind does not use."""
        return replace(self, kind=kind)

    def fitting(self, kind: str) -> SourceConfig:
        """Copy with another kind, keeping only the fields that it uses."""
        options = KINDS[kind].options | {"group"}
        known = {name: getattr(self, name) for name in self.given() if name in options}
        return SourceConfig(**{"kind": kind, **known})

    def options(self) -> dict[str, str]:
        """The fields that are set, as text; paths are absolute."""
        given = {name: getattr(self, name) for name in self.given()}
        kind = {} if self.kind == AUTO else {"kind": self.kind}
        return kind | {name: os.path.abspath(v) if isinstance(v, Path) else v for name, v in given.items()}

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> SourceConfig:
        """The inverse of `options`. Raises ConfigError for an unknown field."""
        return cls(**options)  # type: ignore[arg-type]  # pydantic checks them
