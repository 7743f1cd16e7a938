"""Image records, sources and their configuration."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Generic, Literal, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from substyle.kernels.errors import ConfigError
from substyle.pipelines.validation import LocalPath, validated

# Text from untrusted names and labels: fit for a key, a class name and a log line.

log = logging.getLogger(__name__)

MAX_TEXT = 1000  # characters of a label or of a key: more is no name
_SHOWN = 20  # lines of a log about one source
_KEPT = 1000  # names that a source remembers of what it left out
_HALVES = re.compile("[\ud800-\udfff]")


def key_text(name: str) -> str:
    """A name as a key: a byte that is not UTF-8 (a surrogate in Python's names of files) becomes U+FFFD and its hex.

    A key is hashed and stored as UTF-8, which has no surrogates. All other names stay as they are.
    """
    if name.isascii():
        return name
    return _HALVES.sub(lambda half: f"\ufffd{ord(half[0]) & 0xFF:02x}", name)


def label_text(value: object) -> str | None:
    """A label from a file as a class name: text or a whole number; None for empty text.

    Raises:
        ValueError: another type, or text that is too long.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"a label of type {type(value).__name__}")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a label of more than 64 bits")
    text = _HALVES.sub("\ufffd", str(value)).strip()
    if len(text) > MAX_TEXT:
        raise ValueError(f"a label of {len(text)} characters")
    return sys.intern(text) if text else None  # many images have it


def shown(name: str) -> str:
    """A name as it may stand in a log line: no control characters, not endless."""
    name = key_text(name)
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= 200 else f"{name[:200]}…"


def words(error: Exception) -> str:
    """What an error says, on one line and not at length."""
    return " ".join(str(error).split())[:200]


class LeftOut:
    """Collects what a source does not take, and says so once: the first names in the log, the others as a number.

    Attributes:
        names: the first 1,000 names that were left out, of ``total``.
        count: number of reasons to be told, of which ``reasons`` holds the first ones.
        skipped: number of files of other kinds by their suffix. They are expected, and not in the log.
        substyle_folders: number of stores and results folders that were skipped.
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
        """One name, and why it was left out, as the rest of a sentence."""
        if len(self.names) < _KEPT:
            self.names.append(name)
        self.total += 1
        self.note(name, why)

    def skip(self, name: str) -> None:
        """A file of a kind that the source does not take."""
        self.skipped[os.path.splitext(name)[1].lower()] += 1

    def note(self, name: str, why: str) -> None:
        """What is to be said of a name that is taken all the same."""
        self.count += 1
        if self.count <= _SHOWN:
            self.reasons.append(f"{shown(name)} {why}")

    def extend(self, other: LeftOut) -> None:
        """What was collected apart, as if it had been said here."""
        self.names += other.names[: max(_KEPT - len(self.names), 0)]
        self.reasons += other.reasons[: max(_SHOWN - self.count, 0)]
        self.count += other.count
        self.total += other.total
        self.skipped += other.skipped
        self.substyle_folders += other.substyle_folders

    def tell(self) -> tuple[str, ...]:
        """Write the log; returns the names (at most 1,000)."""
        for reason in self.reasons:
            log.warning("%s: %s", self.root, reason)
        if self.count > len(self.reasons):
            log.warning("%s: and %d more", self.root, self.count - len(self.reasons))
        return tuple(sorted(self.names))

    def first(self) -> str:
        """The first reason in brackets, for an error where nothing is left; empty when there is none."""
        return f" ({self.reasons[0]})" if self.reasons else ""


T = TypeVar("T")

# file name extensions of images, the likelier first: where a tar sample has several, the first of these is the image
IMAGE_KINDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo")
EXTENSIONS = frozenset(IMAGE_KINDS)
# words that name a split, in lower case; use `names.split_word`, which ignores case
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


def unknown(place: int = 0) -> int:
    """The mark of an image whose changes cannot be told."""
    del place
    return 0


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source.

    Attributes:
        key: the image's name, such as its path relative to the source's root; unique in the source, and the same
            whatever other images there are.
        label: index into the source's class names, or None.
        split: ``train``, ``val`` or ``test`` when the source itself says so, else None.
        read: returns the encoded bytes; raises OSError when they cannot be read. Threads may call it at once.
        mark: returns a number below 2**63 that changes when the file with the image does. It does not read the image
            and never raises; 0 means that it cannot be told. Take it before `read`: bytes that are newer than their
            mark are noticed later, the other way round they are not.
    """

    key: str
    label: int | None
    split: str | None
    read: Callable[[], bytes] = field(compare=False, repr=False)
    mark: Callable[[], int] = field(default=unknown, compare=False, repr=False)


