"""Derive splits and class names from file names, label files and column names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from substyle.errors import ConfigError, abbreviated
from substyle.pipelines.sources.base import MAX_TEXT, SPLIT_FOLDERS, label_text, log, shown

WNID = re.compile(r"n\d{8}")
MAX_LIST = 1 << 28  # bytes of a file of class names or synsets
_WORDS = re.compile(r"[^A-Za-z]+")
_WHOLE = re.compile(r"-?[0-9]+")


def numbered(name: str) -> bool:
    """Whether a class has only a number for a name, which means nothing in another dataset."""
    return _WHOLE.fullmatch(name) is not None


def split_word(text: str) -> str | None:
    """The split named by a word in any case, such as ``Validation`` for val; None for other words."""
    return SPLIT_FOLDERS.get(text.strip().lower())


def splits_of_files(names: Sequence[str]) -> list[str] | None:
    """The split of each shard, from the words of its path: ``data/train-00000-of-00004.parquet`` is train.

    The last part of the path that names a split counts: ``training_data/val-0.tar`` is val.

    Returns:
        one split per path; None unless every path names exactly one and one of them is train.
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
    """Parse a split; None for an empty value. Raises ConfigError for any other word.

    Args:
        where: location of the value, for the error message.
    """
    text = str(value) if value is not None else ""
    if not text.strip():
        return None
    split = split_word(text)
    if split is None:
        raise ConfigError(f"split {where}", text[:MAX_TEXT], ", ".join(SPLIT_FOLDERS))
    return split


def read_lines(path: Path, field: str) -> list[str]:
    """The lines of a UTF-8 text file. Raises ConfigError if it is unreadable or too large."""
    try:
        if path.stat().st_size > MAX_LIST:
            raise ConfigError(field, str(path), f"a text file of at most {MAX_LIST} bytes")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(field, str(path), f"a readable UTF-8 text file ({error})") from error


@dataclass
class Names:
    """Readable, unique class names by synset or number (as text); remembers the classes it named for `order`."""

    by_synset: Mapping[str, str] = field(default_factory=dict)
    by_number: Mapping[str, str] = field(default_factory=dict)
    _named: dict[str | tuple[int, str], str] = field(default_factory=dict)
    _number: dict[str, int | None] = field(default_factory=dict)

    def of(self, label: str | None) -> str | None:
        """The name of a class, by default its label."""
        if label is None:
            return None
        if label not in self._named:
            number = str(int(label)) if numbered(label) else label  # a folder may be called 007
            name = self.by_synset.get(label) or self.by_number.get(number, label)
            self._add(label, name, int(label) if numbered(label) else None)
        return self._named[label]

    def of_numbered(self, number: int, name: str) -> str:
        """The name of a class with a number and a name; the number is used only if there are no synsets."""
        label = (number, name)
        if label not in self._named:
            readable = self.by_synset.get(name) or (name if self.by_synset else self.by_number.get(str(number), name))
            self._add(label, readable, number)
        return self._named[label]

    def order(self) -> list[str]:
        """The classes named so far, by number if all have one, else by name; warns of numbers without a name."""
        unnamed = [name for name in self._number if self.by_number and numbered(name)]
        if unnamed:
            log.warning("source.names: no line for %s; the first line names class 0", ", ".join(sorted(unnamed)))
        numbers = self._number
        if None in numbers.values():
            return sorted(numbers)
        return sorted(numbers, key=lambda name: (numbers[name] or 0, name))

    def _add(self, label: str | tuple[int, str], name: str, number: int | None) -> None:
        self._named[label] = name
        # of two labels with one name, the smaller number counts
        before = self._number.get(name, number)
        self._number[name] = None if before is None or number is None else min(before, number)


def read_names(path: Path | None) -> Names:
    """Read readable class names.

    Args:
        path: a file with lines such as ``n01440764 tench, Tinca tinca`` (the first name counts; line i, from 0, also
            names class i), or with one name per line for classes 0, 1, … Repeated names, such as ImageNet's two cranes,
            get their synset or number appended. None for no names.
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
    """Make names unique: an empty one is replaced by its id, and repeated ones get it appended until they differ."""
    names = [_name(text) or number for text, number in zip(texts, ids, strict=True)]
    while (counts := Counter(names)) and len(counts) < len(names):
        names = [f"{name} ({number})" if counts[name] > 1 else name for name, number in zip(names, ids, strict=True)]
    return names


def _name(text: str) -> str | None:
    try:
        return label_text(text)
    except ValueError:  # too long
        return None


MISSING = frozenset({"NA", "N/A", "n/a", "NaN", "nan"})  # what programs write into a list where a label is missing
# usual column names, in order of precedence; case is ignored
IMAGE_COLUMNS = ("image", "img", "image_bytes", "picture", "photo", "jpg", "jpeg", "png", "webp")
PATH_COLUMNS = (
    "path", "file_name", "filename", "filepath", "file_path", "image_path", "image", "img", "file",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
SPLIT_COLUMNS = ("split",)
# ambiguous names, used only if all values are splits
MAYBE_SPLIT_COLUMNS = ("subset", "partition")


def find(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """The first column with a usual name, or None; an exact match wins over another case."""
    names = list(names)
    known = {name.lower(): name for name in reversed(names)} | {name: name for name in names}
    return next((known[name] for name in usual if name in known), None)


def says_splits(values: Iterable[object]) -> bool:
    """Whether all values of a column are splits or empty, with at least one split."""
    words = {str(value) for value in values if value is not None and str(value).strip()}
    return bool(words) and all(map(split_word, words))


def no_label(unused: Sequence[str]) -> tuple[str, ...]:
    """Remark for a table without a label column; empty if there are no other columns."""
    if not unused:
        return ()
    some = abbreviated([shown(name)[:50] for name in unused], 12)
    return (f"no label column in {some}; choose one with source.label_column",)
