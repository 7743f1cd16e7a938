"""What every source gives: records in the order of their keys, and how a source is named to whom it may concern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from substyle.pipelines.sources.text import LeftOut

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