@dataclass(frozen=True)
class Understood:
    """How a source understood what it was given; `describe` says it in one line.

    Attributes:
        left_out: what was not taken.
        splits_from: where its splits come from, such as ``folders``; empty if it has none.
        columns: of a table, the column that was chosen for each purpose, such as ``{"image": "img"}``.
        remarks: further things to say.
    """

    left_out: LeftOut
    splits_from: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class Source(Protocol):
    """A collection of images in a fixed order; every kind of source passes the same conformance tests."""

    @property
    def root(self) -> str:
        """What the user named: a folder, an archive, a file or a pattern."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, indexed by label; sorted, or in the order of their numbers. Empty without labels."""
        ...

    @property
    def records(self) -> Sequence[ImageRecord]:
        """All images, sorted by key."""
        ...

    @property
    def options(self) -> Mapping[str, str]:
        """The fields of `SourceConfig` that open the same source again, as text; the kind is always among them."""
        ...

    @property
    def understood(self) -> Understood:
        """How it understood what it was given."""
        ...


class _At(Generic[T]):
    """A function of a place in a source's index, called for one place. Small, because every record has two."""

    __slots__ = ("of", "place")

    def __init__(self, of: Callable[[int], T], place: int) -> None:
        self.of, self.place = of, place

    def __call__(self) -> T:
        return self.of(self.place)


