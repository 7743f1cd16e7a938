"""Splits and classes from names of files and columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.base import SPLIT_FOLDERS, label_text, shown

WNID = re.compile(r"n\d{8}")
MAX_LIST = 1 << 28  # bytes of a file of names or synsets
_WORDS = re.compile(r"[^A-Za-z]+")
_WHOLE = re.compile(r"-?[0-9]+")


def split_word(text: str) -> str | None:
    """The split that a word names in any case, such as ``Validation`` for val; None for other words."""
    return SPLIT_FOLDERS.get(text.strip().lower())


def splits_of_files(names: Sequence[str]) -> list[str] | None:
    """The split of each of some shards, from the words of its path: ``data/train-00000-of-00004.parquet`` is train.

    The last part of the path that names a split counts: ``training_data/val-0.tar`` is val.

    Returns:
        None unless every path names a split, without contradiction, and one of them is train: as with folders, a name
        here and there says nothing.
    """
    found: list[str] = []
    for name in names:
        parts = [{split for word in _WORDS.split(part) if (split := split_word(word))} for part in name.split("/")]
        splits = next((some for some in reversed(parts) if some), set())
        if len(splits) != 1:
            return None
        found += splits
    return found if "train" in found else None


def split_text(value: object, where: str) -> str | None:
    """A split as a file gives it; None for an empty one. Raises ConfigError for another word."""
    text = str(value) if value is not None else ""
    if not text.strip():
        return None
    split = split_word(text)
    if split is None:
        raise ConfigError(f"split {where}", value, ", ".join(SPLIT_FOLDERS))
    return split


def read_lines(path: Path, field: str) -> list[str]:
    """The lines of a small text file, without their ends. Raises ConfigError when it cannot be read as UTF-8."""
    try:
        if path.stat().st_size > MAX_LIST:
            raise ConfigError(field, str(path), f"a text file of at most {MAX_LIST} bytes")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(field, str(path), f"a text file that can be read ({error})") from error


@dataclass
class Names:
    """Readable and unique names of classes, by what a source calls them: a synset, or a number as text.

    It remembers the classes it named, and so knows their `order`.
    """

    by_synset: Mapping[str, str] = field(default_factory=dict)
    by_number: Mapping[str, str] = field(default_factory=dict)
    _named: dict[str | tuple[int, str], str] = field(default_factory=dict)
    _number: dict[str, int | None] = field(default_factory=dict)

    def of(self, label: str | None) -> str | None:
        """The name of a class; the label itself where there is none."""
        if label is None:
            return None
        if label not in self._named:
            name = self.by_synset.get(label) or self.by_number.get(label, label)
            self._add(label, name, int(label) if _WHOLE.fullmatch(label) else None)
        return self._named[label]

    def of_numbered(self, number: int, name: str) -> str:
        """The name of a class that has a number and a name; the number counts only if the file has no synsets."""
        label = (number, name)
        if label not in self._named:
            readable = self.by_synset.get(name) or (name if self.by_synset else self.by_number.get(str(number), name))
            self._add(label, readable, number)
        return self._named[label]

    def order(self) -> list[str]:
        """The classes named so far: by their numbers if all of them have one, else by name."""
        numbers = self._number
        if None in numbers.values():
            return sorted(numbers)
        return sorted(numbers, key=lambda name: (numbers[name] or 0, name))

    def _add(self, label: str | tuple[int, str], name: str, number: int | None) -> None:
        self._named[label] = name
        # of two labels with one name the smaller number counts, whichever comes first
        before = self._number.get(name, number)
        self._number[name] = None if before is None or number is None else min(before, number)


def read_names(path: Path | None) -> Names:
    """Readable names of classes.

    Args:
        path: a file whose lines are ``n01440764 tench, Tinca tinca`` (the first name counts; line i also names the
            class with the number i), or a name for the class of each number, from 0. Where two classes have one name,
            as ImageNet's two cranes, the synset or the number stands behind it. None for no names.
    """
    if path is None:
        return Names()
    lines = [line.strip() for line in read_lines(path, "source.names")]
    while lines and not lines[-1]:
        lines.pop()
    pairs = [([*line.split(maxsplit=1), "", ""])[:2] for line in lines]
    numbers = [str(i) for i in range(len(lines))]
    if not all(WNID.fullmatch(first) for first, _ in pairs):
        return Names(by_number=dict(zip(numbers, distinct(lines, numbers), strict=True)))
    synsets = [first for first, _ in pairs]
    unique = distinct([rest.split(",")[0] for _, rest in pairs], synsets)
    return Names(dict(zip(synsets, unique, strict=True)), dict(zip(numbers, unique, strict=True)))


def distinct(texts: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Class names from texts: an empty one is replaced by its id, one that is there twice is followed by it."""
    names = [_name(text) or number for text, number in zip(texts, ids, strict=True)]
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [name if counts[name] == 1 else f"{name} ({number})" for name, number in zip(names, ids, strict=True)]


def _name(text: str) -> str | None:
    try:
        return label_text(text)
    except ValueError:  # too long for a name
        return None


# What the columns of a list or a table are usually called.

# the likelier first; case is ignored
IMAGE_COLUMNS = ("image", "img", "image_bytes", "picture", "photo", "jpg", "jpeg", "png", "webp")
PATH_COLUMNS = (
    "path", "file_name", "filename", "filepath", "file_path", "image_path", "image", "img", "file",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
SPLIT_COLUMNS = ("split",)
# splits only if they hold nothing else: data sets call all kinds of groups so
MAYBE_SPLIT_COLUMNS = ("subset", "partition")


def find(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """The column with the first of some usual names, None if there is none; the exact spelling wins over another."""
    names = list(names)
    known = {name.lower(): name for name in reversed(names)} | {name: name for name in names}
    return next((known[name] for name in usual if name in known), None)


def says_splits(values: Iterable[object]) -> bool:
    """Whether the values of a column are split words or empty, and not all of them empty."""
    words = {str(value) for value in values if value is not None and str(value).strip()}
    return bool(words) and all(map(split_word, words))


def no_label(unused: Sequence[str]) -> tuple[str, ...]:
    """What to say of a table without a column of labels; nothing if it has no other columns."""
    if not unused:
        return ()
    more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
    some = ", ".join(shown(name)[:50] for name in unused[:12])
    return (f"no label column among: {some}{more}; name one with --label-column",)
