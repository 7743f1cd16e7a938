"""Sources of image files: a folder, ImageNet's layout, or a CSV list."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from substyle.kernels.errors import ConfigError, MissingError
from substyle.pipelines.sources.base import (
    EXTENSIONS,
    MAX_TEXT,
    SPLITS_ARE_CLASSES,
    SPLITS_ARE_FOLDERS,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    key_text,
    label_text,
    shown,
)
from substyle.pipelines.sources.files import files_below, mark_of_file, read_below
from substyle.pipelines.sources.labels import (
    LABEL_COLUMNS,
    MAYBE_SPLIT_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    WNID,
    find,
    no_label,
    read_lines,
    read_names,
    says_splits,
    split_text,
    split_word,
)


class FolderSource:
    """Images in a folder and its subfolders.

    The first folder of ``root/<class>/…/image.jpg`` is the class; ``root/image.jpg`` has no label. If all top-level
    folders with images have names of splits (see `SPLIT_FOLDERS`; case is ignored) and one of them is train, they are
    the splits and the next folder is the class. If only some do, or train is missing, ``config.splits`` decides. A key
    is the path relative to the root. Links that leave the root are skipped with a warning, files without a known image
    extension silently.

    Raises:
        ConfigError: the root is not a folder, holds no images, or its splits are ambiguous.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("folder")
        self.root, self.options = str(root), config.options()
        self.path = Path(os.path.realpath(root))
        names, left_out = images_below(self.root)
        tops = Counter(_part(key_text(name), 0) for name in names)
        split_of = _split_folders(self.root, tops, config.splits)
        if split_of:
            names = _in_splits(names, split_of, tops, left_out)
        self.refused = left_out.tell()
        self.understood = Understood(left_out, splits_from="folders" if split_of else "")
        keys = [key_text(name) for name in names]
        readable = read_names(config.names)
        labels = [_part(key, int(bool(split_of))) for key in keys]
        splits = [split_of[_part(key, 0) or ""] for key in keys] if split_of else None
        self._names = names
        named = [readable.of(label) for label in labels]
        self.records = Records(keys, named, splits, self._read, self._mark, readable.order())
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(str(self.path), self._names[place])

    def _mark(self, place: int) -> int:
        return mark_of_file(os.path.join(self.path, self._names[place]))


def _part(key: str, number: int) -> str | None:
    """The folder of a key at some depth, interned; None if the key is not that deep."""
    parts = key.split("/", number + 1)
    return sys.intern(parts[number]) if len(parts) > number + 1 else None