class Records(Sequence[ImageRecord]):
    """Records that are made when they are asked for: a key and a few numbers each, for millions of images.

    Args:
        keys: N unique keys in any order.
        labels: N class names or None.
        splits: N of ``train``, ``val``, ``test`` or None; None where no image has one.
        read: gives the bytes of the image at a place of these lists.
        mark: gives its mark; see `ImageRecord`.
        order: class names in the order they are to have; names that are not in it come after them, sorted.

    Attributes:
        class_names: the names that occur.
    """

    def __init__(
        self,
        keys: Sequence[str],
        labels: Sequence[str | None],
        splits: Sequence[str | None] | None,
        read: Callable[[int], bytes],
        mark: Callable[[int], int] = unknown,
        order: Iterable[str] = (),
    ) -> None:
        places = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in places]
        occurring = sorted({name for name in labels if name is not None})
        rank = {name: i for i, name in enumerate(dict.fromkeys(order))}
        self.class_names = tuple(sorted(occurring, key=lambda name: rank.get(name, len(rank))))
        index: dict[str | None, int] = {name: i for i, name in enumerate(self.class_names)}
        self._label_N = np.fromiter((index.get(labels[i], -1) for i in places), np.int32, len(places))
        self._split_N: NDArray[np.int8] | None = None
        if splits is not None:
            code: dict[str | None, int] = {name: i for i, name in enumerate(SPLITS)}
            self._split_N = np.fromiter((code.get(splits[i], -1) for i in places), np.int8, len(places))
        self._place_N = np.array(places, dtype=np.int64)
        self._read, self._mark = read, mark

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
        place = int(self._place_N[index])
        return ImageRecord(
            self.keys[index],
            None if label < 0 else label,
            None if split < 0 else SPLITS[split],
            _At(self._read, place),
            _At(self._mark, place),
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        for i in range(len(self)):
            yield self[i]

    def __eq__(self, other: object) -> bool:
        """Same keys, labels, splits and class names; bytes are not read."""
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
        """The split of every record, in the order of the records."""
        if self._split_N is None:
            yield from [None] * len(self)
        else:
            yield from (None if code < 0 else SPLITS[code] for code in self._split_N.tolist())


# How a source is to be opened: what kind it is, and what its columns and lists are called.

AUTO = "auto"
# kind: the fields that mean something for it
KINDS: dict[str, frozenset[str]] = {
    "folder": frozenset({"splits", "names"}),
    "list": frozenset({"path_column", "label_column", "split_column", "names"}),
    "tar": frozenset({"json_label", "names"}),
    "parquet": frozenset({"image_column", "path_column", "label_column", "split_column", "names"}),
    "imagenet": frozenset({"synsets", "names"}),
}
SPLITS_ARE_FOLDERS, SPLITS_ARE_CLASSES = "folders", "none"


def _known_kind(kind: str) -> str:
    if kind not in (AUTO, *KINDS):  # to which code may add kinds
        raise ValueError(f"{AUTO}, {', '.join(KINDS)}")
    return kind


@validated("source")
class SourceConfig:
    """How to open a source. Every field but ``kind`` may stay empty: then the usual names are looked for.

    Raises ConfigError naming the field ``source.<field>``, also for a field that means nothing for the kind.
    """

    kind: Annotated[str, AfterValidator(_known_kind), Field(json_schema_extra={"enum": [AUTO, *KINDS]})] = AUTO
    """``list`` is CSV or TSV; ``parquet`` takes Hugging Face data sets too; ``auto`` looks what is there."""
    image_column: str = ""
    """Of Parquet: the column of encoded images. Left empty: one with a usual name such as ``image`` or ``img`` (see
    `column_names`), else the only one that fits."""
    label_column: str = ""
    """Of a list or Parquet: the column of labels. Left empty: ``label``, ``class`` and the like."""
    path_column: str = ""
    """Of a list: the column of paths. Left empty: ``path``, ``file_name`` and the like. Of Parquet: a column of unique
    ids that become the keys; without it a key is the file's name and the row in it."""
    split_column: str = ""
    """Of a list or Parquet: the column that says train, val or test. Left empty: ``split``, or ``subset`` or
    ``partition`` if it holds nothing but splits."""
    splits: Literal["", "folders", "none"] = ""
    """Of a folder whose top-level folders are only partly splits, such as ``train/`` beside ``cats/``: ``folders``
    takes those named like a split as splits and leaves out the rest, ``none`` takes all of them as classes. Left empty,
    such a folder is an error."""
    json_label: str = ""
    """Of tar: the field of ``.json`` members that is the label, before any ``.cls`` (``label``, after)."""
    synsets: LocalPath | None = None
    """Of ImageNet: the file that names the classes of its flat ``val/`` folder."""
    names: LocalPath | None = None
    """A file of readable class names, as ImageNet's LOC_synset_mapping.txt, or a name for each number."""

    def __post_init__(self) -> None:
        if self.kind == AUTO:
            return
        for name in self.given():
            if name not in KINDS[self.kind]:
                kinds = " or ".join(kind for kind, known in KINDS.items() if name in known)
                raise ConfigError(f"source.{name}", getattr(self, name), f"only with kind {kinds}; this is {self.kind}")

    def given(self) -> list[str]:
        """The fields, besides the kind, that do not stay empty."""
        return [field.name for field in fields(self) if field.name != "kind" and getattr(self, field.name)]

    def of_kind(self, kind: str) -> SourceConfig:
        """The same for a kind. Raises ConfigError when a field means nothing for it."""
        return replace(self, kind=kind)

    def fitting(self, kind: str) -> SourceConfig:
        """The fields that mean something for a kind; the others stay empty."""
        known = {name: getattr(self, name) for name in self.given() if name in KINDS[kind]}
        return SourceConfig(**{"kind": kind, **known})

    def options(self) -> dict[str, str]:
        """The fields that differ from their defaults, as text; paths are absolute: they are used from elsewhere."""
        given = {name: getattr(self, name) for name in self.given()}
        kind = {} if self.kind == AUTO else {"kind": self.kind}
        return kind | {name: os.path.abspath(v) if isinstance(v, Path) else v for name, v in given.items()}

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> SourceConfig:
        """The inverse of `options`. Raises ConfigError for an unknown field."""
        return cls(**options)  # type: ignore[arg-type]  # pydantic checks them