def _split_folders(root: str, tops: Mapping[str | None, int], choice: str) -> dict[str, str]:
    """The split of each top-level folder; empty if the folders are classes.

    Args:
        tops: number of images by top-level folder; None is the root itself.
        choice: ``SourceConfig.splits``.

    Raises:
        ConfigError: some folders have names of splits, and ``choice`` does not decide.
    """
    split_of = {top: split for top in tops if top is not None and (split := split_word(top))}
    if choice == SPLITS_ARE_CLASSES or not split_of:
        return {}
    if choice == SPLITS_ARE_FOLDERS or (len(split_of) == len(tops) and "train" in split_of.values()):
        return split_of
    others = [f"{top}/" for top in sorted(top for top in tops if top is not None and top not in split_of)]
    if None in tops:
        others.append(f"images in the root folder ({tops[None]})")
    splits = _some([f"{top}/" for top in sorted(split_of)])
    beside = f"beside {_some(others)}" if others else "without train/"
    left_out = "; the rest is skipped" if others else ""
    raise ConfigError(
        "source.splits",
        f"{splits} {beside} in {root}",
        f"--split-folders {SPLITS_ARE_FOLDERS} ({splits} are splits{left_out}) or --split-folders {SPLITS_ARE_CLASSES} "
        f'(all folders are classes); in a study file, splits = "{SPLITS_ARE_FOLDERS}" or "{SPLITS_ARE_CLASSES}" '
        "in [source]",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _in_splits(
    names: Sequence[str], split_of: Mapping[str, str], tops: Mapping[str | None, int], left_out: LeftOut
) -> list[str]:
    """Keep the images in split folders; report the others, a folder at a time."""
    kept: list[str] = []
    for name in names:
        top = _part(key_text(name), 0)
        if top in split_of:
            kept.append(name)
        elif top is None:
            left_out.add(name, "is not in a split folder; skipped")
    for top in sorted(top for top in tops if top is not None and top not in split_of):
        left_out.add(f"{top}/", f"is not a split folder; skipped with its images ({tops[top]})")
    return kept


def images_below(root: str) -> tuple[Sequence[str], LeftOut]:
    """List the images below a folder, and what was skipped.

    Raises:
        ConfigError: not a folder, or no images in it.
    """
    left_out = LeftOut(root)
    if not os.path.isdir(root):
        raise ConfigError("images", root, "a folder of images")
    try:
        names = files_below(root, EXTENSIONS, left_out)
    except OSError as error:
        raise ConfigError("images", root, f"a readable folder ({error.strerror})") from error
    known: dict[str, str] = {}
    for name in names:
        if known.setdefault(key_text(name), name) != name:
            left_out.add(name, "has the same key as another image; skipped")
    if not known:
        left_out.tell()
        kinds = " ".join(sorted(EXTENSIONS))
        raise ConfigError("images", root, f"a folder of images ({kinds}); this one has none")
    return list(known.values()), left_out


_NUMBER = re.compile(r"(.*?)(\d{5,9})(\.\w+)")


class ImageNetSource:
    """ImageNet as distributed: ``train/<synset>/…`` and ``val/``, flat or with synset folders.

    Labels of a flat ``val/`` come from ``config.synsets``: Kaggle's LOC_val_solution.csv, or a file with one synset per
    line in the order of image names. If the names differ only in a number, line i is image i, and images may be
    missing. ``config.names`` gives readable class names. A key is the path relative to the root. Other folders, such as
    the unlabelled ``test/``, are ignored.

    Raises:
        ConfigError: a folder is missing, or a flat ``val/`` has no synset list or one that does not match.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("imagenet")
        self.root, self.options = str(root), config.options()
        self.path = Path(os.path.realpath(root))
        for folder in ("train", "val"):
            if not (self.path / folder).is_dir():
                raise ConfigError("images", self.root, f"a folder with train/<synset>/ and val/; {folder}/ is missing")
        names, left_out = images_below(self.root)
        readable = read_names(config.names)
        flat = [name for name in names if is_flat(name)]
        synset_of = _validation(flat, config.synsets) if flat else {}
        self._names: list[str] = []
        labels: list[str | None] = []
        elsewhere = 0
        for name in names:
            if not name.startswith(("train/", "val/")):
                elsewhere += 1
                continue
            parts = name.split("/")
            synset = synset_of.get(name) or (parts[1] if len(parts) > 2 else "")
            if not WNID.fullmatch(synset):
                left_out.add(name, "has no synset (such as n01440764); skipped")
                continue
            self._names.append(name)
            labels.append(readable.of(synset))
        self.refused = left_out.tell()
        remarks = (f"images outside train/ and val/ ignored: {elsewhere:,}",) if elsewhere else ()
        self.understood = Understood(left_out, splits_from="folders", remarks=remarks)
        if not self._names:
            raise ConfigError("images", self.root, f"a folder with train/<synset>/ and val/{left_out.first()}")
        keys = [key_text(name) for name in self._names]
        splits = [key[: key.index("/")] for key in keys]
        self.records = Records(keys, labels, splits, self._read, self._mark, readable.order())
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(str(self.path), self._names[place])

    def _mark(self, place: int) -> int:
        return mark_of_file(os.path.join(self.path, self._names[place]))


def is_flat(name: str) -> bool:
    """Whether a path is directly inside ``val/``."""
    return name.startswith("val/") and name.count("/") == 1


def _validation(flat: Sequence[str], synsets: Path | None) -> Mapping[str, str]:
    """The synset of each image of a flat ``val/``; images that Kaggle's list omits have none."""
    if synsets is None:
        raise MissingError("source.synsets", "val/ is flat; name the file with the synsets of its images")
    lines = [line.strip() for line in read_lines(synsets, "source.synsets")]
    while lines and not lines[-1]:
        lines.pop()
    if lines and "," in lines[0]:
        return _kaggle(flat, lines, synsets)
    for number, line in enumerate(lines, 1):
        if not WNID.fullmatch(line):
            raise ConfigError(f"line {number} of {synsets}", line[:100], "a synset, such as n01440764")
    numbers = _numbers(flat)
    if numbers and min(numbers.values()) >= 1 and max(numbers.values()) <= len(lines):
        return {name: lines[number - 1] for name, number in numbers.items()}
    if len(lines) != len(flat):
        raise ConfigError(
            "source.synsets", f"{len(lines)} lines in {synsets}", f"{len(flat)}, one for each image in val/"
        )
    return dict(zip(sorted(flat), lines, strict=True))


def _numbers(flat: Sequence[str]) -> Mapping[str, int]:
    """The number in each name; empty unless the names differ only in a number of five or more digits."""
    matches = {name: _NUMBER.fullmatch(name) for name in flat}
    if None in matches.values() or len({(m[1], len(m[2]), m[3]) for m in matches.values() if m}) != 1:
        return {}
    return {name: int(m[2]) for name, m in matches.items() if m}


def _kaggle(flat: Sequence[str], lines: Sequence[str], synsets: Path) -> Mapping[str, str]:
    """Parse LOC_val_solution.csv: ``ImageId,PredictionString``, the latter ``<synset> x y x y`` per box."""
    known: dict[str, str] = {}
    try:
        for number, row in enumerate(csv.reader(lines, strict=True)):
            words = row[1].split() if len(row) > 1 else []
            if not words or not WNID.fullmatch(words[0]):
                if number == 0:
                    continue  # header
                raise ConfigError(str(synsets), ",".join(row)[:100], "lines of <image>,<synset> and boxes")
            known[row[0]] = words[0]
    except csv.Error as error:
        raise ConfigError("source.synsets", str(synsets), f"a CSV file ({error})") from error
    found = {name: known[stem] for name in flat if (stem := os.path.splitext(name)[0].removeprefix("val/")) in known}
    if not found:
        raise ConfigError("source.synsets", str(synsets), f"a list of the images in val/, such as {flat[0]}")
    return found


LIST_KINDS = (".csv", ".tsv", ".tab")
MAX_LINE = 1 << 20  # characters


class ListSource:
    """Images listed in a CSV (``.csv``) or tab-separated (``.tsv``, ``.tab``) file in UTF-8 with a header.

    Paths are relative to the list's folder; columns of labels and splits are optional. Columns are found by their usual
    names (see `labels`) or named in the configuration. A key is the path without ``.`` parts and double slashes.
    Absolute paths, paths with ``..`` and repeated lines are skipped with a warning. A missing file and a link that
    leaves the folder fail when read.

    Raises:
        ConfigError: no such file, not a list, a missing column, a path with two labels or splits, or no images.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("list")
        self.root, self.options = str(root), config.options()
        self._folder = os.path.realpath(os.path.dirname(self.root) or ".")
        readable = read_names(config.names)
        left_out = LeftOut(self.root)
        lines: dict[str, tuple[str | None, str | None, int]] = {}
        columns = _columns(Path(root), config)
        for number, path, label, split in _lines(Path(root), columns):
            key = _key(path)
            if key is None:
                left_out.add(path, f"on line {number} is not inside the list's folder; skipped")
                continue
            try:
                named = label_text(label)
            except ValueError as error:
                left_out.note(path, f"on line {number} has {error}; left unlabelled")
                named = None
            entry = readable.of(named), split_text(split, f"on line {number} of {self.root}")
            *before, first = lines.setdefault(key, (*entry, number))
            if tuple(before) != entry:
                raise ConfigError(f"lines {first} and {number} of {self.root}", path, "one label and split per path")
            if first != number:
                left_out.add(path, f"on line {number} repeats line {first}; skipped")
        self.refused = left_out.tell()
        if not lines:
            raise ConfigError("images", self.root, f"a list of images; this one has none{left_out.first()}")
        self._names = list(lines)
        splits = [split for _, split, _ in lines.values()]
        given = splits if any(splits) else None
        self.understood = Understood(
            left_out,
            splits_from="its column" if given else "",
            columns=columns.chosen(),
            remarks=() if columns.label is not None else no_label(columns.unused),
        )
        labels = [label for label, _, _ in lines.values()]
        self.records = Records(self._names, labels, given, self._read, self._mark, readable.order())
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(self._folder, self._names[place])

    def _mark(self, place: int) -> int:
        return mark_of_file(os.path.join(self._folder, self._names[place]))


def _key(path: str) -> str | None:
    """The path as a key, None if it is not allowed."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or not parts or len(path) > MAX_TEXT:
        return None
    return "/".join(parts)


@dataclass(frozen=True)
class _Columns:
    """Column names of a list, and the indices of path, label and split."""

    header: tuple[str, ...]
    path: int
    label: int | None
    split: int | None

    def chosen(self) -> dict[str, str]:
        """Column name by purpose."""
        places = {"path": self.path, "label": self.label, "split": self.split}
        return {what: self.header[place] for what, place in places.items() if place is not None}

    @property
    def unused(self) -> list[str]:
        """Names of the other columns."""
        return [name for i, name in enumerate(self.header) if name and i not in (self.path, self.label, self.split)]


def _columns(path: Path, config: SourceConfig) -> _Columns:
    """Find the columns of a list. Raises ConfigError if the paths or a requested column are missing."""
    _, fields = next(_rows(path))
    header = [name.strip() for name in fields]

    def place(field: str, usual: Sequence[str]) -> int | None:
        asked = getattr(config, field)
        name = (asked if asked in header else None) if asked else find(header, usual)
        if name is None and (asked or field == "path_column"):
            raise ConfigError(
                f"source.{field}",
                asked or "nothing",
                f"a column of {path}: {', '.join(map(shown, header[:20])) or 'it has none'}",
            )
        return None if name is None else header.index(name)

    where = place("path_column", PATH_COLUMNS)
    assert where is not None
    found = _Columns(tuple(header), where, place("label_column", LABEL_COLUMNS), place("split_column", SPLIT_COLUMNS))
    maybe = find(header, MAYBE_SPLIT_COLUMNS) if found.split is None else None
    if maybe is not None:
        guess = replace(found, split=header.index(maybe))
        if says_splits(split for _, _, _, split in _lines(path, guess)):
            return guess
    return found


def _lines(path: Path, columns: _Columns) -> Iterator[tuple[int, str, str | None, str | None]]:
    """(line number, path, label, split) of each line after the header."""
    rows = _rows(path)
    next(rows)
    for number, row in rows:
        if not row:
            continue
        if len(row) > len(columns.header):
            raise ConfigError(
                f"line {number} of {path}",
                f"{len(row)} fields",
                f"at most {len(columns.header)}, the number of columns",
            )
        values = [
            row[i] if i is not None and i < len(row) else None for i in (columns.path, columns.label, columns.split)
        ]
        yield number, values[0] or "", values[1], values[2]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line; an empty file yields one line without fields."""
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_short(file), delimiter=delimiter, strict=True)
            yield 0, next(reader, [])
            for row in reader:
                number = reader.line_num
                yield number, row
    except OSError as error:
        raise ConfigError("images", str(path), f"a readable list ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError("images", str(path), f"a list in UTF-8 (after line {number}: {error.reason})") from error
    except csv.Error as error:
        raise ConfigError("images", str(path), f"a valid {path.suffix} file (after line {number}: {error})") from error


def _short(file: TextIO) -> Iterator[str]:
    """The lines of a file, bounded in length."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"line of {MAX_LINE} or more characters")
        yield line
